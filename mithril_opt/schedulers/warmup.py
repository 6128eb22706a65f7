"""Schedules that warm up."""

from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from mithril_opt.core.fields import number, steps
from mithril_opt.core.numerics import scalar_f32
from mithril_opt.core.pytree import pytree, set_field
from mithril_opt.core.schedule import Schedule, require_schedule
from mithril_opt.core.tree import select
from mithril_opt.core.typing import Array, PyTree, Scalar
from mithril_opt.schedulers.numerics import between, half_wave, ratio

Count: TypeAlias = int | Array


@pytree
class LinearWarmupScheduler(Schedule):
    """η(k) = start_lr + (end_lr − start_lr) · k / W for k < W; from W on `after_scheduler(k − W)`, or `end_lr` without one.

    The schedule that follows has its own clock, which starts at 0 when the warm-up ends; a metric reaches it from then on.
    With W = 0 there is no warm-up.

    Args:
        warmup_steps: W ≥ 0, in steps.
        start_lr: the rate at k = 0.
        end_lr: the rate at k = W.
        after_scheduler: a schedule or a function of the step; `end_lr` is not passed on to it.

    Raises:
        ValueError: a Python number is out of its range.
        TypeError: `after_scheduler` is no schedule.

    Example:
        >>> from mithril_opt import CosineAnnealingLR, LinearWarmupScheduler
        >>> schedule = LinearWarmupScheduler(4, 0.0, 1.0, after_scheduler=CosineAnnealingLR(1.0, T_max=10))
        >>> schedule([0, 2, 4, 14])
        Array([0. , 0.5, 1. , 0. ], dtype=float32)
    """

    warmup_steps: int | Array = steps(minimum=0)
    start_lr: Scalar = number(minimum=0)
    end_lr: Scalar = number(minimum=0)
    after_scheduler: Any = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.after_scheduler is not None:
            set_field(self, "after_scheduler", require_schedule(self, self.after_scheduler))

    @property
    def base_rate(self) -> Any:
        return self.end_lr

    def joints(self) -> list[tuple[float, float, float]]:
        if self.after_scheduler is None or not self.warmup_steps:
            return []
        return [(float(self.start_lr), float(self.end_lr), float(self.after_scheduler(0)))]

    def rises_again(self, steps: int) -> int:
        return 0 if self.after_scheduler is None else self.after_scheduler.rises_again(steps - int(self.warmup_steps))

    def init(self) -> PyTree:
        return None if self.after_scheduler is None else self.after_scheduler.init()

    def observe(self, memory: PyTree, metric: Any, step: Any) -> PyTree:
        if memory is None:
            return None
        after = self.after_scheduler.observe(memory, metric, jnp.maximum(step - self.warmup_steps, 0))
        return select(step >= self.warmup_steps, after, memory)

    def value_given(self, step: Array, memory: PyTree) -> Array:
        done = jnp.minimum(step, self.warmup_steps)
        rising = between(self.start_lr, self.end_lr, done, self.warmup_steps - done)
        if self.after_scheduler is None:
            return rising
        after = self.after_scheduler.read(memory, jnp.maximum(step - self.warmup_steps, 0))
        return jnp.where(step < self.warmup_steps, rising, after)


@pytree
class WarmupCosLR(Schedule):
    """A linear warm-up and a cosine to `min_lr`, where it stays; usually in epochs, within `PerEpoch`.

        η(e) = lr · (e + 1) / W                                             e < W
        η(e) = min_lr + ½ (lr − min_lr) (1 + cos(π (e − W) / (E − W)))      W ≤ e < E
        η(e) = min_lr                                                       e ≥ E

    The first epoch already trains, and the peak is held at e = W − 1 and e = W.

    Args:
        min_lr: the rate from e = E on.
        lr: the rate at the peak.
        warmup_epochs: W ≥ 0, in epochs (or in steps, without `PerEpoch`).
        epochs: E ≥ 1, the length of the training in the same unit, the warm-up included.

    Raises:
        ValueError: the warm-up is longer than the training, or a Python number is out of its range.

    Example:
        >>> from mithril_opt import WarmupCosLR
        >>> WarmupCosLR(0.0, 1.0, warmup_epochs=2, epochs=6)([0, 1, 2, 4, 6, 7]).round(3)
        Array([0.5, 1. , 1. , 0.5, 0. , 0. ], dtype=float32)
    """

    min_lr: Scalar = number(minimum=0)
    lr: Scalar = number(minimum=0)
    warmup_epochs: int | Array = steps(minimum=0)
    epochs: int | Array = steps()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_lengths("WarmupCosLR", epochs=self.epochs, warmup_epochs=self.warmup_epochs)

    @property
    def base_rate(self) -> Any:
        return self.lr

    def value(self, step: Array) -> Array:
        rising = self.lr * ratio(jnp.minimum(step, self.warmup_epochs - 1) + 1, self.warmup_epochs)
        left = jnp.maximum(self.epochs - jnp.maximum(step, self.warmup_epochs), 0)
        done = self.epochs - self.warmup_epochs - left
        return jnp.where(step < self.warmup_epochs, rising, between(self.lr, self.min_lr, done, left, half_wave))


@pytree
class NoamLR(Schedule):
    """η(k) = factor · d^−½ · min(k^−½, k · W^−1.5), 0 at k = 0 (the Transformer's schedule, Vaswani et al. 2017).

    It rises to factor · (d W)^−½ at k = W and falls with the inverse square root of the step. The first update, at k = 0, has
    the rate 0; libraries that take k + 1 for k reach the peak one step earlier.

    Args:
        d_model: d ≥ 1, the width of the model.
        warmup_steps: W ≥ 1, in steps.
        factor: ≥ 0.

    Raises:
        ValueError: a Python number is out of its range.

    Example:
        >>> from mithril_opt import NoamLR
        >>> NoamLR(d_model=4, warmup_steps=4)([0, 2, 4, 16])
        Array([0.   , 0.125, 0.25 , 0.125], dtype=float32)
    """

    d_model: int | Array = steps()
    warmup_steps: int | Array = steps()
    factor: Scalar = number(default=1.0, minimum=0)

    def value(self, step: Array) -> Array:
        rising = ratio(step, self.warmup_steps) * jnp.sqrt(ratio(1, self.warmup_steps))
        falling = jnp.sqrt(ratio(1, jnp.maximum(step, 1)))
        return self.factor * jnp.sqrt(ratio(1, self.d_model)) * jnp.where(step < self.warmup_steps, rising, falling)


@pytree
class InverseSqrtLR(Schedule):
    """η(k) = base_lr · √(τ / (τ + k)): the inverse square root of the step, which starts at `base_lr`.

    After a warm-up of τ steps this is what `get_inverse_sqrt_schedule` does, base_lr · √(τ / k) counted from the very start.

    Args:
        base_lr: the rate at k = 0.
        timescale: τ ≥ 1, in steps: the rate has halved at k = 3τ.

    Raises:
        ValueError: a Python number is out of its range.

    Example:
        >>> from mithril_opt import InverseSqrtLR
        >>> InverseSqrtLR(1.0, timescale=100)([0, 300])
        Array([1. , 0.5], dtype=float32)
    """

    base_lr: Scalar = number(minimum=0)
    timescale: int | Array = steps()

    def value(self, step: Array) -> Array:
        timescale = scalar_f32(self.timescale)
        return self.base_lr * jnp.sqrt(timescale / (timescale + scalar_f32(step)))


def check_lengths(owner: str, **lengths: Any) -> None:
    """Raise a ValueError if the later of `lengths`, named after the arguments, add up to more than the first. Only if all of
    them are Python or NumPy numbers: arrays may be traced."""
    known = [isinstance(length, int | float | np.number) for length in lengths.values()]
    for (name, length), number_given in zip(lengths.items(), known, strict=True):
        if not (number_given or hasattr(length, "dtype")):
            raise TypeError(f"{owner}: {name} must be an integer, got {length!r} of type {type(length).__name__}")
    (whole, total), *parts = lengths.items()
    if all(known) and total < sum(length for _, length in parts):
        given = " + ".join(f"{name} = {length}" for name, length in parts)
        raise ValueError(f"{owner}: {given} must not be longer than {whole} = {total}")


def after_warmup(base_lr: Scalar, num_warmup_steps: Count, schedule: Schedule | None) -> Schedule:
    """`schedule` after transformers' warm-up, a line from 0."""
    return LinearWarmupScheduler(num_warmup_steps, 0.0, base_lr, schedule)


def decay_steps(num_warmup_steps: Count, num_training_steps: Count, minimum: int = 0) -> Count:
    """T − W, at least `minimum`; a ValueError if the warm-up is longer than the training."""
    lengths = {"num_training_steps": num_training_steps, "num_warmup_steps": num_warmup_steps}
    check_lengths("a schedule with warm-up", **lengths)
    left = num_training_steps - num_warmup_steps
    return jnp.maximum(left, minimum) if isinstance(left, jax.Array) else max(left, minimum)
