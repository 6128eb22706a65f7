"""What a schedule is.

A schedule is a value that maps a step count to a number: `schedule(step)`. It is a pytree like an optimizer, so it prints,
pickles, passes through `jax.jit` as an argument and can be swept with `jax.vmap`. It holds no clock: the optimizer's state
counts the applied updates and the schedule is asked for the value at that count.

A few schedules depend on more than the count: `ReduceLROnPlateau` follows a metric. Such a schedule has a *memory*, a small
pytree that lives in the optimizer's state. The protocol is three pure methods:

    memory = schedule.init()                          # None for a schedule of the count alone
    memory = schedule.observe(memory, metric, step)   # a new metric, seen at the count `step`
    value  = schedule.read(memory, step)              # the value at the count `step`

A schedule of the count alone defines `value` and inherits the rest. A schedule made of others defines `init`, `observe` and
`value_given`, and passes all three on.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np

from mithril_opt.core.decay_rate import DecayRate
from mithril_opt.core.fields import OF_A_SWEEP, shown, static
from mithril_opt.core.foreign_calls import refuse_optimizer, refuse_other_names
from mithril_opt.core.foreign_methods import OF_SCHEDULE, Elsewhere
from mithril_opt.core.foreign_values import hint_for_schedule
from mithril_opt.core.pytree import check_decorated, check_numbers, pytree
from mithril_opt.core.typing import Array, PyTree

MAX_STEP = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Schedule(Elsewhere):
    """A number as a function of the step count. Subclass it with `@pytree` and define `value`.

    Example:
        >>> from mithril_opt import Schedule, pytree
        >>> @pytree
        ... class InverseTime(Schedule):
        ...     base_lr: float
        ...     def value(self, step):
        ...         return self.base_lr / (1.0 + step.astype("float32"))
        >>> float(InverseTime(0.5)(4))
        0.10000000149011612
    """

    elsewhere: ClassVar[Mapping[str, str]] = OF_SCHEDULE

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        check_decorated(cls)
        # Before __init__, which would only complain about the number of arguments.
        names = {field.name for field in dataclasses.fields(cls)}
        refuse_optimizer(cls, args, kwargs, takes_rate="base_lr" in names and "max_lr" not in names)
        refuse_other_names(cls, args, kwargs, f"PerEpoch({cls.__name__}(...), steps_per_epoch=...) counts in epochs")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        check_numbers(self, schedules=False)

    def __call__(self, step: Any) -> Array:
        """The value at `step`, for a schedule that has observed nothing.

        Args:
            step: number of updates applied so far: a Python int, a NumPy integer, or an integer array of any shape, which
                may be traced. Negative steps count as 0.

        Returns:
            float32 of the shape of `step`.

        Raises:
            TypeError: `step` is not an integer.
        """
        return self.read(self.init(), as_step(step))

    def value(self, step: Array) -> Any:
        """The value at `step`, an int32 array of numbers ≥ 0: what a schedule of the count alone defines."""
        raise NotImplementedError(f"{type(self).__name__} does not define `value(step)`")

    @property
    def base_rate(self) -> Any:
        """The rate that this schedule is a multiple of; 1.0 for a bare factor."""
        return getattr(self, "base_lr", 1.0)

    def value_given(self, step: Array, memory: PyTree) -> Any:
        """The value at `step` given `memory`: what a schedule with a memory defines instead of `value`."""
        return self.value(step)

    def joints(self) -> list[tuple[float, float, float]]:
        """Where one piece hands over to the next: what it begins with, what it leads to, and what the next begins with."""
        return []

    def rises_again(self, steps: int) -> int:
        """How often in so many steps it rises again that is meant to fall once: 0 for one that is meant to rise and fall."""
        return 0

    def init(self) -> PyTree:
        """The memory of a schedule that has observed nothing; None for a schedule of the count alone."""
        return None

    def observe(self, memory: PyTree, metric: Any, step: Any) -> PyTree:
        """The memory after `metric` was seen, when `step` updates had been applied."""
        return memory

    def read(self, memory: PyTree, step: Array) -> Array:
        """The value at `step`, an int32 array of numbers ≥ 0, given `memory`: float32 of the shape of `step`."""
        try:
            with jax.numpy_dtype_promotion("standard"):  # a function of the user's may mix integers and floats
                value = self.value_given(step, memory)
        except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError) as error:
            raise TypeError(
                f"{shown(self)}: a function of the step is traced, so it must be made of jax.numpy operations, with jnp.cos "
                "for math.cos, jnp.minimum for min and jnp.where for if"
            ) from error
        if not isinstance(value, int | float | np.generic | np.ndarray | jax.Array):
            raise TypeError(f"{shown(self)} must return a number at every step, got {shown(value)}")
        numbers = jnp.asarray(value)
        if numbers.shape not in ((), step.shape):
            several = any(map(np.ndim, jax.tree.leaves(self)))
            who, hint = (type(self).__name__, f"; {OF_A_SWEEP}") if several else (shown(self), "")
            raise ValueError(f"{who} must return a scalar for a scalar step, got shape {numbers.shape} for {step.shape}{hint}")
        return jnp.broadcast_to(jax.lax.convert_element_type(numbers, jnp.float32), step.shape)

    def read_decay_rate(self, memory: PyTree, step: Array) -> DecayRate:
        """The same for a decay rate β: a schedule that knows 1 − β better than the float32 β tells defines this, too."""
        return DecayRate(self.read(memory, step))


@pytree
class Function(Schedule):
    """A plain function of the step as a schedule: what a function given as a learning rate becomes."""

    function: Any = static()

    def value(self, step: Array) -> Any:
        return self.function(step)

    def __repr__(self) -> str:
        return repr(self.function)


@pytree
class PytreeFunction(Schedule):
    """A callable pytree (`jax.tree_util.Partial`, say) as a schedule: its leaves pass through `jax.jit` as arguments."""

    function: Any

    def value(self, step: Array) -> Any:
        return self.function(step)


def as_schedule(value: Any) -> Any:
    """`value` as a schedule if it is a callable; as it is if it is a number, an array or already a schedule."""
    if isinstance(value, type):
        raise TypeError(f"a schedule must be made before it is used, got the class {value.__name__}")
    if isinstance(value, Schedule) or not callable(value):
        return value
    return Function(value) if jax.tree.structure(value) == jax.tree.structure(0.0) else PytreeFunction(value)


def require_schedule(owner: Any, value: Any, of_number: str = "lambda step: {}") -> Schedule:
    """`value` as a schedule; a TypeError that names `owner` if it is no callable, with the line `of_number` for a number."""
    value = as_schedule(value)
    if not isinstance(value, Schedule):
        name, hint = type(owner).__name__, hint_for_schedule(value, of_number)
        raise TypeError(f"{name} takes a schedule or a function of the step, got {shown(value)}{hint}")
    return value


def check_choice(owner: Any, field: str, accepted: tuple[str, ...]) -> None:
    """Raise a ValueError that lists what is accepted unless the string in `field` is among `accepted`."""
    value = getattr(owner, field)
    if value not in accepted:
        raise ValueError(f"{type(owner).__name__}: {field} must be one of {', '.join(map(repr, accepted))}, got {value!r}")


def as_step(step: Any) -> Array:
    """`step` as int32, negative numbers as 0 and larger ones than int32 holds as the largest."""
    if isinstance(step, int) and not isinstance(step, bool):
        return jnp.int32(min(max(step, 0), MAX_STEP))
    steps = step if isinstance(step, jax.Array) else np.asarray(step)
    if not jnp.issubdtype(steps.dtype, jnp.integer):
        raise TypeError(f"a schedule takes an integer step, got {step!r}")
    wide = steps.astype(np.int32) if steps.dtype.itemsize < 4 else steps  # MAX_STEP is no int8
    return jnp.asarray(wide.clip(0, MAX_STEP), jnp.int32)


def fresh_memories(optimizer: Any) -> dict[str, PyTree]:
    """What the metric-driven schedules of `optimizer` remember before they have seen anything, by field name."""
    memories = {name: schedule.init() for name, schedule in optimizer.schedules.items()}
    return {name: memory for name, memory in memories.items() if memory is not None}


def known_memories(optimizer: Any, memories: PyTree) -> PyTree:
    """`memories`, after checking that they hold something for each schedule that follows a metric."""
    fresh = fresh_memories(optimizer)
    if missing := sorted(fresh.keys() - memories.keys()):
        raise ValueError(
            f"{type(optimizer).__name__}: the state remembers nothing for the metric-driven schedules {missing}: another "
            "optimizer made it. state, report = migrate(state, that, params, this, params) starts them afresh"
        )
    for name, memory in fresh.items():
        if jax.tree.structure(memory) != jax.tree.structure(memories[name]):
            raise ValueError(
                f"{type(optimizer).__name__}: what the state remembers for {name} is another schedule's: "
                f"{type(memories[name]).__name__}, expected {type(memory).__name__}"
            )
    return memories
