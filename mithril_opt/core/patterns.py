"""Patterns: which leaves are meant, said by their paths."""

import fnmatch
import re
from collections.abc import Callable, Iterable
from types import EllipsisType
from typing import Any, TypeAlias

from mithril_opt.core.fields import shown

Pattern: TypeAlias = "str | re.Pattern[str] | Callable[[str, Any], bool] | EllipsisType | list[Pattern] | tuple[Pattern, ...]"


def checked(where: str, pattern: Any) -> Pattern:
    """`pattern` as it is kept, a list as a tuple; a TypeError that begins with `where` if it is none."""
    return pattern if pattern is ... else _checked(where, pattern)


def _checked(where: str, pattern: Any) -> Any:
    if isinstance(pattern, list | tuple) and pattern:
        return tuple(_checked(f"{where}[{i}]", one) for i, one in enumerate(pattern))
    if isinstance(pattern, str | re.Pattern) or callable(pattern):
        return pattern
    raise TypeError(
        f"{where} must be a glob, a compiled regular expression, a predicate (path, leaf) -> bool, a list of them or ..., "
        f"got {shown(pattern)}"
    )


def matching(patterns: Iterable[tuple[Any, Pattern]], path: str, leaf: Any) -> list[Any]:
    """The names of the patterns that take the leaf at `path`; of the rest, if no other does."""
    named = list(patterns)
    names = [name for name, pattern in named if pattern is not ... and _matches(pattern, path, leaf)]
    return names or [name for name, pattern in named if pattern is ...]


def _matches(pattern: Any, path: str, leaf: Any) -> bool:
    if isinstance(pattern, tuple):
        return any(_matches(one, path, leaf) for one in pattern)
    if isinstance(pattern, str):
        return fnmatch.fnmatchcase(path, pattern)
    return bool(pattern.search(path)) if isinstance(pattern, re.Pattern) else bool(pattern(path, leaf))
