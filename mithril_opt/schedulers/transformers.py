"""The schedules of Hugging Face transformers, but its cosines, under their names; `base_lr` is in the optimizer's place."""

from typing import Any

import jax
import jax.numpy as jnp

from mithril_opt.core.foreign_calls import no_optimizer
from mithril_opt.core.schedule import Schedule
from mithril_opt.core.typing import Scalar
from mithril_opt.schedulers.decay import ConstantLR, LinearLR, PolynomialDecayLR
from mithril_opt.schedulers.plateau import ReduceLROnPlateau
from mithril_opt.schedulers.stable import WarmupStableDecayLR
from mithril_opt.schedulers.warmup import Count, InverseSqrtLR, after_warmup, check_lengths, decay_steps


@no_optimizer()
def get_constant_schedule(base_lr: Scalar) -> Schedule:
    """η(k) = base_lr.

    Args:
        base_lr: the rate.

    Example:
        >>> from mithril_opt import get_constant_schedule
        >>> get_constant_schedule(0.5)([0, 1000])
        Array([0.5, 0.5], dtype=float32)
    """
    return ConstantLR(base_lr, factor=1.0, total_iters=0)


@no_optimizer()
def get_constant_schedule_with_warmup(base_lr: Scalar, num_warmup_steps: Count) -> Schedule:
    """η(k) = base_lr · k / W for k < W, then base_lr.

    Args:
        base_lr: the rate after the warm-up.
        num_warmup_steps: W ≥ 0.

    Example:
        >>> from mithril_opt import get_constant_schedule_with_warmup
        >>> get_constant_schedule_with_warmup(1.0, num_warmup_steps=4)([0, 1, 4, 5])
        Array([0.  , 0.25, 1.  , 1.  ], dtype=float32)
    """
    return after_warmup(base_lr, num_warmup_steps, None)


@no_optimizer()
def get_linear_schedule_with_warmup(base_lr: Scalar, num_warmup_steps: Count, num_training_steps: Count) -> Schedule:
    """η(k) = base_lr · k / W for k < W, then base_lr · max(0, (T − k) / (T − W)).

    Args:
        base_lr: the rate at the peak, k = W.
        num_warmup_steps: W ≥ 0.
        num_training_steps: T ≥ W, the warm-up included; the rate is 0 from there on.

    Raises:
        ValueError: the warm-up is longer than the training.

    Example:
        >>> from mithril_opt import get_linear_schedule_with_warmup
        >>> get_linear_schedule_with_warmup(10.0, num_warmup_steps=2, num_training_steps=10)([0, 1, 2, 6, 10])
        Array([ 0.,  5., 10.,  5.,  0.], dtype=float32)
    """
    falling = decay_steps(num_warmup_steps, num_training_steps)
    return after_warmup(base_lr, num_warmup_steps, LinearLR(base_lr, 1.0, 0.0, falling))


@no_optimizer()
def get_polynomial_decay_schedule_with_warmup(
    base_lr: Scalar, num_warmup_steps: Count, num_training_steps: Count, lr_end: Scalar = 1e-7, power: Scalar = 1.0
) -> Schedule:
    """η(k) = base_lr · k / W for k < W, then (base_lr − lr_end) · (1 − (k − W) / (T − W))ᵖ + lr_end, and `lr_end` from T on.

    Args:
        base_lr: the rate at the peak, k = W.
        num_warmup_steps: W ≥ 0.
        num_training_steps: T ≥ W, the warm-up included.
        lr_end: the rate at the end, below `base_lr`.
        power: p ≥ 0.

    Raises:
        ValueError: the warm-up is longer than the training, or `lr_end` is not below `base_lr`.

    Example:
        >>> from mithril_opt import get_polynomial_decay_schedule_with_warmup
        >>> get_polynomial_decay_schedule_with_warmup(10.0, 2, 10, lr_end=2.0)([0, 1, 2, 6, 10, 11])
        Array([ 0.,  5., 10.,  6.,  2.,  2.], dtype=float32)
    """
    falling = decay_steps(num_warmup_steps, num_training_steps)
    return after_warmup(base_lr, num_warmup_steps, PolynomialDecayLR(base_lr, falling, lr_end, power))


@no_optimizer()
def get_inverse_sqrt_schedule(base_lr: Scalar, num_warmup_steps: Count, timescale: Count | None = None) -> Schedule:
    """η(k) = base_lr · k / W for k < W, then base_lr / √((k − W + τ) / τ).

    Args:
        base_lr: the rate at the peak, k = W.
        num_warmup_steps: W ≥ 0.
        timescale: τ ≥ 1; W if not given, or 10,000 if that is 0.

    Example:
        >>> from mithril_opt import get_inverse_sqrt_schedule
        >>> get_inverse_sqrt_schedule(1.0, num_warmup_steps=100)([0, 50, 100, 400])
        Array([0. , 0.5, 1. , 0.5], dtype=float32)
    """
    if timescale is None:
        traced = isinstance(num_warmup_steps, jax.Array)
        timescale = jnp.where(num_warmup_steps == 0, 10_000, num_warmup_steps) if traced else num_warmup_steps or 10_000
    return after_warmup(base_lr, num_warmup_steps, InverseSqrtLR(base_lr, timescale))


@no_optimizer()
def get_reduce_on_plateau_schedule(base_lr: Scalar, **kwargs: Any) -> Schedule:
    """`ReduceLROnPlateau(base_lr, **kwargs)`.

    Args:
        base_lr: the rate before the first reduction.
        kwargs: what else `ReduceLROnPlateau` takes.

    Example:
        >>> from mithril_opt import get_reduce_on_plateau_schedule
        >>> get_reduce_on_plateau_schedule(0.5, patience=3).patience
        3
    """
    return ReduceLROnPlateau(base_lr, **kwargs)


@no_optimizer()
def get_wsd_schedule(
    base_lr: Scalar,
    num_warmup_steps: Count,
    num_decay_steps: Count,
    num_training_steps: Count | None = None,
    num_stable_steps: Count | None = None,
    warmup_type: str = "linear",
    decay_type: str = "cosine",
    min_lr_ratio: Scalar = 0.0,
    num_cycles: Scalar = 0.5,
) -> Schedule:
    """Up in W steps, level, down in D, then level again: see `WarmupStableDecayLR` for the formulas.

    Args:
        base_lr: the rate on the level.
        num_warmup_steps: W ≥ 0.
        num_decay_steps: D ≥ 0.
        num_training_steps: T ≥ W + D; the level then lasts T − W − D steps.
        num_stable_steps: the steps of the level; it counts if both are given, as in transformers.
        warmup_type: "linear", "cosine" or "1-sqrt".
        decay_type: the same.
        min_lr_ratio: where the warm-up starts and the decay ends, relative to `base_lr`.
        num_cycles: the number of waves of a cosine decay.

    Raises:
        ValueError: neither `num_training_steps` nor `num_stable_steps` is given, or the parts are longer than the training.

    Example:
        >>> from mithril_opt import get_wsd_schedule
        >>> get_wsd_schedule(10.0, num_warmup_steps=2, num_decay_steps=4, num_training_steps=10)([0, 1, 2, 6, 8, 10]).round(3)
        Array([ 0.,  5., 10., 10.,  5.,  0.], dtype=float32)
    """
    if num_training_steps is not None:
        parts = {"num_warmup_steps": num_warmup_steps, "num_decay_steps": num_decay_steps}
        level = {} if num_stable_steps is None else {"num_stable_steps": num_stable_steps}
        check_lengths("get_wsd_schedule", num_training_steps=num_training_steps, **parts, **level)
    if num_stable_steps is None:
        if num_training_steps is None:
            raise ValueError("get_wsd_schedule needs num_training_steps or num_stable_steps")
        num_stable_steps = decay_steps(num_warmup_steps, num_training_steps - num_decay_steps)
    return WarmupStableDecayLR(
        base_lr, num_warmup_steps, num_stable_steps, num_decay_steps, warmup_type, decay_type, min_lr_ratio, num_cycles
    )
