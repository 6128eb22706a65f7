"""Which array of an old state each array of a new one goes on from, and why one does not."""

from collections.abc import Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mithril_opt.core.tree import describe_leaf, listed
from mithril_opt.tools.entries import CLOCK, Entry

NEW, UNKNOWN, GONE, UNUSED = (
    "a new parameter",
    "the old state has none",
    "no such parameter",
    "the new state has no place for it",
)
MOVED = "the parameters have other positions"


class Side(NamedTuple):
    """A state, old or new.

    Attributes:
        entries: its arrays.
        clock: the name of its outermost clock.
        shapes: by path, those of the parameters that train.
    """

    entries: list[Entry]
    clock: str
    shapes: dict[str, tuple[int, ...]]


class Match(NamedTuple):
    """What becomes of an array of the new state.

    Attributes:
        entry: the array as `init` made it.
        found: the arrays of the old state that it may go on from; if it does, they are equal.
        why: why it does not; None if it does.
        whole: whether all of it is kept.
    """

    entry: Entry
    found: tuple[Entry, ...]
    why: str | None
    whole: bool = True


class Matcher:
    """The old and the new state side by side.

    Args:
        old: the old state.
        new: the new one.
        names: the new path of each old one.
    """

    def __init__(self, old: Side, new: Side, names: dict[str, str]) -> None:
        self.old, self.new = old, new
        self.in_place = [names[path] for path in old.shapes] == [*new.shapes]
        self.origins = {name: path for path, name in names.items()}
        self.index = {(path, entry.meaning): entry for entry in old.entries for path in entry.paths}

    def matches(self) -> list[Match]:
        """One for each array of the new state."""
        slots = {entry.name: self._match(entry) for entry in self.new.entries if entry.rule is not None}
        moving = self._moving([*slots.values()])
        return [slots.get(entry.name) or self._match(entry, moving) for entry in self.new.entries]

    def _moving(self, slots: list[Match]) -> set[str]:
        """The parameters that go on: they were moved before, and do not start with all of their slots afresh."""
        kept = {match.entry.paths[0] for match in slots if match.why is None}
        fresh = {match.entry.paths[0] for match in slots} - kept
        return {path for path in self.new.shapes if (self.origins.get(path), CLOCK) in self.index} - fresh

    def _match(self, entry: Entry, moving: Collection[str] = ()) -> Match:
        found = self._sources(entry, [path for path in entry.paths if entry.meaning != CLOCK or path in moving])
        if entry.name == self.new.clock and not (found and _all_equal(found)):
            found = tuple(other for other in self.old.entries if other.name == self.old.clock)
        if not found or not _all_equal(found):
            new = entry.param is not None and entry.paths[0] not in self.origins
            several = f"its parameters come from groups that differ in it: {listed(other.name for other in found)}"
            return Match(entry, found, several if found else NEW if new else UNKNOWN)
        why = self._misfit(entry, found[0])
        return Match(entry, found, why, whole=np.shape(entry.leaf) == np.shape(found[0].leaf))

    def _sources(self, entry: Entry, paths: list[str]) -> tuple[Entry, ...]:
        """The arrays of the old state that `entry` may go on from."""
        found = [self.index.get((self.origins[path], entry.meaning)) for path in paths if path in self.origins]
        if not entry.paths:
            found = [other for other in self.old.entries if other.meaning == entry.meaning]
        return tuple({other.name: other for other in found if other is not None}.values())

    def _misfit(self, new: Entry, old: Entry) -> str | None:
        """Why `new` cannot go on from `old`; None if it can."""
        if new.name.endswith("bad_leaf") and not self.in_place:
            return MOVED
        if new.param is not None and np.shape(new.param) != np.shape(old.param):
            rigid = not all(rule is None or rule.resizable for rule in (new.rule, old.rule))
            misfit = rigid or _kind(new.leaf) != _kind(old.leaf) or not _overlaps(np.shape(new.leaf), np.shape(old.leaf))
            return f"the parameter was {describe_leaf(old.param)}, and is {describe_leaf(new.param)}" if misfit else None
        same = np.shape(new.leaf) == np.shape(old.leaf) and _kind(new.leaf) == _kind(old.leaf)
        return None if same else f"it was {describe_leaf(old.leaf)}, and is {describe_leaf(new.leaf)}"


def _overlaps(new: tuple[int, ...], old: tuple[int, ...]) -> bool:
    """Whether one shape is within the other: a transposed matrix is not."""
    if len(new) != len(old):
        return False
    pairs = [*zip(new, old, strict=True)]
    return all(n >= o for n, o in pairs) or all(n <= o for n, o in pairs)


def _kind(leaf: Any) -> Any:
    kinds = [kind for kind in (jnp.floating, jnp.complexfloating) if jnp.issubdtype(leaf.dtype, kind)]
    return kinds or leaf.dtype


def _all_equal(entries: tuple[Entry, ...]) -> bool:
    return all(_equal(entry.leaf, entries[0].leaf) for entry in entries)


def _equal(a: Any, b: Any) -> bool:
    """Whether two arrays are the same; of abstract ones, which nobody knows, whether they may be."""
    if a is b:
        return True
    if np.shape(a) != np.shape(b) or a.dtype != b.dtype:
        return False
    return any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in (a, b)) or bool(jnp.array_equal(a, b))
