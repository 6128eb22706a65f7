"""A run that goes on with other parameters, or with another optimizer: the state is carried over by name."""

from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mithril_opt.core.optimizer import Optimizer
from mithril_opt.core.slots import foreign
from mithril_opt.core.table import Table
from mithril_opt.core.tree import describe_leaf, leaves_with_paths, listed, trained
from mithril_opt.core.typing import PyTree
from mithril_opt.interop.state_dict import placed
from mithril_opt.mixed_precision.trainer import MixedPrecisionTrainer
from mithril_opt.tools.entries import CLOCK, Entry, entries_of, outer_clock, trained_state
from mithril_opt.tools.matches import GONE, MOVED, UNUSED, Match, Matcher, Side
from mithril_opt.tools.renames import Rename, renamed


class MigrationReport(NamedTuple):
    """What `migrate` did with each array of the old and of the new state. It prints as a table.

    Attributes:
        kept: by its name in the new state, as `to_state_dict` has it, the name in the old state of each array that is the same.
        resized: the same of those of which only a part was kept, because their parameters have another shape.
        fresh: the names in the new state of the arrays that start as `init` made them, each with the reason.
        dropped: the names in the old state of the arrays that are gone, each with the reason. Which leaf last had a bad
            gradient is a position, which means nothing among other leaves: it is fresh, and not listed here.
        notes: what to know before training goes on.

    Example:
        >>> import jax.numpy as jnp
        >>> from mithril_opt import SGD, migrate
        >>> optimizer, params = SGD(momentum=0.9), {"w": jnp.ones(2)}
        >>> _, report = migrate(optimizer.init(params), optimizer, params, SGD(), params)
        >>> report.kept, report.dropped
        ({'step': 'step'}, {'slots/trace/w': 'the new state has no place for it'})
    """

    kept: dict[str, str]
    resized: dict[str, str]
    fresh: dict[str, str]
    dropped: dict[str, str]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        rows = [
            *_rows("kept", {new: "" for new, old in self.kept.items() if new == old}),
            *_rows("kept", {f"{new} ← {old}": "under another name" for new, old in self.kept.items() if new != old}),
            *_rows("resized", dict.fromkeys(self.resized, "kept where the shapes overlap")),
            *_rows("fresh", self.fresh),
            *_rows("dropped", self.dropped),
        ]
        return str(Table(("outcome", "arrays", "names", "why"), tuple(rows), self.notes))

    __repr__ = __str__


def migrate(
    state: PyTree, optimizer: Any, params: PyTree, new_optimizer: Any, new_params: PyTree, rename: Rename = None
) -> tuple[PyTree, MigrationReport]:
    """The state with which `new_optimizer` goes on with `new_params`, and what became of each array of the old one.

    What belongs to a parameter follows it by its path, whatever wrappers and groups are around:

    - A parameter that both have keeps its slots to the bit; of another shape, it keeps them where the shapes overlap (the old
      rows of an embedding), unless some axes grow and others shrink. A new parameter starts as `init` makes it.
    - Another rule keeps the slots that mean the same in both: the averages of gradients and squares in Adam and AdamW; the
      first of them in Muon. The rest starts afresh.
    - Counters, memories of schedules and what a rule keeps for the whole tree follow the parameters that they are for; if
      these come from groups that differ, they start afresh. A new group whose parameters all start afresh has the clock that it
      shares with others, or, in a `Switch`, one from 0.
    - What a wrapper keeps follows the wrapper, wherever it is put; the trainer keeps its loss scale.

    Args:
        state: the state of `optimizer`, outside jit. It is not changed, and shares no memory with what is returned.
        optimizer: the optimizer or the trainer that the state is of.
        params: the old parameters, or `jax.eval_shape` of them: only paths and shapes count.
        new_optimizer: the optimizer or the trainer to go on with.
        new_params: the parameters to go on with; new slots are put where they are. If they, or the state, are abstract, the
            returned state is so, too: to see the report first.
        rename: from old paths to new ones: a function, or a dictionary in which a `*` stands for any part of a path and is put
            in the place of the `*` on the right: `{"encoder/*": "backbone/*"}`. The first pattern that fits counts; what fits
            none keeps its path.

    Returns:
        A state as `new_optimizer.init(new_params)` makes it, and the report.

    Raises:
        ValueError: the state is not one of `optimizer` and `params`; gradients in an accumulated window would be lost; a
            pattern fits no path, or two parameters have, or get, the same path.
        TypeError: `rename` is neither a function nor such a dictionary; or something else stands where an optimizer should.

    Example:
        >>> import jax.numpy as jnp
        >>> from mithril_opt import EMA, Adam, AdamW, migrate
        >>> old, params = Adam(), {"embed": jnp.ones((4, 2)), "out": jnp.ones(2)}
        >>> params, state = old.update(params, params, old.init(params))
        >>> new, grown = EMA(AdamW()), {"embed": jnp.ones((6, 2)), "head": params["out"], "extra": jnp.ones(2)}
        >>> state, report = migrate(state, old, params, new, grown, rename={"out": "head"})
        >>> report
        outcome  arrays  names                                                                     why
        kept          3  optimizer/step ← step, optimizer/slots/mu/head ← slots/mu/out and 1 more  under another name
        resized       2  optimizer/slots/mu/embed, optimizer/slots/nu/embed                        kept where the shapes overlap
        fresh         3  optimizer/slots/mu/extra, optimizer/slots/nu/extra and 1 more             a new parameter
        fresh         2  average/embed, average/head                                               the old state has none
        note: fresh moments on a clock at 1, which makes the first steps too large: embed, extra
    """
    _check_optimizers(optimizer=optimizer, new_optimizer=new_optimizer)
    old = _side(optimizer, params, _unpacked(optimizer, state))
    _check_state(old, _side(optimizer, params, _unpacked(optimizer, jax.eval_shape(optimizer.init, trained(params)))))
    abstract = _is_abstract((state, new_params))
    template = jax.eval_shape(new_optimizer.init, trained(new_params)) if abstract else new_optimizer.init(new_params)
    template = _unpacked(new_optimizer, template)
    new, names = _side(new_optimizer, new_params, template), renamed(rename, old.shapes)
    matches = Matcher(old, new, names).matches()
    _check_windows(old, matches)
    leaves = [match.entry.leaf if abstract else _filled(match) for match in matches]
    migrated = _packed(new_optimizer, jax.tree.unflatten(jax.tree.structure(template), leaves))
    return migrated, _report(old, new, names, matches)


def _check_optimizers(**given: Any) -> None:
    for name, value in given.items():
        if not isinstance(value, Optimizer | MixedPrecisionTrainer):
            raise TypeError(
                "migrate(state, optimizer, params, new_optimizer, new_params, rename=None): "
                f"{name} must be an optimizer or a trainer, got {type(value).__name__}"
            )


def _is_abstract(tree: PyTree) -> bool:
    return any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(tree))


def _unpacked(optimizer: Any, state: Any) -> Any:
    """`state` with slots as the rules compute with them, whatever they are stored in."""
    if isinstance(optimizer, MixedPrecisionTrainer):
        return state._replace(optimizer=_unpacked(optimizer.optimizer, trained_state(state)))
    return jax.eval_shape(optimizer.unpack, state) if _is_abstract(state) else optimizer.unpack(state)


def _packed(optimizer: Any, state: Any) -> Any:
    """`state` as `optimizer` stores it."""
    if isinstance(optimizer, MixedPrecisionTrainer):
        return state._replace(optimizer=_packed(optimizer.optimizer, state.optimizer))
    return jax.eval_shape(optimizer.pack, state) if _is_abstract(state) else optimizer.pack(state)


def _side(optimizer: Any, params: PyTree, state: PyTree) -> Side:
    leaves = leaves_with_paths(trained(params))
    shapes = {path: np.shape(leaf) for path, leaf in leaves}
    if len(shapes) < len(leaves):
        twice = next(path for path, count in Counter(path for path, _ in leaves).items() if count > 1)
        raise ValueError(f"two parameters have the path {twice!r}")
    return Side(entries_of(optimizer, params, state), outer_clock(optimizer, state), shapes)


def _check_state(side: Side, expected: Side) -> None:
    """Raise a ValueError unless the state is that of the optimizer and the parameters."""
    found, known = ({entry.name: describe_leaf(entry.leaf) for entry in own.entries} for own in (side, expected))
    for name in [*known, *found]:
        if found.get(name) != known.get(name):
            raise ValueError(foreign(f"{name} should be {known.get(name, 'absent')}, but is {found.get(name, 'absent')}"))


def _check_windows(old: Side, matches: list[Match]) -> None:
    """Raise a ValueError if gradients that are accumulated already would be lost."""
    used = {match.found[0].name for match in matches if match.why is None}
    for name, leaf, *_ in old.entries:
        if name.rpartition("/")[2] == "micro_step" and name not in used and _count(leaf) > 0:
            raise ValueError(
                f"{name} is {_count(leaf)}, and the gradients of an open window would be lost: migrate after the update that "
                "closes it, or set micro_step and verdict to 0 to give them up"
            )


def _filled(match: Match) -> Any:
    """The array of the new state, where `init` has put it."""
    fresh = match.entry.leaf
    if match.why is not None:
        return fresh
    value = match.found[0].leaf
    if not match.whole:
        corner = tuple(map(slice, np.minimum(np.shape(value), fresh.shape)))
        whole = np.array(fresh)
        whole[corner] = np.asarray(value)[corner]
        return placed(whole, fresh)
    if getattr(value, "committed", False) and not fresh.committed and jnp.issubdtype(fresh.dtype, jnp.number):
        value = np.asarray(value)  # else a counter would stay on the devices of the old run
    return placed(value if value.dtype == fresh.dtype else value.astype(fresh.dtype), fresh)


def _report(old: Side, new: Side, names: dict[str, str], matches: list[Match]) -> MigrationReport:
    going_on = [match for match in matches if match.why is None]
    sources = {match.entry.name: match.found[0].name for match in going_on}
    whole = {match.entry.name: match.whole for match in going_on}
    misfits = {other.name: match.why or f"the same as {match.found[0].name}" for match in matches for other in match.found}
    used = {*sources.values()}
    dropped = [entry for entry in old.entries if entry.name not in used and misfits.get(entry.name) != MOVED]
    return MigrationReport(
        kept={name: source for name, source in sources.items() if whole[name]},
        resized={name: source for name, source in sources.items() if not whole[name]},
        fresh={match.entry.name: match.why for match in matches if match.why},
        dropped={entry.name: misfits.get(entry.name) or _fate(entry, new, names) for entry in dropped},
        notes=tuple(_notes(matches)),
    )


def _fate(entry: Entry, new: Side, names: dict[str, str]) -> str:
    """Why an array of the old state is of no use."""
    path = entry.paths[0] if entry.param is not None else None
    if path is None or names[path] in new.shapes:
        return UNUSED
    return GONE if names[path] == path else f"{GONE}: {names[path]}"


def _notes(matches: list[Match]) -> Iterator[str]:
    late: dict[int, list[str]] = {}
    clocks = {path: match for match in matches if match.entry.meaning == CLOCK for path in match.entry.paths}
    for path in dict.fromkeys(_late(matches)):
        updates = 0 if clocks[path].why else _count(clocks[path].found[0].leaf)
        if updates > 0:
            late.setdefault(updates, []).append(path)
    for updates, paths in late.items():
        yield f"note: fresh moments on a clock at {updates}, which makes the first steps too large: {listed(sorted(paths))}"
    if cast := [match.entry.name for match in matches if not match.why and match.entry.leaf.dtype != match.found[0].leaf.dtype]:
        yield f"note: in another dtype: {listed(cast)}"


def _late(matches: list[Match]) -> Iterator[str]:
    """The parameters whose steps are divided by what starts afresh, or has new rows, and is corrected by the clock."""
    for entry, _, why, whole in matches:
        slot = entry.meaning[-1] if isinstance(entry.meaning, tuple) else entry.meaning
        if entry.rule is not None and slot in entry.rule.bias_corrected and (why or not whole):
            yield entry.paths[0]


def _count(leaf: Any) -> int:
    """The value of a counter; 0 if it is abstract."""
    return 0 if isinstance(leaf, jax.ShapeDtypeStruct) else int(leaf)


def _rows(outcome: str, whys: dict[str, str]) -> Iterator[tuple[str, int, str, str]]:
    """Rows of the table: the arrays with one fate and one reason in one."""
    groups: dict[str, list[str]] = {}
    for name, why in whys.items():
        groups.setdefault(why, []).append(name)
    for why, names in groups.items():
        yield outcome, len(names), listed(names, most=2), why
