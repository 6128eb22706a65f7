"""Schedules made of other schedules."""

import functools
from typing import Any

import jax.numpy as jnp

from mithril_opt.core.fields import steps
from mithril_opt.core.pytree import pytree, set_field
from mithril_opt.core.schedule import Schedule, require_schedule
from mithril_opt.core.tree import select
from mithril_opt.core.typing import Array, PyTree
from mithril_opt.schedulers.numerics import LARGEST


@pytree
class SequentialLR(Schedule):
    """One schedule after another (`torch.optim.lr_scheduler.SequentialLR`).

    At k = milestones[i] the schedule i + 1 takes over, on a clock of its own that starts at 0 there. Metrics reach it from then
    on, so that a `ReduceLROnPlateau` may be one of them.

    Args:
        schedulers: the schedules, or functions of the step, in their order.
        milestones: the steps at which the next one takes over, strictly increasing; one fewer than schedules.

    Raises:
        ValueError: the numbers of schedules and milestones do not fit, or the milestones do not increase.
        TypeError: something among `schedulers` is no schedule.

    Example:
        >>> from mithril_opt import ConstantLR, ExponentialLR, SequentialLR
        >>> SequentialLR([ConstantLR(1.0, factor=0.5), ExponentialLR(1.0, gamma=0.5)], milestones=[2])([0, 1, 2, 3])
        Array([0.5, 0.5, 1. , 0.5], dtype=float32)
    """

    schedulers: Any
    milestones: Any = steps(minimum=0, increasing=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        _set_schedulers(self)
        pieces, milestones = len(self.schedulers), self.milestones
        if len(milestones) != pieces - 1:
            raise ValueError(
                f"SequentialLR: needs one milestone fewer than schedules, got {list(milestones)} for {pieces} schedules"
            )
        known = [milestone for milestone in milestones if isinstance(milestone, int)]
        if len(set(known)) != len(known):
            raise ValueError(f"SequentialLR: milestones must be strictly increasing, got {list(milestones)}")

    @property
    def base_rate(self) -> Any:
        return next(iter(_base_rates(self.schedulers)), 1.0)

    def joints(self) -> list[tuple[float, float, float]]:
        pieces = zip(self.schedulers, self.schedulers[1:], self._starts(), self.milestones, strict=False)
        return [(float(one(0)), float(one(end - start)), float(next_(0))) for one, next_, start, end in pieces]

    def rises_again(self, steps: int) -> int:
        pieces = zip(self.schedulers, self._starts(), (*self.milestones, steps), strict=True)
        return sum(one.rises_again(min(steps, int(end)) - int(start)) for one, start, end in pieces)

    def init(self) -> PyTree:
        return _memories(self.schedulers)

    def observe(self, memory: PyTree, metric: Any, step: Any) -> PyTree:
        if memory is None:
            return None
        return tuple(
            select(step >= start, schedule.observe(own, metric, jnp.maximum(step - start, 0)), own)
            for schedule, own, start in zip(self.schedulers, memory, self._starts(), strict=True)
        )

    def value_given(self, step: Array, memory: PyTree) -> Array:
        memories = memory or (None,) * len(self.schedulers)
        pieces = zip(self.schedulers, memories, self._starts(), strict=True)
        value, *others = [schedule.read(own, jnp.maximum(step - start, 0)) for schedule, own, start in pieces]
        for milestone, following in zip(self.milestones, others, strict=True):
            value = jnp.where(step < milestone, value, following)
        return value

    def _starts(self) -> tuple[Any, ...]:
        return (0, *self.milestones)


@pytree
class ChainedScheduler(Schedule):
    """η(k) = s₁(k) · s₂(k) ⋯: the product of schedules on one clock (`torch.optim.lr_scheduler.ChainedScheduler`).

    The base rate appears once: the other schedules are factors, with `base_lr=1.0`. (PyTorch's schedulers find it in the
    optimizer; there, schedulers that set the rate, such as `LambdaLR` or `OneCycleLR`, overwrite what came before them.) A
    metric reaches every schedule.

    Args:
        schedulers: the schedules, or functions of the step.

    Raises:
        ValueError: there are none, or two with a base rate other than 1.
        TypeError: something among `schedulers` is no schedule.

    Example:
        >>> from mithril_opt import ChainedScheduler, ConstantLR, ExponentialLR
        >>> ChainedScheduler([ConstantLR(0.5, factor=0.5, total_iters=2), ExponentialLR(1.0, gamma=0.5)])([0, 1, 2])
        Array([0.25 , 0.125, 0.125], dtype=float32)
    """

    schedulers: Any

    def __post_init__(self) -> None:
        super().__post_init__()
        _set_schedulers(self)
        rates = _base_rates(self.schedulers)
        if len(rates) > 1:
            raise ValueError(
                f"ChainedScheduler multiplies its schedules, so the base rate must appear in one of them and the others need "
                f"base_lr=1.0; got the base rates {rates}"
            )

    @property
    def base_rate(self) -> Any:
        return next(iter(_base_rates(self.schedulers)), 1.0)

    def rises_again(self, steps: int) -> int:
        return max(schedule.rises_again(steps) for schedule in self.schedulers)

    def init(self) -> PyTree:
        return _memories(self.schedulers)

    def observe(self, memory: PyTree, metric: Any, step: Any) -> PyTree:
        if memory is None:
            return None
        return tuple(s.observe(own, metric, step) for s, own in zip(self.schedulers, memory, strict=True))

    def value_given(self, step: Array, memory: PyTree) -> Array:
        memories = memory or (None,) * len(self.schedulers)
        factors = [schedule.read(own, step) for schedule, own in zip(self.schedulers, memories, strict=True)]
        return functools.reduce(lambda product, factor: jnp.clip(product * factor, -LARGEST, LARGEST), factors)


@pytree
class PerEpoch(Schedule):
    """η(k) = schedule(⌊k / n⌋): a schedule written in epochs, driven by the step counter.

    Args:
        schedule: a schedule, or a function of the epoch.
        steps_per_epoch: n ≥ 1, the number of updates in an epoch.

    Raises:
        ValueError: a Python number is out of its range.
        TypeError: `schedule` is no schedule.

    Example:
        >>> from mithril_opt import PerEpoch, StepLR
        >>> PerEpoch(StepLR(0.5, step_size=1, gamma=0.5), steps_per_epoch=100)([99, 100])
        Array([0.5 , 0.25], dtype=float32)
    """

    schedule: Any
    steps_per_epoch: int | Array = steps()

    def __post_init__(self) -> None:
        super().__post_init__()
        set_field(self, "schedule", require_schedule(self, self.schedule))

    @property
    def base_rate(self) -> Any:
        return self.schedule.base_rate

    def rises_again(self, steps: int) -> int:
        return self.schedule.rises_again(-(-steps // int(self.steps_per_epoch)))

    def init(self) -> PyTree:
        return self.schedule.init()

    def observe(self, memory: PyTree, metric: Any, step: Any) -> PyTree:
        return self.schedule.observe(memory, metric, step // self.steps_per_epoch)

    def value_given(self, step: Array, memory: PyTree) -> Array:
        return self.schedule.read(memory, step // self.steps_per_epoch)


def _set_schedulers(owner: Any) -> None:
    """The schedules of `owner` as a tuple; a ValueError if there are none."""
    schedulers = owner.schedulers
    if not isinstance(schedulers, list | tuple):
        raise TypeError(f"{type(owner).__name__}: schedulers must be a list of schedules, got {schedulers!r}")
    if not schedulers:
        raise ValueError(f"{type(owner).__name__}: schedulers must hold one schedule at least")
    set_field(owner, "schedulers", tuple(require_schedule(owner, schedule) for schedule in schedulers))


def _base_rates(schedulers: Any) -> list[float]:
    """The base rates other than 1 among `schedulers`, as far as they are known."""
    return [s.base_rate for s in schedulers if isinstance(s.base_rate, float) and s.base_rate != 1]


def _memories(schedulers: tuple[Schedule, ...]) -> PyTree:
    """The memories of `schedulers`, or None if none of them has one."""
    memories = tuple(schedule.init() for schedule in schedulers)
    return None if all(memory is None for memory in memories) else memories
