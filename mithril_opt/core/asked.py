"""Functions that are asked about each leaf: `(path, leaf) -> …`."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax

from mithril_opt.core.tree import describe_leaf

T = TypeVar("T")


def asked(name: str, function: Callable[[str, Any], T], path: str, leaf: Any) -> T:
    """`function(path, leaf)`. Its errors get a note of what is called `name`, and with which arguments."""
    try:
        return function(path, leaf)
    except Exception as error:
        error.add_note(f"{name} is called with (path, leaf), here with {path!r} and {describe_leaf(leaf)}.")
        raise


def decides(name: str, function: Callable[[str, Any], Any], path: str, leaf: Any) -> bool:
    """Whether `function`, called `name`, takes the leaf at `path`, asked in the middle of a trace as well.

    Raises:
        TypeError: it looks at the values of the leaf, which are traced.
    """
    try:
        with jax.ensure_compile_time_eval():  # a boolean made by jax.numpy is no tracer then
            return asked(name, lambda path, leaf: bool(function(path, leaf)), path, leaf)
    except jax.errors.ConcretizationTypeError:
        raise TypeError(
            f"{name} looks at the values of {path!r} ({describe_leaf(leaf)}), which are traced; let it decide by the path, the "
            "shape and the dtype"
        ) from None
