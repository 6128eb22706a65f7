"""The state of an optimizer, and whether it belongs to the optimizer that is given it."""

import dataclasses
from typing import Any, NamedTuple

from mithril_opt._typing import Array, PyTree
from mithril_opt.schedulers.base import Schedule


class Window(NamedTuple):
    """A series of updates that are committed together.

    Attributes:
        closes: boolean scalar, whether the next update is the last of the series.
        verdict: int32 scalar, why an update of the series was skipped; 0 if none was.
    """

    closes: Array
    verdict: Array


class OptState(NamedTuple):
    """What the next update needs.

    Attributes:
        step: int32 scalar, the number of applied updates; it saturates.
        slots: what the rule keeps per parameter: a few trees shaped like the parameters, `slots.mu["decoder"]["w"]`.
        schedules: the memories of metric-driven schedules, by field name; usually empty.

    Example:
        >>> import jax.numpy as jnp
        >>> from mithril_opt import SGD
        >>> SGD(momentum=0.9).init({"w": jnp.ones(2)})
        OptState(step=Array(0, dtype=int32), slots=SGDSlots(trace={'w': Array([0., 0.], dtype=float32)}), schedules={})
    """

    step: Array
    slots: PyTree
    schedules: PyTree


def check_state(optimizer: Any, grads: PyTree, state: Any, kind: type = OptState) -> None:
    """Raise a ValueError unless `state` is a `kind` and the arguments are in order."""
    check_order(optimizer, grads, kind)
    if not isinstance(state, kind):
        raise ValueError(
            f"{type(optimizer).__name__}.update takes the state that init returned as its third argument, got "
            f"{type(state).__name__}"
        )


def check_order(optimizer: Any, grads: PyTree, kind: type = OptState) -> None:
    """Raise a ValueError if a state stands where the gradients should."""
    if isinstance(grads, kind):
        raise ValueError(
            f"{type(optimizer).__name__}.update takes (params, grads, state), but its second argument is a state: "
            "this looks like optax's order (grads, state, params)"
        )


def schedules_of(optimizer: Any) -> dict[str, Schedule]:
    """The schedules among the fields of `optimizer`, by field name."""
    values = {field.name: getattr(optimizer, field.name) for field in dataclasses.fields(optimizer)}
    return {name: value for name, value in values.items() if isinstance(value, Schedule)}


def fresh_memories(optimizer: Any) -> dict[str, PyTree]:
    """What the metric-driven schedules of `optimizer` remember before they have seen anything, by field name."""
    memories = {name: schedule.init() for name, schedule in schedules_of(optimizer).items()}
    return {name: memory for name, memory in memories.items() if memory is not None}


def check_memories(optimizer: Any, state: OptState) -> None:
    """Raise a ValueError if `state` remembers nothing for a schedule that follows a metric."""
    unknown = {name: schedule for name, schedule in schedules_of(optimizer).items() if name not in state.schedules}
    if missing := [name for name, schedule in unknown.items() if schedule.init() is not None]:
        raise ValueError(
            f"{type(optimizer).__name__}: the state remembers nothing for the metric-driven schedules {missing}; "
            "state._replace(schedules=optimizer.init(params).schedules) starts them afresh"
        )
