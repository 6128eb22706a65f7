"""Old paths and what they are called now."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

from mithril_opt.core.fields import shown
from mithril_opt.core.tree import listed

Rename: TypeAlias = Mapping[str, str] | Callable[[str], str] | None


def renamed(rename: Rename, paths: Iterable[str]) -> dict[str, str]:
    """The new path of each of `paths`.

    Raises:
        ValueError: a pattern fits no path or has not the stars of its new name, or two paths get the same name.
        TypeError: `rename` is neither a function from path to path nor a dictionary of such.
    """
    paths = list(paths)
    new = dict(zip(paths, _new_paths(rename, paths), strict=True))
    if wrong := [path for path in paths if not isinstance(new[path], str)]:
        raise TypeError(f"rename must turn {wrong[0]!r} into a path, got {shown(new[wrong[0]])}")
    counts = Counter(new.values())
    if twice := [name for name in counts if counts[name] > 1]:
        raise ValueError(f"rename turns {listed(path for path in paths if new[path] == twice[0])} into {twice[0]!r}")
    return new


def _new_paths(rename: Any, paths: list[str]) -> list[Any]:
    if rename is None:
        return paths
    if isinstance(rename, Mapping):
        patterns = [_pattern(old, new) for old, new in rename.items()]
        if idle := [old for old, (fits, _) in zip(rename, patterns, strict=True) if not any(map(fits, paths))]:
            raise ValueError(f"rename: {idle[0]!r} fits none of the old paths, {listed(paths)}")
        return [_first(patterns, path) for path in paths]
    if callable(rename):
        return [rename(path) for path in paths]
    raise TypeError(f"rename must be a function or a dictionary of paths, got {shown(rename)}")


def _pattern(old: Any, new: Any) -> tuple[Callable[[str], Any], str]:
    """What matches a path that `old` fits, and the new path with a place for each star."""
    if not (isinstance(old, str) and isinstance(new, str)):
        raise TypeError(f"rename must hold paths, got {shown(old)}: {shown(new)}")
    if old.count("*") != new.count("*"):
        raise ValueError(f"rename: {old!r} and {new!r} must have as many stars")
    return re.compile("(.*)".join(map(re.escape, old.split("*")))).fullmatch, new


def _first(patterns: list[tuple[Callable[[str], Any], str]], path: str) -> str:
    """What the first of `patterns` that fits makes of `path`."""
    for fits, new in patterns:
        if found := fits(path):
            parts = zip(new.split("*"), (*found.groups(), ""), strict=True)
            return "".join(text for part in parts for text in part)
    return path
