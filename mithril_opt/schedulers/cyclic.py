"""Schedules that rise and fall, with the momentum cycles that go with them."""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp

from mithril_opt.core.decay_rate import DecayRate
from mithril_opt.core.fields import Factor, decay_rate, number, static, steps
from mithril_opt.core.numerics import scalar_f32
from mithril_opt.core.pytree import pytree
from mithril_opt.core.schedule import Schedule, check_choice
from mithril_opt.core.typing import Array, Scalar
from mithril_opt.schedulers.numerics import LARGEST, between, half_wave, integer_power


@pytree
class CyclicLR(Schedule):
    """η(k) = base_lr + (max_lr − base_lr) · a · f (Smith 2017; `torch.optim.lr_scheduler.CyclicLR`).

    a rises from 0 to 1 in `step_size_up` steps and falls back in `step_size_down`. With c = 1, 2, … the number of the cycle:

        triangular     f = 1
        triangular2    f = 2^−(c − 1)
        exp_range      f = γᵏ

    Args:
        base_lr: the rate at the ends of every cycle.
        max_lr: the rate at the peak of the first cycle.
        step_size_up: steps of the rise, ≥ 1.
        step_size_down: steps of the fall, ≥ 0; as many as of the rise if not given.
        mode: "triangular", "triangular2" or "exp_range".
        gamma: γ ≥ 0, for "exp_range".

    Raises:
        ValueError: another mode, or a Python number is out of its range.

    Example:
        >>> from mithril_opt import CyclicLR
        >>> CyclicLR(0.5, 1.0, step_size_up=2, step_size_down=4)([0, 1, 2, 4, 6])
        Array([0.5 , 0.75, 1.  , 0.75, 0.5 ], dtype=float32)
    """

    base_lr: Scalar = number(minimum=0)
    max_lr: Scalar = number(minimum=0)
    step_size_up: int | Array = steps(default=2000)
    step_size_down: int | Array | None = steps(default=None, minimum=0, optional=True)
    mode: str = static(default="triangular")
    gamma: Factor = decay_rate(default=1.0, below=math.inf)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self, "mode", ("triangular", "triangular2", "exp_range"))
        if isinstance(self._length, int) and self._length >= 2**31:
            raise ValueError(f"CyclicLR: a cycle must be shorter than 2³¹ steps, got {self._length}")

    @property
    def _length(self) -> Any:
        return self.step_size_up + (self.step_size_up if self.step_size_down is None else self.step_size_down)

    def value(self, step: Array) -> Array:
        up, length = self.step_size_up, self._length
        cycle, place = jnp.divmod(step, length)
        done = jnp.where(place < up, place, length - place)
        left = jnp.where(place < up, up - place, place - up)
        return between(self.base_lr, self._peak(step, cycle), done, left)

    def _peak(self, step: Array, cycle: Array) -> Any:
        """The rate at which the cycle would peak, base_lr (1 − f) + max_lr f: the first part is no difference of rates."""
        if self.mode == "triangular":
            return self.max_lr
        factor, n = (DecayRate(0.5), cycle) if self.mode == "triangular2" else (self.gamma, step)
        grows, (value, rest) = factor.complement < 0, factor.parts()
        falling = DecayRate(jnp.where(grows, 1, value), jnp.where(grows, 0, rest)).one_minus_power(n.astype(jnp.float32))
        peak = self.base_lr * jnp.where(n == 0, 0, falling) + integer_power(factor, n, self.max_lr)
        height = scalar_f32(self.max_lr - self.base_lr)
        grown = self.base_lr + jnp.sign(height) * integer_power(factor, n, jnp.abs(height))
        return jnp.where(grows, jnp.clip(grown, -LARGEST, LARGEST), peak)

    def momentum_schedule(self, base_momentum: Scalar = 0.8, max_momentum: Scalar = 0.9) -> "CyclicLR":
        """The momentum that falls while the rate rises: a schedule for `momentum` or `beta1` with the same cycles.

        Args:
            base_momentum: the momentum at the peak of the first cycle.
            max_momentum: the momentum at the ends of every cycle.

        Raises:
            ValueError: a momentum is a Python number outside [0, 1].

        Example:
            >>> from mithril_opt import SGD, CyclicLR
            >>> schedule = CyclicLR(0.5, 1.0, step_size_up=4)
            >>> optimizer = SGD(learning_rate=schedule, momentum=schedule.momentum_schedule())
            >>> float(optimizer.at(4).momentum)
            0.800000011920929
        """
        for name, momentum in {"base_momentum": base_momentum, "max_momentum": max_momentum}.items():
            if isinstance(momentum, int | float) and not 0 <= momentum <= 1:
                raise ValueError(f"CyclicLR: {name} must be a number in [0, 1], got {momentum!r}")
        return dataclasses.replace(self, base_lr=max_momentum, max_lr=base_momentum)


@pytree
class OneCycleLR(Schedule):
    """From max_lr / 25 up to `max_lr` and down to almost nothing (Smith & Topin 2018; `torch.optim.lr_scheduler.OneCycleLR`).

        initial_lr = max_lr / div_factor        min_lr = initial_lr / final_div_factor

        two phases      initial_lr → max_lr → min_lr                 at k = 0, b, T − 1             b = pct_start · T − 1
        three phases    initial_lr → max_lr → initial_lr → min_lr    at k = 0, b, 2b, T − 1

    It stays at `min_lr` from the last step on, T − 1, where PyTorch's raises an error.

    Args:
        max_lr: the rate at the peak.
        total_steps: T ≥ 1, the number of updates.
        pct_start: the part of the steps in which the rate rises, in [0, 1]; b need not be an integer.
        anneal_strategy: "cos" or "linear".
        div_factor: max_lr / initial_lr, > 0.
        final_div_factor: initial_lr / min_lr, > 0.
        three_phase: whether to fall to `initial_lr` as fast as the rate rose, and only then to `min_lr`.

    Raises:
        ValueError: another strategy, or a Python number is out of its range.

    Example:
        >>> from mithril_opt import OneCycleLR
        >>> OneCycleLR(1.0, total_steps=11, pct_start=0.5, div_factor=4.0, anneal_strategy="linear")([0, 10])
        Array([2.5e-01, 2.5e-05], dtype=float32)
    """

    max_lr: Scalar = number(minimum=0)
    total_steps: int | Array = steps()
    pct_start: Scalar = number(default=0.3, minimum=0, maximum=1)
    anneal_strategy: str = static(default="cos")
    div_factor: Scalar = number(default=25.0, above=0)
    final_div_factor: Scalar = number(default=1e4, above=0)
    three_phase: bool = static(default=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self, "anneal_strategy", ("cos", "linear"))

    @property
    def base_rate(self) -> Any:
        return self.max_lr

    def value(self, step: Array) -> Array:
        initial = self.max_lr / self.div_factor
        return self.along(step, initial, self.max_lr, initial / self.final_div_factor)

    def along(self, step: Array, initial: Scalar, peak: Scalar, final: Scalar) -> Array:
        step = jnp.minimum(step, self.total_steps - 1)
        whole, rest = _whole_and_rest(self.pct_start * self.total_steps)
        before_peak = whole - 1 - step
        to_peak = scalar_f32(before_peak) + rest  # b − k, with the integers subtracted first
        to_end = scalar_f32(self.total_steps - 1 - step)
        fall = self._leg(peak, final, -to_peak, to_end)
        if self.three_phase:
            to_valley = scalar_f32(before_peak + (whole - 1)) + 2 * rest
            last = self._leg(initial, final, -to_valley, to_end)
            fall = jnp.where(to_valley >= 0, self._leg(peak, initial, -to_peak, to_valley), last)
        return jnp.where(to_peak >= 0, self._leg(initial, peak, scalar_f32(step), to_peak), fall)

    def _leg(self, start: Scalar, end: Scalar, done: Array, left: Array) -> Array:
        done, left = jnp.maximum(done, 0.0), jnp.maximum(left, 0.0)
        weight = {"cos": half_wave, "linear": lambda fraction: fraction}[self.anneal_strategy]
        return between(start, end, done, left, weight)

    def momentum_schedule(self, base_momentum: Scalar = 0.85, max_momentum: Scalar = 0.95) -> "OneCycleMomentum":
        """The momentum that falls while the rate rises: a schedule for `momentum` or `beta1` with the same phases.

        Args:
            base_momentum: the momentum at the peak of the rate.
            max_momentum: the momentum at both ends.

        Raises:
            ValueError: a momentum is a Python number outside [0, 1].

        Example:
            >>> from mithril_opt import Adam, OneCycleLR
            >>> schedule = OneCycleLR(1.0, total_steps=10)
            >>> optimizer = Adam(learning_rate=schedule, beta1=schedule.momentum_schedule())
            >>> float(optimizer.at(2).beta1)
            0.8500000238418579
        """
        return OneCycleMomentum(self, base_momentum, max_momentum)


@pytree
class OneCycleMomentum(Schedule):
    """max_momentum → base_momentum → max_momentum in the phases of a `OneCycleLR`: what its `momentum_schedule` returns.

    Args:
        cycle: the `OneCycleLR` whose phases it follows.
        base_momentum: the momentum at the peak of the rate, in [0, 1].
        max_momentum: the momentum at both ends, in [0, 1].

    Raises:
        ValueError: a Python number is out of its range.
        TypeError: `cycle` is something else.

    Example:
        >>> from mithril_opt import OneCycleLR, OneCycleMomentum
        >>> OneCycleMomentum(OneCycleLR(1.0, total_steps=10), base_momentum=0.5, max_momentum=0.75)([0, 2, 9])
        Array([0.75, 0.5 , 0.75], dtype=float32)
    """

    cycle: OneCycleLR
    base_momentum: Scalar = number(default=0.85, minimum=0, maximum=1)
    max_momentum: Scalar = number(default=0.95, minimum=0, maximum=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.cycle, OneCycleLR):
            raise TypeError(f"OneCycleMomentum: cycle must be a OneCycleLR, got {self.cycle!r}")

    def value(self, step: Array) -> Array:
        return self.cycle.along(step, self.max_momentum, self.base_momentum, self.max_momentum)


def _whole_and_rest(x: Any) -> tuple[Any, Any]:
    """`x` as an integer and what is left of it: in float64 where x is a Python number."""
    whole = math.floor(x) if isinstance(x, float) else jnp.int32(jnp.floor(x))
    return whole, x - whole
