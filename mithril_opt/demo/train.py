"""The part to copy: an optimizer of two groups in a mixed-precision trainer, one jitted step, and the loop around it."""

import functools
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mithril_opt import (
    SOAP,
    Adam,
    AdamW,
    CosineAnnealingLR,
    LinearWarmupScheduler,
    MixedPrecisionTrainer,
    MultiOptimizer,
    Muon,
    Optimizer,
    Record,
    ScheduleFreeAdamW,
    ScheduleFreeSGD,
    hidden_matrices,
    optimizers,
    read_record,
    with_fields,
)
from mithril_opt.core.typing import Array
from mithril_opt.demo import data, model
from mithril_opt.demo.checkpoints import Checkpoints
from mithril_opt.demo.storage import FLOAT32, STORAGES, Storage, bytes_per_parameter

TWO_GROUPS = "Adam+AdamW"
# The rules that are for hidden matrices, and those whose rate does not fall.
FOR_MATRICES = (Muon, SOAP)
WITHOUT_DECAY = (ScheduleFreeAdamW, ScheduleFreeSGD)
BATCH = 16
EMBEDDING_RATE = 5e-3
BODY_RATE = 1.5e-3
CLIP_NORM = 1.0
# Far above what float16 holds, and growing often, so that overflows can be watched while they are skipped.
LOSS_SCALE, GROWTH_INTERVAL = 2.0**24, 50
READ_EVERY = 10
VALIDATE_EVERY = 50


class Block(NamedTuple):
    """A few steps of training, or one validation.

    Attributes:
        records: a dictionary for each step (step, loss, rates, grad_norm, update_ratio, loss_scale, skipped), or one for the
            validation (step, validation_loss).
        seconds: how long it took; what runs first also compiles.
        memory: bytes per parameter that parameters and the optimizer's state took up at the end of it; None for a validation.
    """

    records: list[dict[str, Any]]
    seconds: float
    memory: float | None = None


def warmup_cosine(peak: float, steps: int) -> LinearWarmupScheduler:
    """Up to `peak` in the first tenth of the steps, then down to a hundredth of it along a cosine."""
    warmup = steps // 10
    cosine = CosineAnnealingLR(peak, T_max=steps - warmup, eta_min=0.01 * peak)
    return LinearWarmupScheduler(warmup, 0.1 * peak, peak, after_scheduler=cosine)


def is_matrix(path: str, leaf: Any) -> bool:
    """Whether a parameter decays: matrices do, scales do not."""
    return leaf.ndim == 2


def make_optimizer(steps: int) -> MultiOptimizer:
    """Adam for the embedding and AdamW for the rest, each with its own rate."""
    embedding = Adam(learning_rate=warmup_cosine(EMBEDDING_RATE, steps))
    body = AdamW(learning_rate=warmup_cosine(BODY_RATE, steps), weight_decay=0.1, decay_mask=is_matrix)
    return MultiOptimizer({"embedding": embedding, "body": body}, groups={"embedding": "embedding/*", "body": ...})


def named_optimizers() -> dict[str, Callable[..., Optimizer]]:
    """The rules of the library, by name."""
    public = {name: getattr(optimizers, name) for name in optimizers.__all__}
    return {name: value for name, value in public.items() if isinstance(value, type) and issubclass(value, Optimizer)}


def make_named(name: str, steps: int, peak: Any = None) -> Optimizer:
    """The rule called `name` for all parameters it is for, `peak` or its default rate as the peak; or the two groups."""
    if name == TWO_GROUPS:
        return make_optimizer(steps)
    rule = named_optimizers()[name]
    schedule = warmup_cosine(rule().rate if peak is None else peak, steps)
    if rule in WITHOUT_DECAY:
        schedule = with_fields(schedule, after_scheduler=None)
    if rule in FOR_MATRICES:
        rules = {"matrices": rule(learning_rate=schedule), "rest": AdamW(learning_rate=schedule)}
        return MultiOptimizer(rules, groups={"matrices": hidden_matrices, "rest": ...})
    return rule(learning_rate=schedule)


def make_trainer(
    steps: int, precision: str, name: str = TWO_GROUPS, storage: Storage = STORAGES[FLOAT32]
) -> MixedPrecisionTrainer:
    """What is called `name`, stored as `storage` says and with a record of its last steps, in a trainer that computes in
    `precision`, clips, and skips."""
    return MixedPrecisionTrainer(
        None,
        Record(storage.wrap(make_named(name, steps)), size=READ_EVERY),
        loss_scale=LOSS_SCALE,
        policy=precision,
        clip_norm=CLIP_NORM,
        growth_interval=GROWTH_INTERVAL,
    )


def make_step(trainer: MixedPrecisionTrainer) -> Callable[..., tuple[model.Params, Any, dict[str, Any]]]:
    """The training step: `params, state, metrics = step(params, state, tokens, starts)`, with `params` and `state` donated.

    The batch is cut on the device out of the text `tokens`, int32[n], at the places `starts`, int32[BATCH].
    """

    @functools.partial(jax.jit, donate_argnames=("params", "state"))
    def step(params: model.Params, state: Any, tokens: Array, starts: Array) -> tuple[model.Params, Any, dict[str, Any]]:
        scale = state.loss_scale.scale
        loss, grads = trainer.value_and_grad(model.loss)(params, state, windows(tokens, starts))
        params, state, _ = trainer.update(params, grads, state, loss=loss)
        return params, state, {"loss": loss, "loss_scale": scale}

    return step


def windows(tokens: Array, starts: Array) -> Array:
    """The pieces of a text int32[n] that start at int32[k]: int32[k, CONTEXT + 1]."""
    return tokens[starts[:, None] + jnp.arange(model.CONTEXT + 1)[None, :]]


@jax.jit
def evaluate(params: model.Params, tokens: Array, starts: Array) -> Array:
    """The mean loss over the windows that start at int32[k]: float32 scalar."""
    losses = jax.lax.map(lambda window: model.loss(params, window[None]), windows(tokens, starts), batch_size=BATCH)
    return jnp.mean(losses)


def train(
    corpus: data.Corpus,
    steps: int,
    seed: int,
    precision: str,
    name: str = TWO_GROUPS,
    storage: str = FLOAT32,
    checkpoints: Checkpoints | None = None,
) -> Iterator[Block]:
    """Train a fresh model, or go on from the last checkpoint, and tell what happens.

    There is a validation at the start, now and then, and at the end. A checkpoint is saved when what was told up to there has
    been dealt with, so that metrics written by then belong to it.
    """
    trainer = make_trainer(steps, precision, name, STORAGES[storage])
    params = STORAGES[storage].cast(model.init(np.random.default_rng(seed)))
    state, step = trainer.init(params), make_step(trainer)
    tokens, held_out = jnp.asarray(corpus.train), jnp.asarray(corpus.validation)
    done, every = (checkpoints.step, checkpoints.every) if checkpoints else (0, steps)
    if checkpoints and done:
        params, state = checkpoints.restore((params, state))
    else:
        yield validate(params, held_out, 0)
    for block in blocks(steps, done, every):
        params, state, trained = train_block(trainer, step, params, state, tokens, block, seed)
        yield trained
        if block[-1] % VALIDATE_EVERY == 0 or block[-1] == steps:
            yield validate(trainer.eval_params(params, state), held_out, block[-1])
        if checkpoints and (block[-1] % every == 0 or block[-1] == steps):
            checkpoints.save(block[-1], (params, state))


def train_block(
    trainer: MixedPrecisionTrainer,
    step: Callable[..., Any],
    params: model.Params,
    state: Any,
    tokens: Array,
    block: range,
    seed: int,
) -> tuple[model.Params, Any, Block]:
    """Parameters and state after a few steps, and what happened.

    Metrics stay on the device until the block is done, so that the host never waits for a single step; most of them are in the
    state, where `Record` has written them. The batch of a step is a function of the seed and the step alone.
    """
    began, metrics = time.perf_counter(), []
    for i in block:
        starts = data.random_starts(np.random.default_rng((seed, i)), len(tokens), BATCH, model.CONTEXT)
        params, state, measured = step(params, state, tokens, starts)
        metrics.append(measured)
    rows = read_record(trainer, state)
    own = zip(block, jax.device_get(metrics), rows.rows[-len(block) :], strict=True)
    groups = sorted(trainer.learning_rates(state))
    records = [to_record(i, measured, dict(zip(rows.columns, row, strict=True)), groups) for i, measured, row in own]
    return params, state, Block(records, time.perf_counter() - began, bytes_per_parameter(params, state.optimizer))


def to_record(step: int, metrics: dict[str, Any], row: dict[str, Any], groups: Iterable[str]) -> dict[str, Any]:
    """The metrics of one step and its row in the optimizer's record, as Python numbers of the digits that a float32 has."""
    rates = {name: row[name] for name in groups}
    measured = {"loss": metrics["loss"], "rates": rates, "grad_norm": row["gradient norm"], "update_ratio": row["ratio"] or 0.0}
    rounded = jax.tree.map(lambda number: float(f"{number:.7g}"), measured)
    order = {name: rounded[name] for name in measured}
    return {"step": step, **order, "loss_scale": float(metrics["loss_scale"]), "skipped": row["outcome"] != "applied"}


def blocks(steps: int, done: int = 0, every: int = READ_EVERY) -> list[range]:
    """`done` + 1, …, `steps` in pieces that end at multiples of READ_EVERY and of `every`; the first step compiles, alone."""
    ends = sorted({done + 1, *range(READ_EVERY, steps, READ_EVERY), *range(every, steps, every), steps})
    return [range(last + 1, end + 1) for last, end in itertools.pairwise([done, *(end for end in ends if done < end <= steps)])]


def validate(params: model.Params, tokens: Array, step: int) -> Block:
    """The loss on the held-out text int32[m] after `step` steps."""
    began = time.perf_counter()
    loss = float(evaluate(params, tokens, data.consecutive_starts(len(tokens), model.CONTEXT)))
    return Block([{"step": step, "validation_loss": loss}], time.perf_counter() - began)
