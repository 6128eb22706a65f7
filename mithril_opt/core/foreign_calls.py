"""Calls written the way PyTorch's and optax's are: they get the line to write."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, ParamSpec, TypeVar

from mithril_opt.core.foreign_names import ADVICE, in_steps, ours
from mithril_opt.core.foreign_values import ANY_NUMBER, PARAMS, are_params, call, is_optimizer, own_arguments, written

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
Found = dict[str, dict[str, str] | None]


class Call(NamedTuple):
    """A call of the class `name`, whose arguments are `own`."""

    name: str
    own: Mapping[str, inspect.Parameter]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @property
    def unknown(self) -> dict[str, Any]:
        """The keywords that the class does not have."""
        return {key: value for key, value in self.kwargs.items() if key not in self.own}

    @property
    def free(self) -> list[str]:
        """The arguments that are not given."""
        return [key for key in [*self.own][len(self.args) :] if key not in self.kwargs]

    @property
    def holds_params(self) -> bool:
        """Whether the parameters stand in the place of the learning rate."""
        return bool(self.args) and next(iter(self.own)) == "learning_rate" and are_params(self.args[0])

    def with_named(self, new: Mapping[str, str]) -> str:
        """The line to write, with `new` for the keywords that are unknown."""
        known = {key: written(value) for key, value in self.kwargs.items() if key in self.own}
        return call(self.name, self.own, [*map(written, self.args)], known | {**new})

    def __str__(self) -> str:
        named = [f"{key}={written(value)}" for key, value in self.kwargs.items()]
        return f"{self.name}({', '.join([*map(written, self.args), *named])})"


def refuse_other_names(cls: type, args: tuple[Any, ...], kwargs: Mapping[str, Any], epochs: str = "") -> None:
    """Raise a TypeError with the line to write if `cls(*args, **kwargs)` has too many arguments by position, or keywords that
    are none of its own, but PyTorch's or optax's names for them, or misspelt.

    Args:
        epochs: what counts in epochs, for a class that counts in steps.
    """
    own = own_arguments(cls)
    if any(parameter.kind in ANY_NUMBER for parameter in own.values()):
        return
    given = Call(cls.__name__, own, args, kwargs)
    _refuse_surplus(given)
    if given.unknown:
        raise TypeError(_said_of_names(given, epochs))


def _refuse_surplus(given: Call) -> None:
    places = [key for key, parameter in given.own.items() if parameter.kind is not parameter.KEYWORD_ONLY]
    surplus, fitting = given.args[len(places) :], given._replace(args=given.args[: len(places)])
    if not surplus:
        return
    lines = [fitting.with_named({key: written(surplus[0])}) for key in fitting.free] if len(surplus) == 1 else []
    line = f". Write {' or '.join(lines)} instead of {given}" if lines else f", got {len(given.args)} arguments"
    raise TypeError(f"{given.name} takes only {', '.join(places)} by position{line}")


def _said_of_names(given: Call, epochs: str) -> str:
    fitting = given._replace(args=given.args[given.holds_params :])
    found = {key: ours(given.name, key, value, fitting.free) for key, value in given.unknown.items()} | _in_steps(fitting)
    unknown = [key for key, new in found.items() if new is None]
    advice = {key: text for key in unknown for needed, text in [ADVICE.get(key, ("", ""))] if needed in given.own}
    notes = [
        *([f"it takes {', '.join(given.own)}"] if unknown != [*advice] else []),
        *([PARAMS] if given.holds_params else []),
        *dict.fromkeys(advice.values()),
        *([epochs] if epochs and any(_is_in_epochs(given, key) for key in given.unknown) else []),
    ]
    new = {name: text for names in found.values() if names is not None for name, text in names.items()}
    line = f". Write {fitting.with_named(new)} instead of {given}" if len(unknown) < len(found) else ""
    return "; ".join([f"{given.name} has no argument {', '.join(map(repr, found))}", *notes]) + line


def _in_steps(given: Call) -> Found:
    """What to write for the numbers that are given in epochs."""
    each = written(given.kwargs["steps_per_epoch"]) if "steps_per_epoch" in given.unknown else "steps_per_epoch"
    names = {key: in_steps(given.name, key, given.free) for key in given.unknown if _is_in_epochs(given, key)}
    numbers = {key: name for key, name in names.items() if name and isinstance(given.kwargs[key], int | float)}
    found: Found = {key: {name: f"{written(given.kwargs[key])} * {each}"} for key, name in numbers.items()}
    return found | {"steps_per_epoch": {}} if found and each != "steps_per_epoch" else found


def _is_in_epochs(given: Call, key: str) -> bool:
    return "epoch" in key and key not in ("steps_per_epoch", "last_epoch") and not any("epoch" in name for name in given.own)


def refuse_optimizer(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], position: int = 0, takes_rate: bool = True
) -> None:
    """Raise a TypeError with the line to write if `function(*args, **kwargs)` was called the way PyTorch's schedulers are, with
    an optimizer among the arguments.

    Args:
        position: where the optimizer stands in such a call.
        takes_rate: whether we take there the rate, which PyTorch's scheduler finds in the optimizer.
    """
    if not any(is_optimizer(value) for value in (*args, *kwargs.values())):
        return
    positional = [written(value) for value in args if not is_optimizer(value)]
    named = {key: written(value) for key, value in kwargs.items() if key != "last_epoch" and not is_optimizer(value)}
    before, after = positional[:position], positional[position:]
    rate = ["0.001"] if takes_rate and "base_lr" not in named else []
    line = call(function.__name__, own_arguments(function), [*before, *rate, *after], named)
    theirs = ", ".join([*before, "optimizer", *after, *(f"{key}={value}" for key, value in named.items())])
    raise TypeError(
        f"{function.__name__} takes numbers, not an optimizer: the schedule is given to the optimizer. Write "
        f"Adam(learning_rate={line}) instead of {function.__name__}({theirs})"
    )


def no_optimizer(position: int = 0) -> Callable[[Callable[Arguments, Result]], Callable[Arguments, Result]]:
    """A decorator for functions that make a schedule: an optimizer at `position` gets the line to write."""

    def decorate(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        @functools.wraps(function)
        def checked(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
            refuse_optimizer(function, args, kwargs, position=position)
            return function(*args, **kwargs)

        return checked

    return decorate
