"""Every array of a state with what it means and which parameters it is for, however wrappers and groups are nested."""

import dataclasses
from collections.abc import Hashable, Iterator
from typing import Any, NamedTuple

import jax

from mithril_opt.core.slots import belonging
from mithril_opt.core.state import OptState
from mithril_opt.core.tree import leaves_with_paths, trained
from mithril_opt.core.typing import PyTree
from mithril_opt.mixed_precision.commit import TrainerState
from mithril_opt.mixed_precision.readings import check_made_by
from mithril_opt.mixed_precision.trainer import MixedPrecisionTrainer
from mithril_opt.wrappers.base import Wrapper
from mithril_opt.wrappers.multi import MultiOptimizer

CLOCK = "clock"


class Entry(NamedTuple):
    """An array of a state.

    Attributes:
        name: what `to_state_dict` calls it.
        leaf: the array, or its shape and dtype.
        meaning: the same for arrays that can stand for each other in two states.
        paths: the parameters it is for: one for a slot; for a counter, those whose updates it counts.
        param: the parameter that it is a slot of; None for a counter and the like.
        rule: the rule that it is a slot of; None for what a wrapper or a trainer keeps.
    """

    name: str
    leaf: Any
    meaning: Hashable
    paths: tuple[str, ...]
    param: Any = None
    rule: Any = None


@dataclasses.dataclass(frozen=True)
class _Named:
    """A leaf of a state that knows its name; no pytree itself."""

    name: str
    leaf: Any


def entries_of(optimizer: Any, params: PyTree, state: PyTree) -> list[Entry]:
    """The arrays of `state`, in the order of `jax.tree.leaves`. A clock is for the parameters that have none further inside."""
    found = {entry.name: entry for entry in _inside(optimizer, trained(params), _named(state), ())}
    inner: set[str] = set()
    for name, entry in reversed(found.items()):
        if entry.meaning == CLOCK:
            found[name] = entry._replace(paths=tuple(path for path in entry.paths if path not in inner))
            inner.update(entry.paths)
    return [found[name] for name, _ in leaves_with_paths(state)]


def outer_clock(optimizer: Any, state: PyTree) -> str:
    """The name of the clock that all of `state` is on."""
    trained_by = isinstance(optimizer, MixedPrecisionTrainer)
    return outer_clock(optimizer.optimizer, state.optimizer) if trained_by else optimizer.clock(_named(state)).name


def _named(state: PyTree) -> Any:
    named = [_Named(name, leaf) for name, leaf in leaves_with_paths(state)]
    return jax.tree.unflatten(jax.tree.structure(state), named)


def _inside(optimizer: Any, params: PyTree, state: Any, around: tuple[type, ...], timed: bool = False) -> Iterator[Entry]:
    """The entries of `state`, whose leaves are named. `around` are the classes of the states around it, and `timed` says
    whether its clock is theirs."""
    if isinstance(optimizer, MultiOptimizer):
        yield from () if timed else _clock(optimizer, params, state)
        for own, own_params, part in optimizer.parts(params, state):
            yield from _inside(own, own_params, part, around, timed=isinstance(part, OptState))
    elif isinstance(optimizer, Wrapper | MixedPrecisionTrainer):
        inner = optimizer.inner(state) if isinstance(optimizer, Wrapper) else trained_state(state)
        if inner is not state:
            yield from _of_wrapper(optimizer, params, state, around)
            around = (*around, type(state))
        yield from _inside(optimizer.optimizer, params, inner, around, timed)
    else:
        yield from () if timed else _clock(optimizer, params, state)
        yield from _of_rule(optimizer, params, state)


def trained_state(state: Any) -> Any:
    """The state of the optimizer in that of its trainer."""
    check_made_by(state, TrainerState, "state", "init")
    return state.optimizer


def _clock(optimizer: Any, params: PyTree, state: Any) -> Iterator[Entry]:
    for _, named in leaves_with_paths(state.step if isinstance(state, OptState) else None):
        yield Entry(named.name, named.leaf, CLOCK, _moved_by(optimizer, params))


def _of_wrapper(wrapper: Any, params: PyTree, state: Any, around: tuple[type, ...]) -> Iterator[Entry]:
    """What a wrapper or a trainer keeps besides the state inside; the n-th from outside of its kind means the same."""
    own = wrapper.with_inner(state, None) if isinstance(wrapper, Wrapper) else state._replace(optimizer=None)
    optimizer = wrapper.optimizer
    kind = type(state), around.count(type(state))
    paths = _moved_by(optimizer, params)
    # The scale of a trainer that scales nothing is none.
    scaled = {"loss_scale/scale": isinstance(wrapper, MixedPrecisionTrainer) and wrapper.policy.needs_loss_scaling}
    for slot, named, path, param in _slots(own, params):
        meaning = (*kind, slot, scaled.get(slot))
        if path is None:
            yield Entry(named.name, named.leaf, meaning, paths)
        else:
            yield Entry(named.name, named.leaf, meaning, (path,), param)


def _of_rule(rule: Any, params: PyTree, state: Any) -> Iterator[Entry]:
    """Slots, memories of schedules, and what a rule keeps for the whole tree."""
    slots = state.slots if isinstance(state, OptState) else state
    kind = type(slots) if hasattr(slots, "_fields") else type(rule)
    paths = _moved_by(rule, params)
    for slot, named, path, param in _slots(slots, params):
        meaning = slot if slot in rule.moments else (kind, slot)
        yield Entry(named.name, named.leaf, meaning, paths if path is None else (path,), param, None if path is None else rule)
    if isinstance(state, OptState):
        for part, tree in (("schedules", state.schedules), (type(state.shared), state.shared)):
            for slot, named in leaves_with_paths(tree):
                yield Entry(named.name, named.leaf, (part, slot), paths)


def _slots(tree: PyTree, params: PyTree) -> Iterator[tuple[str, _Named, str | None, Any]]:
    """The leaves of `tree`: the name of the slot, the leaf, and the path of its parameter and this itself; or None and None."""
    leaves = leaves_with_paths(params)
    for (name, named), (_, position, _) in zip(leaves_with_paths(tree), belonging(tree, params), strict=True):
        path, param = (None, None) if position is None else leaves[position]
        yield _without(name, path or ""), named, path, param


def _without(name: str, path: str) -> str:
    """`name` without `path`, where it last goes through it."""
    before, _, after = f"/{name}/".rpartition(f"/{path}/") if path else ("", "", f"{name}/")
    return f"{before}/{after}".strip("/")


def _moved_by(optimizer: Any, params: PyTree) -> tuple[str, ...]:
    """The paths of the parameters that `optimizer` moves."""
    return tuple(path for path, _ in leaves_with_paths(optimizer.drop_frozen(params, params)))
