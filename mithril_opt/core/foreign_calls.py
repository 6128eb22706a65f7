"""Calls written the way PyTorch's and optax's are: they get the line to write."""

import dataclasses
import difflib
import functools
import inspect
from collections.abc import Callable, Collection, Iterable, Mapping, Set
from typing import Any, ParamSpec, TypeVar

import jax

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

# What others call the arguments of an optimizer, a schedule or a wrapper, and what they may be called here.
NAMES = {
    "lr": ("learning_rate", "base_lr", "max_lr"),
    "learning_rate": ("base_lr", "max_lr"),
    "b1": ("beta1",),
    "b2": ("beta2",),
    "eps": ("epsilon",),
    "alpha": ("decay",),
    "wd": ("weight_decay",),
    "mask": ("decay_mask",),
    "max_norm": ("clip_norm",),
    "every_k_schedule": ("every",),
}
BETAS = ("beta1", "beta2", "beta3")


def refuse_other_names(cls: type, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Raise a TypeError with the line to write if keywords of `cls(*args, **kwargs)` are none of its own, but PyTorch's or
    optax's names for them, or misspelt."""
    own = inspect.signature(cls.__init__).parameters
    unknown = [key for key in kwargs if key not in own]
    if not unknown or any(parameter.kind is parameter.VAR_KEYWORD for parameter in own.values()):
        return
    name, ours = cls.__name__, [*own][1:]
    renamed = {new: value for key, given in kwargs.items() for new, value in _renamed(key, given, ours)}
    known = {key: value for key, value in renamed.items() if key in ours}
    rest = [key for key in renamed if key not in ours]
    takes = f"; it takes {', '.join(ours)}" if rest else ""
    line = f". Write {_call(name, args, known)} instead of {_call(name, args, kwargs)}" if rest != unknown else ""
    raise TypeError(f"{name} has no argument {', '.join(map(repr, unknown))}{takes}{line}")


def _renamed(key: str, value: Any, ours: Collection[str]) -> Iterable[tuple[str, Any]]:
    if key == "betas" and key not in ours and isinstance(value, tuple | list):
        return zip(BETAS, value, strict=False)
    likely = [key, *NAMES.get(key, ()), *difflib.get_close_matches(key, ours, 1)]
    return [(next((name for name in likely if name in ours), key), value)]


def _call(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    return f"{name}({', '.join([*map(_shown, args), *(f'{key}={_shown(value)}' for key, value in kwargs.items())])})"


def refuse_optimizer(
    name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, position: int = 0, takes_rate: bool = True
) -> None:
    """Raise a TypeError with the line to write if `name(*args, **kwargs)` was called the way PyTorch's schedulers are, with an
    optimizer among the arguments.

    Args:
        position: where the optimizer stands in such a call.
        takes_rate: whether we take there the rate, which PyTorch's scheduler finds in the optimizer.
    """
    if not any(_is_optimizer(value) for value in (*args, *kwargs.values())):
        return
    positional = [_shown(value) for value in args if not _is_optimizer(value)]
    named = {key: _shown(value) for key, value in kwargs.items() if key != "last_epoch" and not _is_optimizer(value)}
    before = ", ".join(positional[:position])
    after = ", ".join([*positional[position:], *(f"{key}={value}" for key, value in named.items())])
    ours = [before, "0.001" if takes_rate and "base_lr" not in named else "", after]
    raise TypeError(
        f"{name} takes numbers, not an optimizer: the schedule is given to the optimizer. Write "
        f"Adam(learning_rate={name}({', '.join(filter(None, ours))})) instead of "
        f"{name}({', '.join(filter(None, [before, 'optimizer', after]))})"
    )


def _is_optimizer(value: Any) -> bool:
    """Whether `value` is an optimizer of this library, of PyTorch or of optax: it has a method `update` or `step`."""
    if callable(value) or isinstance(value, jax.Array | Mapping | Set):  # if these have an `update`, it is something else
        return False
    return callable(getattr(value, "update", None)) or callable(getattr(value, "step", None))


def no_optimizer(position: int = 0) -> Callable[[Callable[Arguments, Result]], Callable[Arguments, Result]]:
    """A decorator for functions that make a schedule: an optimizer at `position` gets the line to write."""

    def decorate(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        @functools.wraps(function)
        def checked(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
            refuse_optimizer(function.__name__, args, kwargs, position=position)
            return function(*args, **kwargs)

        return checked

    return decorate


def _shown(value: Any) -> str:
    """An argument as one would write it; what is long or has no name as `...`."""
    if isinstance(value, list):
        return f"[{', '.join(map(_shown, value))}]"
    if isinstance(value, tuple):
        return f"({', '.join(map(_shown, value))})"
    if dataclasses.is_dataclass(value):  # a schedule
        return f"{type(value).__name__}(...)"
    if isinstance(value, bool | int | float | str | None):
        return repr(value)
    name = getattr(value, "__name__", "")
    return name if name.isidentifier() else "..."
