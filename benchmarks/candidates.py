"""Who is compared: for each kind of work, mithril_opt and its peers."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import mithril_opt

EVERY = 4  # gradients per window of accumulation
CLIP_NORM = 1.0
OURS = "mithril_opt"
Step = Callable[[Any, Any, Any], tuple[Any, Any]]


@dataclasses.dataclass(frozen=True)
class Candidate:
    """Something that makes a training step: `init(params) -> state`, `step(params, grads, state) -> (params, state)`."""

    name: str
    init: Callable[[Any], Any]
    step: Step


@dataclasses.dataclass(frozen=True)
class Work:
    """One kind of training step.

    Attributes:
        title: what it does, in words.
        floor: the bytes per parameter that it cannot do without: each array that it needs read once, each new one written once.
        candidates: mithril_opt first, then the peer that ratios refer to, then others.
        pytorch: the name of PyTorch's way of doing it, if it is measured.
        window: steps that belong together.
        most_leaves: as many leaves as all candidates compile within a minute; larger workloads are thinned out.
    """

    title: str
    floor: float
    candidates: tuple[Candidate, ...]
    pytorch: str = ""
    window: int = 1
    most_leaves: int = 10_000


def ours(optimizer: mithril_opt.Optimizer, clip_norm: float | None = None, name: str = OURS) -> Candidate:
    """An optimizer of this library, behind `clip_gradients` if a bound is given."""

    def step(params: Any, grads: Any, state: Any) -> tuple[Any, Any]:
        if clip_norm is not None:
            grads = mithril_opt.clip_gradients(grads, clip_norm=clip_norm)
        return optimizer.update(params, grads, state)

    return Candidate(name, optimizer.init, step)


def our_full_step(optimizer: mithril_opt.Optimizer) -> Candidate:
    """Unscale, finite check, clip, update, commit: the second half of a mixed-precision step."""
    trainer = mithril_opt.MixedPrecisionTrainer(None, optimizer, clip_norm=CLIP_NORM)

    def step(params: Any, grads: Any, state: Any) -> tuple[Any, Any]:
        params, state, _ = trainer.update(params, grads, state)
        return params, state

    return Candidate(OURS, trainer.init, step)


def theirs(name: str, transformation: Any) -> Candidate:
    """An optax transformation (or `MultiSteps`)."""

    def step(params: Any, grads: Any, state: Any) -> tuple[Any, Any]:
        updates, state = transformation.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return Candidate(name, transformation.init, step)


def their_full_step(name: str, transformation: Any) -> Candidate:
    """An optax transformation under dynamic loss scaling as `flax.training.dynamic_scale` does it: `where` everywhere."""
    plain = theirs(name, transformation)

    def init(params: Any) -> Any:
        return transformation.init(params), jnp.float32(2.0**15), jnp.int32(0)

    def step(params: Any, grads: Any, state: Any) -> tuple[Any, Any]:
        inner, scale, good_steps = state
        grads = jax.tree.map(lambda grad: jnp.asarray(grad, jnp.float32) / scale, grads)
        finite = jnp.array(True)
        for grad in jax.tree.leaves(grads):
            finite &= jnp.all(jax.lax.is_finite(grad))
        updated = plain.step(params, grads, inner)
        kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), updated, (params, inner))
        return kept[0], (kept[1], *next_scale(scale, good_steps, finite))

    return Candidate(name, init, step)


def next_scale(scale: jax.Array, good_steps: jax.Array, finite: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Flax's rule: double the scale after 2000 finite steps in a row, halve it after an overflow."""
    grow = good_steps == 2000
    grown = jnp.where(grow & finite, jnp.minimum(scale * 2.0, jnp.finfo(jnp.float32).max), scale)
    new_scale = jnp.where(finite, grown, jnp.maximum(scale * 0.5, jnp.finfo(jnp.float32).tiny))
    return new_scale, jnp.where(grow | ~finite, 0, good_steps + 1)


def make_works() -> dict[str, Work]:
    """Every kind of training step, by the name that `--work` knows it by."""
    adamw = optax.adamw(1e-3, weight_decay=0.01)
    clipped = optax.chain(optax.clip_by_global_norm(CLIP_NORM), adamw)
    our_adamw = mithril_opt.AdamW(learning_rate=1e-3, weight_decay=0.01)
    accumulate = mithril_opt.Accumulate(our_adamw, every=EVERY)
    return {
        "adamw": Work(
            "AdamW",
            28,
            (ours(our_adamw), theirs("optax.adamw", adamw), theirs("optax.flatten(adamw)", optax.flatten(adamw))),
            pytorch="AdamW",
        ),
        "clip": Work(
            "clip + AdamW",
            32,
            (ours(our_adamw, CLIP_NORM), theirs("optax: clip_by_global_norm, adamw", clipped)),
            pytorch="clip + AdamW",
        ),
        "full": Work(
            "unscale, finite check, clip, AdamW, commit",
            32,
            (our_full_step(our_adamw), their_full_step("optax + flax-style dynamic scaling", clipped)),
            most_leaves=200,  # the peer's compilation grows with the square of the leaves and more
        ),
        "accumulate": Work(
            f"accumulate {EVERY}, AdamW (per micro-step, whole windows)",
            18,
            (ours(accumulate), theirs("optax.MultiSteps", optax.MultiSteps(adamw, EVERY))),
            window=EVERY,
        ),
        "storage": Work(
            "AdamW, slots in 16 bits",
            20,
            (
                ours(mithril_opt.Quantize(our_adamw)),
                ours(our_adamw, name="slots in float32"),
                ours(mithril_opt.Quantize(our_adamw, bits=8), name="slots in 8 bits"),
            ),
            most_leaves=400,
        ),
        **small_works(),
        **reducing_works(),
    }


def small_works() -> dict[str, Work]:
    """Optimizers with one slot per parameter."""
    sgd = mithril_opt.SGD(learning_rate=0.01, momentum=0.9)
    rmsprop = mithril_opt.RMSProp(learning_rate=1e-3, decay=0.9)
    adagrad = mithril_opt.AdaGrad(learning_rate=0.01)
    lion = mithril_opt.Lion(learning_rate=1e-4, weight_decay=1e-3)
    their_adagrad = optax.adagrad(0.01, initial_accumulator_value=0.0, eps=1e-8)
    return {
        "sgd": Work("SGD, momentum", 20, (ours(sgd), theirs("optax.sgd", optax.sgd(0.01, momentum=0.9))), pytorch="SGD"),
        "rmsprop": Work("RMSProp", 20, (ours(rmsprop), theirs("optax.rmsprop", optax.rmsprop(1e-3, decay=0.9)))),
        "adagrad": Work("AdaGrad", 20, (ours(adagrad), theirs("optax.adagrad", their_adagrad))),
        "lion": Work("Lion", 20, (ours(lion), theirs("optax.lion", optax.lion(1e-4, weight_decay=1e-3)))),
    }


def reducing_works() -> dict[str, Work]:
    """Optimizers that take norms or means of every leaf."""
    lamb, lars = mithril_opt.LAMB(learning_rate=1e-3), mithril_opt.LARS(learning_rate=1.0)
    adafactor = mithril_opt.Adafactor(learning_rate=1e-2, relative_step=False)
    return {
        "lamb": Work("LAMB", 28, (ours(lamb), theirs("optax.lamb", optax.lamb(1e-3)))),
        "lars": Work("LARS", 20, (ours(lars), theirs("optax.lars", optax.lars(1.0)))),
        "adafactor": Work("Adafactor", 12, (ours(adafactor), theirs("optax.adafactor", optax.adafactor(1e-2)))),
    }
