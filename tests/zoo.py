"""One table of all optimizers and one of all schedules. A new row gets every test of test_contract.py for free."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mithril_opt import (
    ADOPT,
    AGC,
    EMA,
    LAMB,
    LARS,
    SGD,
    SOAP,
    SWA,
    Accumulate,
    AdaDelta,
    Adafactor,
    AdaGrad,
    Adam,
    Adamax,
    AdamW,
    Adan,
    AddNoise,
    AdEMAMix,
    CentralizeGradients,
    ChainedScheduler,
    Clip,
    ConstantLR,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    CosineCyclesLR,
    CosineDecayLR,
    CosineHardRestartsLR,
    CyclicLR,
    ExponentialLR,
    Frozen,
    HalfLifeWarmup,
    InverseSqrtLR,
    LambdaLR,
    LeafOptimizer,
    LinearLR,
    LinearWarmupScheduler,
    Lion,
    Lookahead,
    MultiOptimizer,
    MultiplicativeLR,
    MultiStepLR,
    Muon,
    NAdam,
    NoamLR,
    OneCycleLR,
    Optimizer,
    OptState,
    PerEpoch,
    PolynomialDecayLR,
    PolynomialLR,
    Prodigy,
    Quantize,
    RAdam,
    Record,
    RecordState,
    ReduceLROnPlateau,
    RMSProp,
    Round,
    ScaleRate,
    ScheduleFree,
    ScheduleFreeAdamW,
    ScheduleFreeSGD,
    SequentialLR,
    StepLR,
    Switch,
    WarmupCosLR,
    WarmupStableDecayLR,
    abs_sq,
    decay_rate,
    ema,
    layer_decay,
    number,
    optimizers,
    pytree,
    safe_divide,
    safe_sqrt,
)

RULES = [getattr(optimizers, name) for name in optimizers.__all__ if hasattr(getattr(optimizers, name), "update_leaf")]


class MomentumSlots(NamedTuple):
    velocity: jax.Array


@pytree
class Momentum(LeafOptimizer):
    """A rule as a user writes it: heavy-ball momentum with the rate inside the velocity's own factor."""

    learning_rate: float = 0.01
    friction: float = 0.1

    def init_leaf(self, param):
        return MomentumSlots(velocity=jnp.zeros_like(param))

    def update_leaf(self, param, grad, slots, t):
        velocity = (1 - self.friction) * slots.velocity + grad
        return self.learning_rate * velocity, MomentumSlots(velocity)


@pytree
class Bare(LeafOptimizer):
    """A rule whose slots are one bare array, and the parameter itself at that: a distance from the start."""

    learning_rate: float = 0.01

    def init_leaf(self, param):
        return param if isinstance(param, jax.Array) else jnp.zeros_like(param)

    def update_leaf(self, param, grad, slots, t):
        return self.learning_rate * (grad + 0.1 * (param - slots)), slots


class AverageNorm(NamedTuple):
    norm: jax.Array


@pytree
class Normalized(LeafOptimizer):
    """A rule with a sum over the tree: the step is divided by the average norm of the gradients so far."""

    learning_rate: float = number(default=0.1, minimum=0)
    beta: float = decay_rate(default=0.75)

    def init_leaf(self, param):
        return None

    def init_shared(self, params):
        wide = any(jnp.result_type(leaf) in (jnp.float64, jnp.complex128) for leaf in jax.tree.leaves(params))
        return AverageNorm(norm=jnp.zeros((), jnp.float64 if wide else jnp.float32))

    def share(self, rules, params, grads, slots, shared, t):
        squares = sum((jnp.sum(abs_sq(grad)) for grad in grads), start=jnp.zeros_like(shared.norm))
        norm = ema(self.beta, shared.norm, safe_sqrt(squares))
        return AverageNorm(norm), [norm] * len(grads)

    def update_leaf(self, param, grad, slots, t, norm):
        return self.learning_rate * safe_divide(grad, norm / self.beta.one_minus_power(t)), slots


def halving(step):
    return 0.1 * 0.5**step


def often_halving(step):
    return jnp.where(step % 4 == 0, 0.5, 1.0)


def constant_factor(step):
    return 0.97


def decays(path, leaf):
    return path != "embed"


def is_matrix(path, leaf):
    return jnp.ndim(leaf) > 1


def rows(path, leaf):
    return 0 if is_matrix(path, leaf) else None


def factored(path, leaf):
    return (0, 1) if path.endswith("w") else ()


def always(step):
    return True


def growing(step):
    return jnp.minimum(0.99, (1 + step) / (10 + step))


def depth_of(path, leaf):
    return 0 if path.endswith("embed") else 2


def as_a_matrix(path, leaf):
    """A scalar and a vector as matrices of one row, a cube as one whose first two axes are one."""
    last = jnp.ndim(leaf) - 1
    return tuple(range(last)), last if last >= 0 else ()


def is_embedding(path, leaf):
    return path.endswith("embed")


def groups(embedding, body):
    return MultiOptimizer({"embedding": embedding, "body": body}, groups={"embedding": is_embedding, "body": ...})


WARMUP = LinearWarmupScheduler(3, 0.001, 0.1, after_scheduler=CosineAnnealingLR(0.1, T_max=20, eta_min=0.01))
PLATEAU = LinearWarmupScheduler(3, 0.001, 0.1, after_scheduler=ReduceLROnPlateau(0.1, patience=1))

NARROW, COMPLEX = ("bfloat16", "float16"), ("complex64",)


class Row(NamedTuple):
    """A row of the table: how the optimizer is made, the dtypes of parameters that it refuses, and those of slots that others
    do not have."""

    make: Callable[[], Optimizer]
    refused: tuple[str, ...] = ()
    stored: tuple[str, ...] = ()

    def __call__(self):
        return self.make()


ROWS = {
    "sgd": lambda: SGD(learning_rate=0.1),
    "sgd-momentum": lambda: SGD(learning_rate=0.05, momentum=0.9),
    "sgd-nesterov": lambda: SGD(learning_rate=0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
    "sgd-dampening": lambda: SGD(learning_rate=0.05, momentum=0.9, dampening=0.5, decay_mask=decays, weight_decay=0.1),
    "adam": lambda: Adam(learning_rate=0.1),
    "adam-l2-amsgrad": lambda: Adam(learning_rate=0.1, weight_decay=0.01, amsgrad=True),
    "adam-scheduled": lambda: Adam(learning_rate=WARMUP, beta1=CosineAnnealingLR(0.9, T_max=50, eta_min=0.5)),
    "adam-plateau": lambda: Adam(learning_rate=PLATEAU, weight_decay=0.01),
    "adamw": lambda: AdamW(learning_rate=0.1),
    "adamw-masked": lambda: AdamW(learning_rate=0.1, weight_decay=0.1, decay_mask=decays),
    "adamw-amsgrad": lambda: AdamW(learning_rate=0.1, amsgrad=True, weight_decay=StepLR(0.1, step_size=2)),
    "adamw-flags": lambda: AdamW(
        learning_rate=WARMUP,
        decay_mask=decays,
        nesterov=True,
        cautious=True,
        cautious_decay=True,
        update_clip=0.9,
        decay="corrected",
        max_learning_rate=0.1,
        unit_axes=rows,
    ),
    "adamw-full": lambda: AdamW(learning_rate=WARMUP, update_clip=0.5, amsgrad=True, decay="full", max_learning_rate=0.1),
    "rmsprop": lambda: RMSProp(learning_rate=0.01),
    "rmsprop-centered": lambda: RMSProp(learning_rate=0.005, centered=True, momentum=0.9, weight_decay=0.01),
    "adagrad": lambda: AdaGrad(learning_rate=0.5),
    "adagrad-initial": lambda: AdaGrad(learning_rate=0.5, initial_accumulator_value=0.1, weight_decay=0.01),
    "lion": lambda: Lion(learning_rate=0.05),
    "lion-decay": lambda: Lion(learning_rate=WARMUP, beta1=0.5, weight_decay=0.1, decay_mask=decays),
    "nadam": lambda: NAdam(learning_rate=0.1),
    "nadam-decoupled": lambda: NAdam(learning_rate=0.1, weight_decay=0.1, decoupled_weight_decay=True, momentum_decay=0.1),
    "radam": lambda: RAdam(learning_rate=0.1),
    "radam-decay": lambda: RAdam(learning_rate=WARMUP, beta2=0.9, weight_decay=0.1, decay_mask=decays),
    "adamax": lambda: Adamax(learning_rate=0.1),
    "adamax-decay": lambda: Adamax(learning_rate=WARMUP, beta2=0.9, weight_decay=0.1),
    "adadelta": lambda: AdaDelta(epsilon=0.01),
    "adadelta-decoupled": lambda: AdaDelta(epsilon=0.01, weight_decay=0.1, decoupled_weight_decay=True, decay_mask=decays),
    "ademamix": lambda: AdEMAMix(learning_rate=0.1),
    "ademamix-warm": lambda: AdEMAMix(
        learning_rate=0.05, beta1=0.0, beta3=HalfLifeWarmup(0.9, 0.999, 20), alpha=LinearLR(5.0), weight_decay=0.1
    ),
    "adopt": lambda: ADOPT(learning_rate=0.1),
    "adopt-decay": lambda: ADOPT(learning_rate=WARMUP, beta2=0.9, weight_decay=0.1, decay_mask=decays),
    "adan": lambda: Adan(learning_rate=0.1),
    "adan-decay": lambda: Adan(learning_rate=WARMUP, weight_decay=0.5, proximal=False),
    "lamb": lambda: LAMB(learning_rate=0.05),
    "lamb-stacked": lambda: LAMB(learning_rate=WARMUP, weight_decay=0.01, trust_max=0.9, decay_mask=decays, unit_axes=rows),
    "lars": lambda: LARS(learning_rate=10.0),
    "lars-nesterov": lambda: LARS(
        learning_rate=0.1,
        nesterov=True,
        trust_coefficient=0.1,
        epsilon=1e-3,
        weight_decay=0.01,
        decay_mask=decays,
        trust_mask=is_matrix,
        unit_axes=rows,
    ),
    "adafactor": lambda: Adafactor(learning_rate=0.1),
    "adafactor-factored": lambda: Adafactor(
        learning_rate=WARMUP,
        beta1=0.5,
        epsilon2=0.1,
        relative_step=False,
        weight_decay=0.01,
        min_dim_size_to_factor=2,
        decay_mask=decays,
        matrix_axes=factored,
    ),
    "adafactor-stacked": lambda: Adafactor(
        learning_rate=0.05, update_clip=None, scale_parameter=False, relative_step=False, weight_decay=0.1, unit_axes=rows
    ),
    "muon": lambda: Muon(learning_rate=0.1, matrix_axes=as_a_matrix),
    "muon-original": lambda: Muon(
        learning_rate=WARMUP,
        beta=CosineAnnealingLR(0.9, T_max=50, eta_min=0.5),
        nesterov=False,
        weight_decay=0.5,
        scaling="original",
        ns_steps=3,
        ns_coefficients=((3.75, -6.25, 3.0), (1.875, -1.25, 0.375)),
        matrix_axes=as_a_matrix,
        decay_mask=decays,
    ),
    "prodigy": Row(lambda: Prodigy(beta2=0.9, d0=0.01), refused=NARROW + COMPLEX),
    "prodigy-everything": Row(
        lambda: Prodigy(
            learning_rate=LinearWarmupScheduler(3, 0.25, 1.0),
            beta1=CosineAnnealingLR(0.9, T_max=50, eta_min=0.5),
            beta3=0.9,
            weight_decay=0.1,
            d0=0.01,
            d_coef=0.5,
            growth_rate=1.5,
            bias_correction=True,
            safeguard_warmup=True,
            decay_mask=decays,
        ),
        refused=NARROW + COMPLEX,
    ),
    "schedule-free-adamw": lambda: ScheduleFreeAdamW(learning_rate=0.1),
    "schedule-free-adamw-scheduled": lambda: ScheduleFreeAdamW(
        learning_rate=WARMUP,
        beta1=CosineAnnealingLR(0.9, T_max=50, eta_min=0.5),
        weight_decay=0.1,
        r=0.5,
        weight_lr_power=1.5,
        keep_x=False,
        decay_mask=decays,
    ),
    "schedule-free-sgd": lambda: ScheduleFreeSGD(learning_rate=0.5, beta1=0.8, weight_decay=0.01, keep_x=True),
    "soap": Row(lambda: SOAP(learning_rate=0.02, every=2, max_precond_dim=3), refused=COMPLEX),
    "soap-everything": Row(
        lambda: SOAP(
            learning_rate=WARMUP,
            beta1=CosineAnnealingLR(0.9, T_max=50, eta_min=0.5),
            beta2=0.9,
            every=3,
            max_precond_dim=2,
            shampoo_beta=0.75,
            weight_decay=0.1,
            decay_mask=decays,
        ),
        refused=COMPLEX,
    ),
    "function": lambda: SGD(learning_rate=halving),
    "custom": lambda: Momentum(learning_rate=0.02),
    "custom-shared": lambda: Normalized(learning_rate=0.05),
    "custom-bare": lambda: Bare(learning_rate=0.1),
    "clip": lambda: Clip(AdamW(learning_rate=WARMUP), clip_norm=1.0),
    "clip-value": lambda: Clip(SGD(learning_rate=0.1, momentum=0.9), clip_value=0.5),
    "accumulate": lambda: Accumulate(AdamW(learning_rate=WARMUP), every=1),
    "clip-accumulate": lambda: Clip(Accumulate(Clip(Adam(learning_rate=PLATEAU), clip_norm=2.0), every=1), clip_norm=1.0),
    "ema": lambda: EMA(SGD(learning_rate=PLATEAU), decay=growing),
    "swa": lambda: SWA(SGD(learning_rate=0.1), start=1, every=2),
    "lookahead": lambda: Lookahead(SGD(learning_rate=0.1, momentum=0.9), every=2, alpha=0.75),
    "scale-rate": lambda: ScaleRate(SGD(learning_rate=0.1), {is_embedding: 0.5, ...: StepLR(1.5, step_size=2, gamma=0.5)}),
    "agc": lambda: AGC(SGD(learning_rate=0.1), clipping=0.5),
    "centralize": lambda: CentralizeGradients(SGD(learning_rate=0.1)),
    "noise": lambda: AddNoise(SGD(learning_rate=0.1), eta=1e-4, seed=3),
    "switch": lambda: Switch(SGD(learning_rate=WARMUP), on=always),
    "record": lambda: Record(Clip(SGD(learning_rate=0.1), clip_norm=1.0), size=3),
    "multi-wrappers": lambda: groups(
        EMA(Record(SGD(learning_rate=0.1)), decay=0.5),
        Lookahead(ScaleRate(SGD(learning_rate=WARMUP), layer_decay(depth_of, num_layers=2, decay=0.75)), every=3),
    ),
    "schedule-free": lambda: ScheduleFree(Clip(Adam(learning_rate=WARMUP, beta1=0.0), clip_norm=1.0), beta1=0.8),
    "schedule-free-frozen": lambda: ScheduleFree(groups(Frozen(), SGD(learning_rate=0.1)), weight_lr_power=0.0),
    "quantize": Row(lambda: Quantize(AdamW(learning_rate=0.1)), stored=("bfloat16",)),
    "quantize-8": lambda: Quantize(AdamW(learning_rate=0.1), bits=8),
    "round": Row(lambda: Round(AdamW(learning_rate=0.1)), refused=("float16",), stored=("int8",)),
    "round-0": Row(lambda: Round(AdamW(learning_rate=0.1), remainder=0), refused=("float16",)),
    "round-16": Row(lambda: Round(AdamW(learning_rate=0.1), remainder=16), refused=("float16",), stored=("int16",)),
    "round-quantize": Row(
        lambda: Round(Quantize(AdamW(learning_rate=WARMUP))), refused=("float16",), stored=("bfloat16", "int8")
    ),
    "multi": lambda: groups(Adam(learning_rate=0.1), AdamW(learning_rate=WARMUP)),
    "multi-frozen": lambda: groups(Frozen(), SGD(learning_rate=0.1, momentum=0.9)),
    "multi-nested": lambda: MultiOptimizer(
        {"all": groups(RMSProp(learning_rate=0.01), AdaGrad(learning_rate=0.1))}, groups={"all": "*"}
    ),
}
OPTIMIZERS = {name: row if isinstance(row, Row) else Row(row) for name, row in ROWS.items()}
VARIANTS = {name for name in OPTIMIZERS if any(name.startswith(f"{other}-") for other in OPTIMIZERS)}

LINEAR = LinearWarmupScheduler(4, 0.0, 0.3, LinearLR(0.3, start_factor=1.0, end_factor=0.1, total_iters=9))
PLATEAU = ReduceLROnPlateau(0.3, factor=0.5, patience=1, cooldown=1, min_lr=0.01)

SCHEDULES = {
    "lambda": lambda: LambdaLR(0.5, halving),
    "multiplicative": lambda: MultiplicativeLR(0.5, often_halving),
    "multiplicative-constant": lambda: MultiplicativeLR(0.5, constant_factor),
    "step": lambda: StepLR(0.5, step_size=30, gamma=0.5),
    "multi-step": lambda: MultiStepLR(0.5, milestones=[3, 10, 10, 40], gamma=0.3),
    "exponential": lambda: ExponentialLR(0.5, gamma=0.97),
    "constant": lambda: ConstantLR(0.5, factor=0.25, total_iters=7),
    "linear": lambda: LinearLR(0.5, start_factor=0.1, end_factor=0.8, total_iters=9),
    "polynomial": lambda: PolynomialLR(0.5, total_iters=20, power=0.9),
    "polynomial-decay": lambda: PolynomialDecayLR(0.5, decay_steps=20, lr_end=0.01, power=2.0),
    "cosine": lambda: CosineAnnealingLR(0.5, T_max=40, eta_min=0.1),
    "cosine-decay": lambda: CosineDecayLR(0.5, decay_steps=30, min_lr=0.05),
    "cosine-cycles": lambda: CosineCyclesLR(0.5, decay_steps=30, num_cycles=1.5),
    "hard-restarts": lambda: CosineHardRestartsLR(0.5, decay_steps=30, num_cycles=4),
    "warm-restarts": lambda: CosineAnnealingWarmRestarts(0.5, T_0=3, T_mult=2, eta_min=0.01),
    "warm-restarts-even": lambda: CosineAnnealingWarmRestarts(0.5, T_0=7),
    "cyclic": lambda: CyclicLR(0.1, 0.5, step_size_up=5, step_size_down=8),
    "cyclic-halving": lambda: CyclicLR(0.1, 0.5, step_size_up=5, mode="triangular2"),
    "cyclic-exponential": lambda: CyclicLR(0.1, 0.5, step_size_up=5, mode="exp_range", gamma=0.99),
    "one-cycle": lambda: OneCycleLR(0.5, total_steps=40),
    "one-cycle-three": lambda: OneCycleLR(0.5, total_steps=41, pct_start=0.33, anneal_strategy="linear", three_phase=True),
    "one-cycle-momentum": lambda: OneCycleLR(0.5, total_steps=40).momentum_schedule(0.1, 0.3),
    "warmup": lambda: LinearWarmupScheduler(10, 0.1, 0.5),
    "warmup-none": lambda: LinearWarmupScheduler(0, 0.1, 0.5, after_scheduler=StepLR(0.5, step_size=9)),
    "warmup-cosine": lambda: WARMUP,
    "warmup-function": lambda: LinearWarmupScheduler(4, 0.0, 0.1, after_scheduler=halving),
    "half-life": lambda: HalfLifeWarmup(0.9, 0.9999, steps=30),
    "half-life-from-zero": lambda: HalfLifeWarmup(0.0, 0.9, steps=7),
    "half-life-none": lambda: HalfLifeWarmup(0.9, 0.99, steps=0),
    "warmup-cos": lambda: WarmupCosLR(0.01, 0.5, warmup_epochs=5, epochs=30),
    "noam": lambda: NoamLR(d_model=16, warmup_steps=10, factor=2.0),
    "inverse-sqrt": lambda: InverseSqrtLR(0.5, timescale=10),
    "stable": lambda: WarmupStableDecayLR(0.5, 5, 10, 15, min_lr_ratio=0.1, num_cycles=0.7),
    "stable-roots": lambda: WarmupStableDecayLR(0.5, 5, 10, 15, warmup_type="1-sqrt", decay_type="1-sqrt"),
    "stable-mixed": lambda: WarmupStableDecayLR(0.5, 5, 0, 15, warmup_type="cosine", decay_type="linear"),
    "plateau": lambda: PLATEAU,
    "warmup-plateau": lambda: LinearWarmupScheduler(4, 0.0, 0.3, after_scheduler=PLATEAU),
    "sequential": lambda: SequentialLR([LINEAR, PLATEAU, ExponentialLR(0.1, gamma=0.9)], milestones=[10, 30]),
    "chained": lambda: ChainedScheduler([StepLR(0.5, step_size=9), ReduceLROnPlateau(1.0), halving]),
    "per-epoch": lambda: PerEpoch(ExponentialLR(0.5, gamma=0.9), steps_per_epoch=7),
    "three-deep": lambda: PerEpoch(LinearWarmupScheduler(2, 0.0, 0.3, PerEpoch(CosineAnnealingLR(0.3, T_max=5), 2)), 3),
    "four-deep": lambda: PerEpoch(
        SequentialLR([LINEAR, ChainedScheduler([LinearWarmupScheduler(3, 0.1, 1.0), PLATEAU])], milestones=[8]), 2
    ),
}


def make_params(dtype=jnp.float32, seed=0):
    """A small tree with a matrix, a vector and a scalar."""
    normal = np.random.default_rng(seed).normal
    imaginary = 1j if jnp.issubdtype(dtype, jnp.complexfloating) else 0
    tree = {"embed": (4, 3), "body": {"w": (2, 3), "b": [(3,), ()]}}
    shape = lambda node: isinstance(node, tuple)  # noqa: E731
    return jax.tree.map(lambda s: jnp.asarray(normal(size=s) + imaginary * normal(size=s), dtype), tree, is_leaf=shape)


def bits(tree):
    """The leaves of a tree as bytes, for comparisons to the bit."""
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def specs(tree):
    """Shapes, dtypes and weak types of a tree, with its structure."""
    leaf_spec = lambda leaf: (jnp.shape(leaf), jnp.result_type(leaf), jax.typeof(leaf).weak_type)  # noqa: E731
    return jax.tree.structure(tree), [leaf_spec(leaf) for leaf in jax.tree.leaves(tree)]


def core(state):
    """The `OptState` inside the states of wrappers."""
    return state if isinstance(state, OptState) else core(state.optimizer)


def unrecorded(state):
    """`state` without what `Record` has written down, and what it was told."""
    is_record = lambda node: isinstance(node, RecordState)  # noqa: E731
    return jax.tree.map(lambda node: unrecorded(node.optimizer) if is_record(node) else node, state, is_leaf=is_record)


def with_core(state, **fields):
    """`state` with some fields of its `OptState` replaced."""
    return (
        state._replace(**fields)
        if isinstance(state, OptState)
        else state._replace(optimizer=with_core(state.optimizer, **fields))
    )
