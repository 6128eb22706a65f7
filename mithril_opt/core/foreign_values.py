"""Values of other libraries where a number or a schedule belongs: they get the line to write."""

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping, Set
from typing import Any

import jax

ANY_NUMBER = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
PARAMS = "an optimizer does not hold the parameters"


def hint_for_number(value: Any) -> str:
    """What to write for `value`, which stands where a number belongs, as the end of a message; nothing if nobody knows."""
    if is_scheduler(value):
        return f"; {_namesake(value)}"
    if isinstance(value, list | tuple) and all(isinstance(one, int | float) for one in value):
        return "; each number is an argument of its own, beta1=0.9, beta2=0.999"
    return f"; {PARAMS}" if are_params(value) else ""


def hint_for_schedule(value: Any, of_number: str) -> str:
    """The same of `value` where a schedule belongs.

    Args:
        of_number: the line for a number, with {} in its place.
    """
    if is_scheduler(value):
        return f"; {_namesake(value)}"
    return f"; write {of_number.format(value)}" if isinstance(value, int | float) and not isinstance(value, bool) else ""


def are_params(value: Any) -> bool:
    """Whether `value`, in the place of a number, is a tree of parameters or what `model.parameters()` returns."""
    return isinstance(value, dict | list | tuple | Iterator)


def is_optimizer(value: Any) -> bool:
    """Whether `value` is an optimizer of this library, of PyTorch or of optax."""
    return _has(value, "update") or (_has(value, "step") and not is_scheduler(value))


def is_scheduler(value: Any) -> bool:
    """Whether `value` is a scheduler of PyTorch or like one: it makes steps, but has no gradients and no parameters."""
    others = ("update", "zero_grad", "param_groups")
    return _has(value, "step") and not any(hasattr(value, name) for name in others)


def _has(value: Any, method: str) -> bool:
    if callable(value) or isinstance(value, jax.Array | Mapping | Set):  # if these have an `update`, it is something else
        return False
    return callable(getattr(value, method, None))


def _namesake(scheduler: Any) -> str:
    """What to write for a scheduler of PyTorch."""
    from mithril_opt.core.schedule import Schedule  # which is made of what is checked here

    ours = {cls.__name__: cls for cls in Schedule.__subclasses__()}.get(type(scheduler).__name__)
    has = "schedules of the same names" if ours is None else "a schedule of that name"
    example = "StepLR(0.1, step_size=30)" if ours is None else call(ours.__name__, own_arguments(ours), [], {})
    return f"this looks like PyTorch's scheduler; mithril_opt has {has}, with the base rate for the optimizer: {example}"


def own_arguments(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The parameters of `function`, or those with which the class `function` is called."""
    parameters = [*inspect.signature(function.__init__ if isinstance(function, type) else function).parameters.items()]
    return dict(parameters[1:] if isinstance(function, type) else parameters)


def call(name: str, own: Mapping[str, inspect.Parameter], positional: list[str], named: Mapping[str, str]) -> str:
    """A call of the function `name`, whose parameters are `own`: those given in their order, and `...` for what is missing."""
    rest = [parameter for parameter in [*own.values()][len(positional) :] if parameter.kind not in ANY_NUMBER]
    missing = {parameter.name: "..." for parameter in rest if parameter.default is parameter.empty}
    order = {parameter.name: place for place, parameter in enumerate(rest)}
    keywords = sorted((missing | {**named}).items(), key=lambda one: order.get(one[0], len(order)))
    return f"{name}({', '.join([*positional, *(f'{key}={value}' for key, value in keywords)])})"


def written(value: Any) -> str:
    """An argument as one would write it; what is long or has no name as `...`."""
    if isinstance(value, list):
        return f"[{', '.join(map(written, value))}]"
    if isinstance(value, tuple):
        return f"({', '.join(map(written, value))})"
    if dataclasses.is_dataclass(value):  # a schedule
        return f"{type(value).__name__}(...)"
    if isinstance(value, bool | int | float | str | None):
        return repr(value)
    name = getattr(value, "__name__", "")
    return name if name.isidentifier() else "..."
