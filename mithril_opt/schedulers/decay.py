"""PyTorch's schedules that multiply the base rate by a factor of the step."""

import math
from typing import Any

import jax.numpy as jnp

from mithril_opt.core.fields import Factor, decay_rate, number, steps
from mithril_opt.core.pytree import pytree
from mithril_opt.core.schedule import Schedule
from mithril_opt.core.typing import Array, Scalar
from mithril_opt.schedulers.numerics import between, integer_power, ratio


@pytree
class StepLR(Schedule):
    """η(k) = base_lr · γ^⌊k / step_size⌋ (`torch.optim.lr_scheduler.StepLR`).

    Args:
        base_lr: the rate at the start.
        step_size: steps between two decays, ≥ 1.
        gamma: γ ≥ 0, the factor of one decay.

    Raises:
        ValueError: a Python number is out of its range.

    Example:
        >>> from mithril_opt import StepLR
        >>> StepLR(0.5, step_size=10, gamma=0.5)(19)
        Array(0.25, dtype=float32)
    """

    base_lr: Scalar = number(minimum=0)
    step_size: int | Array = steps()
    gamma: Factor = decay_rate(default=0.1, below=math.inf)

    def value(self, step: Array) -> Array:
        return integer_power(self.gamma, step // self.step_size, self.base_lr)


@pytree
class MultiStepLR(Schedule):
    """η(k) = base_lr · γ^n with n the number of milestones ≤ k (`torch.optim.lr_scheduler.MultiStepLR`).

    Args:
        base_lr: the rate before the first milestone.
        milestones: the steps at which the rate decays, increasing; one that stands twice counts twice.
        gamma: γ ≥ 0, the factor of one decay.

    Raises:
        ValueError: the milestones decrease, or a Python number is out of its range.

    Example:
        >>> from mithril_opt import MultiStepLR
        >>> MultiStepLR(1.0, milestones=[30, 80], gamma=0.5)([29, 30, 80])
        Array([1.  , 0.5 , 0.25], dtype=float32)
    """

    base_lr: Scalar = number(minimum=0)
    milestones: Any = steps(minimum=0, increasing=True)
    gamma: Factor = decay_rate(default=0.1, below=math.inf)

    def value(self, step: Array) -> Array:
        passed = sum((jnp.int32(step >= milestone) for milestone in self.milestones), start=jnp.zeros_like(step))
        return integer_power(self.gamma, passed, self.base_lr)


@pytree
class ExponentialLR(Schedule):
    """η(k) = base_lr · γᵏ (`torch.optim.lr_scheduler.ExponentialLR`).

    Args:
        base_lr: the rate at the start.
        gamma: γ ≥ 0, the factor of one step.

    Raises:
        ValueError: a Python number is out of its range.

    Example:
        >>> from mithril_opt import ExponentialLR
        >>> ExponentialLR(0.5, gamma=0.5)(2)
        Array(0.125, dtype=float32)
    """

    base_lr: Scalar = number(minimum=0)
    gamma: Factor = decay_rate(below=math.inf)

    def value(self, step: Array) -> Array:
        return integer_power(self.gamma, step, self.base_lr)


@pytree
class ConstantLR(Schedule):
    """η(k) = base_lr · factor for k < total_iters, then base_lr (`torch.optim.lr_scheduler.ConstantLR`).

    Args:
        base_lr: the rate from `total_iters` on.
        factor: the factor until then, in [0, 1].
        total_iters: number of steps with the factor, ≥ 0.

    Raises:
        ValueError: a Python number is out of its range.

    Example:
        >>> from mithril_opt import ConstantLR
        >>> ConstantLR(0.5, factor=0.5, total_iters=2)([0, 1, 2])
        Array([0.25, 0.25, 0.5 ], dtype=float32)
    """

    base_lr: Scalar = number(minimum=0)
    factor: Scalar = number(default=1 / 3, minimum=0, maximum=1)
    total_iters: int | Array = steps(default=5, minimum=0)

    def value(self, step: Array) -> Array:
        return self.base_lr * jnp.where(step < self.total_iters, self.factor, 1.0)


@pytree
class LinearLR(Schedule):
    """η(k) = base_lr · (s + (e − s) · min(k, n) / n) (`torch.optim.lr_scheduler.LinearLR`).

    Args:
        base_lr: the rate that the factors multiply.
        start_factor: s, the factor at k = 0, in [0, 1].
        end_factor: e, the factor from k = n on, in [0, 1].
        total_iters: n ≥ 0, in steps; with n = 0 the factor is e throughout.

    Raises:
        ValueError: a Python number is out of its range.

    Example:
        >>> from mithril_opt import LinearLR
        >>> LinearLR(1.0, start_factor=0.5, end_factor=0.0, total_iters=4)([0, 2, 4, 5])
        Array([0.5 , 0.25, 0.  , 0.  ], dtype=float32)
    """

    base_lr: Scalar = number(minimum=0)
    start_factor: Scalar = number(default=1 / 3, minimum=0, maximum=1)
    end_factor: Scalar = number(default=1.0, minimum=0, maximum=1)
    total_iters: int | Array = steps(default=5, minimum=0)

    def value(self, step: Array) -> Array:
        done = jnp.minimum(step, self.total_iters)
        return self.base_lr * between(self.start_factor, self.end_factor, done, self.total_iters - done)


@pytree
class PolynomialLR(Schedule):
    """η(k) = base_lr · (1 − min(k, n) / n)ᵖ (`torch.optim.lr_scheduler.PolynomialLR`).

    Args:
        base_lr: the rate at k = 0.
        total_iters: n ≥ 1, the steps until the rate is 0 and stays there.
        power: p ≥ 0.

    Raises:
        ValueError: a Python number is out of its range.

    Example:
        >>> from mithril_opt import PolynomialLR
        >>> PolynomialLR(1.0, total_iters=4, power=2.0)([0, 2, 4, 5])
        Array([1.  , 0.25, 0.  , 0.  ], dtype=float32)
    """

    base_lr: Scalar = number(minimum=0)
    total_iters: int | Array = steps(default=5)
    power: Scalar = number(default=1.0, minimum=0)

    def value(self, step: Array) -> Array:
        left = self.total_iters - jnp.minimum(step, self.total_iters)
        return self.base_lr * jnp.power(ratio(left, self.total_iters), self.power)


@pytree
class PolynomialDecayLR(Schedule):
    """η(k) = (base_lr − lr_end) · (1 − min(k, D) / D)ᵖ + lr_end: what `get_polynomial_decay_schedule_with_warmup` does after
    the warm-up. It stays at `lr_end`.

    Args:
        base_lr: the rate at k = 0.
        decay_steps: D ≥ 0, the steps from `base_lr` to `lr_end`; a warm-up before it does not count.
        lr_end: the rate from k = D on, below `base_lr`.
        power: p ≥ 0.

    Raises:
        ValueError: `lr_end` is not below `base_lr`, or a Python number is out of its range.

    Example:
        >>> from mithril_opt import PolynomialDecayLR
        >>> PolynomialDecayLR(1.0, decay_steps=4, lr_end=0.5, power=2.0)([0, 2, 4, 5])
        Array([1.   , 0.625, 0.5  , 0.5  ], dtype=float32)
    """

    base_lr: Scalar = number(minimum=0)
    decay_steps: int | Array = steps(minimum=0)
    lr_end: Scalar = number(default=1e-7, minimum=0)
    power: Scalar = number(default=1.0, minimum=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        known = isinstance(self.base_lr, float) and isinstance(self.lr_end, float)
        if known and self.lr_end >= self.base_lr:
            raise ValueError(f"PolynomialDecayLR: lr_end = {self.lr_end} must be below base_lr = {self.base_lr}")

    def value(self, step: Array) -> Array:
        left = self.decay_steps - jnp.minimum(step, self.decay_steps)
        factor = jnp.power(ratio(left, self.decay_steps), self.power)
        return self.base_lr * factor + self.lr_end * (1 - factor)
