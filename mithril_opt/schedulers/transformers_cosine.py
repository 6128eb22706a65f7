"""The cosines of Hugging Face transformers under their names there; `base_lr` is in the optimizer's place."""

from mithril_opt.core.foreign_calls import no_optimizer
from mithril_opt.core.schedule import Schedule
from mithril_opt.core.typing import Scalar
from mithril_opt.schedulers.cosine import CosineCyclesLR, CosineHardRestartsLR
from mithril_opt.schedulers.warmup import Count, LinearWarmupScheduler, after_warmup, decay_steps


@no_optimizer()
def get_cosine_schedule_with_warmup(
    base_lr: Scalar, num_warmup_steps: Count, num_training_steps: Count, num_cycles: Scalar = 0.5
) -> Schedule:
    """η(k) = base_lr · k / W for k < W, then base_lr · ½ (1 + cos(2π c (k − W) / (T − W))).

    As in transformers it **rises again** after T. For a cosine that stays at its end value chain `LinearWarmupScheduler` and
    `CosineDecayLR`.

    Args:
        base_lr: the rate at the peak, k = W.
        num_warmup_steps: W ≥ 0.
        num_training_steps: T ≥ W, the warm-up included.
        num_cycles: c, the number of waves; ½ for one fall to 0.

    Raises:
        ValueError: the warm-up is longer than the training.

    Example:
        >>> from mithril_opt import get_cosine_schedule_with_warmup
        >>> get_cosine_schedule_with_warmup(10.0, num_warmup_steps=2, num_training_steps=10)([0, 1, 2, 6, 10]).round(3)
        Array([ 0.,  5., 10.,  5.,  0.], dtype=float32)
    """
    falling = decay_steps(num_warmup_steps, num_training_steps, minimum=1)
    return after_warmup(base_lr, num_warmup_steps, CosineCyclesLR(base_lr, falling, num_cycles))


@no_optimizer()
def get_cosine_with_min_lr_schedule_with_warmup(
    base_lr: Scalar,
    num_warmup_steps: Count,
    num_training_steps: Count,
    num_cycles: Scalar = 0.5,
    min_lr: Scalar | None = None,
    min_lr_rate: Scalar | None = None,
) -> Schedule:
    """η(k) = base_lr · k / W for k < W, then min_lr + (base_lr − min_lr) · ½ (1 + cos(2π c (k − W) / (T − W))).

    As in transformers it **rises again** after T. For a cosine that stays at its end value chain `LinearWarmupScheduler` and
    `CosineDecayLR`.

    Args:
        base_lr: the rate at the peak, k = W.
        num_warmup_steps: W ≥ 0.
        num_training_steps: T ≥ W, the warm-up included.
        num_cycles: c, the number of waves; ½ for one fall to `min_lr`.
        min_lr: the rate at the end.
        min_lr_rate: the same as a fraction of `base_lr`; exactly one of the two.

    Raises:
        ValueError: the warm-up is longer than the training; none of `min_lr` and `min_lr_rate` is given, or both.

    Example:
        >>> from mithril_opt import get_cosine_with_min_lr_schedule_with_warmup
        >>> get_cosine_with_min_lr_schedule_with_warmup(10.0, 2, 10, min_lr=2.0)([0, 1, 2, 10])
        Array([ 0.,  5., 10.,  2.], dtype=float32)
    """
    falling = decay_steps(num_warmup_steps, num_training_steps, minimum=1)
    low = _min_lr("get_cosine_with_min_lr_schedule_with_warmup", base_lr, min_lr, min_lr_rate)
    return after_warmup(base_lr, num_warmup_steps, CosineCyclesLR(base_lr, falling, num_cycles, low))


@no_optimizer()
def get_cosine_with_min_lr_schedule_with_warmup_lr_rate(
    base_lr: Scalar,
    num_warmup_steps: Count,
    num_training_steps: Count,
    num_cycles: Scalar = 0.5,
    min_lr: Scalar | None = None,
    min_lr_rate: Scalar | None = None,
    warmup_lr_rate: Scalar | None = None,
) -> Schedule:
    """From w · base_lr at k = 0 along a line to base_lr at k = W − 1, the last step of the warm-up, then
    min_lr + (base_lr − min_lr) · ½ (1 + cos(2π c (k − W + 1) / (T − W))).

    The first update already trains: transformers' "cosine_warmup_with_min_lr".

    Args:
        base_lr: the rate at the peak, k = W − 1.
        num_warmup_steps: W ≥ 1, or 2 with a `warmup_lr_rate`.
        num_training_steps: T ≥ W, the warm-up included.
        num_cycles: c, the number of waves; ½ for one fall to `min_lr`.
        min_lr: the rate at the end, k = T − 1.
        min_lr_rate: the same as a fraction of `base_lr`; exactly one of the two.
        warmup_lr_rate: w, where the warm-up starts, as a fraction of `base_lr`; 1 / W if not given.

    Raises:
        ValueError: no warm-up, or one that is longer than the training; none of `min_lr` and `min_lr_rate`, or both.

    Example:
        >>> from mithril_opt import get_cosine_with_min_lr_schedule_with_warmup_lr_rate
        >>> get_cosine_with_min_lr_schedule_with_warmup_lr_rate(10.0, 2, 10, min_lr=2.0)([0, 1, 9])
        Array([ 5., 10.,  2.], dtype=float32)
    """
    name = "get_cosine_with_min_lr_schedule_with_warmup_lr_rate"
    least = 1 if warmup_lr_rate is None else 2
    if isinstance(num_warmup_steps, int) and num_warmup_steps < least:
        raise ValueError(
            f"{name}: num_warmup_steps must be ≥ {least}, got {num_warmup_steps}; without a warm-up, write CosineDecayLR"
        )
    falling = decay_steps(num_warmup_steps, num_training_steps, minimum=1)
    cosine = CosineCyclesLR(base_lr, falling, num_cycles, _min_lr(name, base_lr, min_lr, min_lr_rate))
    start = base_lr / num_warmup_steps if warmup_lr_rate is None else base_lr * warmup_lr_rate
    return LinearWarmupScheduler(num_warmup_steps - 1, start, base_lr, cosine)


@no_optimizer()
def get_cosine_with_hard_restarts_schedule_with_warmup(
    base_lr: Scalar, num_warmup_steps: Count, num_training_steps: Count, num_cycles: Count = 1
) -> Schedule:
    """η(k) = base_lr · k / W for k < W, then base_lr · ½ (1 + cos(π (c (k − W) / (T − W) mod 1))), and 0 from T on.

    Args:
        base_lr: the rate at the start of every cycle.
        num_warmup_steps: W ≥ 0.
        num_training_steps: T ≥ W, the warm-up included.
        num_cycles: c ≥ 1, an integer.

    Raises:
        ValueError: the warm-up is longer than the training.

    Example:
        >>> from mithril_opt import get_cosine_with_hard_restarts_schedule_with_warmup
        >>> get_cosine_with_hard_restarts_schedule_with_warmup(10.0, 2, 10, num_cycles=2)([0, 2, 4, 6, 8, 10]).round(3)
        Array([ 0., 10.,  5., 10.,  5.,  0.], dtype=float32)
    """
    falling = decay_steps(num_warmup_steps, num_training_steps, minimum=1)
    return after_warmup(base_lr, num_warmup_steps, CosineHardRestartsLR(base_lr, falling, num_cycles))


def _min_lr(name: str, base_lr: Scalar, min_lr: Scalar | None, min_lr_rate: Scalar | None) -> Scalar:
    """The one of both that is given, as a rate."""
    if min_lr is not None and min_lr_rate is None:
        return min_lr
    if min_lr_rate is not None and min_lr is None:
        return base_lr * min_lr_rate
    raise ValueError(f"{name}: give exactly one of min_lr and min_lr_rate, got {min_lr} and {min_lr_rate}")
