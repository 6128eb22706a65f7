"""Patterns: which leaves are meant, said by their paths."""

import fnmatch
import re
from collections.abc import Callable, Iterable
from types import EllipsisType
from typing import Any, TypeAlias

from mithril_opt.core.asked import decides
from mithril_opt.core.fields import shown
from mithril_opt.core.tree import listed

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


def unmatched(patterns: Iterable[Any], leaves: Iterable[tuple[str, Any]]) -> list[Any]:
    """The globs and regular expressions in lists of `patterns` that match none of `leaves`: perhaps misspelt."""
    leaves, inside = list(leaves), [one for pattern in patterns if isinstance(pattern, tuple) for one in _flat(pattern)]
    return [one for one in inside if not callable(one) and not any(_matches(one, path, leaf) for path, leaf in leaves)]


def no_leaf(patterns: list[Any]) -> tuple[str, ...]:
    """A warning of `unmatched` patterns, if there are any."""
    return (f"warning: no leaf matches {listed(map(repr, patterns))} in a list of patterns",) if patterns else ()


def _flat(pattern: Any) -> list[Any]:
    return [one for part in pattern for one in _flat(part)] if isinstance(pattern, tuple) else [pattern]


def _matches(pattern: Any, path: str, leaf: Any) -> bool:
    if isinstance(pattern, tuple):
        return any(_matches(one, path, leaf) for one in pattern)
    if isinstance(pattern, str):
        return fnmatch.fnmatchcase(path, pattern)
    return bool(pattern.search(path)) if isinstance(pattern, re.Pattern) else decides("a pattern", pattern, path, leaf)
