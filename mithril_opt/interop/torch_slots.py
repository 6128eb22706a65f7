"""The slots of a rule from what PyTorch keeps for its parameters, and back."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mithril_opt.core.optimizer import Optimizer
from mithril_opt.core.state import Counterpart, checked_step
from mithril_opt.core.tree import leaves_with_paths, listed, trained
from mithril_opt.core.typing import PyTree
from mithril_opt.interop.torch_arrays import fitted, for_torch, permuted
from mithril_opt.interop.torch_groups import Kept, counterpart, moving, rules_of


def common_step(optimizer: Optimizer, params: PyTree, kept: Mapping[str, Kept], step: int | None) -> int:
    """How many updates were made, after checking that all parameters made as many."""
    rules = {path: counterpart(rule) for path, rule in rules_of(optimizer, params).items() if path in kept and rule.torch}
    entries = {path: kept[path].entry for path in rules}
    counted = [path for path, theirs in rules.items() if theirs.counts or entries[path]]
    empty = [path for path in counted if not entries[path]]
    if 0 < len(empty) < len(counted):
        raise ValueError(
            f"PyTorch has no state for {listed(empty)}, which never got a gradient; one clock cannot hold that: leave what "
            "does not train out of both optimizers"
        )
    counts = {int(entry["step"]) for entry in entries.values() if "step" in entry}
    counts |= set() if step is None else {checked_step(step)}
    if len(counts) > 1:
        raise ValueError(f"the parameters made different numbers of updates, {sorted(counts)}; one clock cannot hold them")
    if not counts and (any(entries.values()) or not any(theirs.counts for theirs in rules.values())):
        name = next((theirs.name for path, theirs in rules.items() if "step" not in entries[path]), "SGD")
        raise ValueError(f"the state of torch.optim.{name} does not count its updates; give their number as step=")
    return next(iter(counts), 0)


def filled(kept: Mapping[str, Kept], axes: Mapping[str, Sequence[int]], rule: Optimizer, params: PyTree, state: Any) -> Any:
    """The state of `rule` with what PyTorch keeps for its parameters."""
    leaves = leaves_with_paths(trained(params))
    own = {path for path, _ in leaves}
    entries = {path: row.entry for path, row in kept.items() if path in own}
    if not moving(rule, params) and not any(entries.values()):
        return state  # it is frozen
    theirs = counterpart(rule)
    _check_real(theirs, params)
    slots = {slot: tree for slot, tree in state.slots._asdict().items() if tree is not None}
    _check_entries(entries, theirs, slots)
    reduced = {path: theirs.reduced(path, leaf) for path, leaf in leaves}
    new = {slot: _filled_slot(slot, tree, theirs, entries, axes, reduced) for slot, tree in slots.items()}
    return state._replace(slots=state.slots._replace(**new))


def _check_real(theirs: Counterpart, params: PyTree) -> None:
    """PyTorch squares real and imaginary part of a complex gradient apart, so that its moments mean something else."""
    paths = [path for path, leaf in leaves_with_paths(trained(params)) if jnp.iscomplexobj(leaf)]
    if paths and theirs.squares:
        raise ValueError(f"the second moments of complex parameters cannot be moved: {listed(paths)}")


def _check_entries(entries: Mapping[str, Mapping[str, Any]], theirs: Counterpart, slots: Mapping[str, PyTree]) -> None:
    kept = {theirs.slots[slot]: dict(leaves_with_paths(tree)) for slot, tree in slots.items() if slot in theirs.slots}
    for path, entry in entries.items():
        needed = {name for name, leaves in kept.items() if path in leaves}
        if entry and set(entry) - {"step"} != needed:
            raise ValueError(
                f"PyTorch's state of {path!r} has {sorted(entry)}, but this optimizer needs {sorted(needed)} of torch.optim."
                f"{theirs.name}"
            )


def _filled_slot(
    slot: str,
    tree: PyTree,
    theirs: Counterpart,
    entries: Mapping[str, Mapping[str, Any]],
    axes: Mapping[str, Sequence[int]],
    reduced: Mapping[str, Mapping[str, int]],
) -> PyTree:
    """The tree of a slot with what PyTorch keeps, or with ones, for a mark that an update was made; as it is where none has
    been made yet."""

    def fill(path: str, leaf: Any) -> Any:
        if not entries[path]:
            return leaf
        if slot not in theirs.slots:
            return jnp.ones_like(leaf)
        name, spec = theirs.slots[slot], jax.ShapeDtypeStruct(_unreduced(leaf.shape, reduced[path].get(slot)), leaf.dtype)
        order = "; names must follow the order of the parameter groups"
        return fitted(entries[path][name], leaf, spec, axes.get(path), name, path, order)

    return jax.tree.structure(tree).unflatten([fill(path, leaf) for path, leaf in leaves_with_paths(tree)])


def _unreduced(shape: tuple[int, ...], axis: int | None) -> tuple[int, ...]:
    """The shape of a slot in PyTorch, which keeps with size 1 the `axis` that ours lacks."""
    return shape if axis is None else (*shape[:axis], 1, *shape[axis:])


def entries_of(rule: Optimizer, params: PyTree, state: Any, axes: Mapping[str, Sequence[int]]) -> dict[str, dict[str, Any]]:
    """By path, what PyTorch keeps where `rule` has `state`."""
    theirs = counterpart(rule)
    _check_real(theirs, params)
    leaves = leaves_with_paths(trained(params))
    entries: dict[str, dict[str, Any]] = {path: {} for path, _ in leaves}
    reduced = {path: theirs.reduced(path, leaf) for path, leaf in leaves}
    for slot, name in theirs.slots.items():
        for path, leaf in leaves_with_paths(getattr(state.slots, slot)):
            value = for_torch(leaf).reshape(_unreduced(leaf.shape, reduced[path].get(slot)))
            entries[path][name] = permuted(value, axes.get(path), path)
    if theirs.counts:
        for entry in entries.values():
            entry["step"] = np.array(state.step, np.float32)
    return entries
