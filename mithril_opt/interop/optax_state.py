"""optax's states, both ways, so that a run can be moved. optax is imported inside the functions."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from mithril_opt.core.optimizer import Optimizer
from mithril_opt.core.state import Counterpart, OptState, check_state, checked_step
from mithril_opt.core.tree import agree, aligned, overlay
from mithril_opt.core.typing import PyTree
from mithril_opt.interop.optax import apart

COUNT_NAMES = {"count", "count_m2"}


def state_from_optax(optimizer: Optimizer, params: PyTree, optax_state: PyTree, step: int | None = None) -> OptState:
    """The state of `optimizer` with the moments and the count of an optax state of the same rule.

    The moments are widened to float32 where optax kept them narrower. The two states share no memory.

    Optax keeps the states of adam, radam, nadam, adamax, adopt, lamb and yogi in one type, `ScaleByAdamState`, which does not
    say whose it is. A state of one of them is taken for that of any other, with numbers that mean something else, so see to it
    that `optimizer` is the rule that the state is from.

    Args:
        optimizer: one whose state means the same in optax. Those of `Adam(amsgrad=True)`, `RMSProp(momentum=…)`, `LARS`,
            `NAdam`, `Adan` and `Adafactor(beta1=…)` do not: optax keeps other moments, or the rate in the momentum.
        params: the parameters that both states are for.
        optax_state: the state of `optax.sgd`, `optax.adam`, …, however deep in a chain.
        step: number of updates made, for a state that does not count them (that of `optax.sgd(0.1)`, say).

    Raises:
        ValueError: `optimizer` is another one; the optax state is of another type than that of its rule, or has its slots twice
            or in another shape; its counts differ from each other or from `step`, or it has none and `step` is not given.

    Example:
        >>> import jax.numpy as jnp
        >>> import optax
        >>> from mithril_opt import Adam, state_from_optax
        >>> params = {"w": jnp.ones(2)}
        >>> state_from_optax(Adam(), params, optax.adam(1e-3).init(params)).slots.mu
        {'w': Array([0., 0.], dtype=float32)}
    """
    _counterpart(optimizer)
    state = optimizer.init(params)
    slots = {
        name: _taken(params, getattr(state.slots, name), value, name)
        for name, value in _find_slots(optimizer, state, optax_state).items()
    }
    count = _count(_counterpart(optimizer), optax_state, step)
    return state._replace(step=count, slots=state.slots._replace(**slots, **_counts(optimizer, state.slots, count)))


def state_to_optax(optimizer: Optimizer, state: OptState, optax_state: PyTree) -> PyTree:
    """`optax_state`, of the same rule, with the moments and the count of `state`: the inverse of `state_from_optax`.

    Args:
        optimizer: the optimizer that `state` belongs to, as for `state_from_optax`.
        state: its state.
        optax_state: what the optax transformation's `init` returned for the same parameters. All its counts are set.

    Raises:
        ValueError: as `state_from_optax` does.

    Example:
        >>> import jax.numpy as jnp
        >>> import optax
        >>> from mithril_opt import Adam, state_to_optax
        >>> params, optimizer = {"w": jnp.ones(2)}, Adam()
        >>> _, state = optimizer.update(params, params, optimizer.init(params))
        >>> optax.tree.get(state_to_optax(optimizer, state, optax.adam(1e-3).init(params)), "count")
        Array(1, dtype=int32)
    """
    theirs = _counterpart(optimizer)
    check_state(optimizer, state)
    values = {
        theirs.slots[name]: _cast(
            overlay(value, agree(value, getattr(state.slots, name), (f"{name} of optax", name)), value), value
        )
        for name, value in _find_slots(optimizer, state, optax_state).items()
    }
    return apart(_replaced(optax_state, theirs, values, state.step))


def _counts(optimizer: Optimizer, slots: PyTree, count: jax.Array) -> dict[str, PyTree]:
    """The slots that count the gradients of each leaf; optax counts them for all leaves together."""
    counting = [name for name, theirs in _counterpart(optimizer).slots.items() if theirs in COUNT_NAMES]
    return {name: jax.tree.map(lambda _: jnp.copy(count), getattr(slots, name)) for name in counting}


def _taken(params: PyTree, slot: PyTree, value: PyTree, name: str) -> PyTree:
    """What optax keeps as `value` in the place of our `slot`. Where a leaf lacks the slot, optax has a placeholder."""
    structure, theirs = jax.tree.structure(params), f"{name} of optax"
    pairs = zip(structure.flatten_up_to(slot), aligned(params, value, ("parameter", theirs)), strict=True)
    given = structure.unflatten([None if own is None else leaf for own, leaf in pairs])
    return _cast(agree(slot, given, (name, theirs)), slot)


def _counterpart(optimizer: Optimizer) -> Counterpart:
    if optimizer.optax is None:
        raise ValueError(
            f"{optimizer!r} has no counterpart in optax with the same state: among others SGD, Adam and AdamW without amsgrad, "
            "AdaGrad and RMSProp without momentum have"
        )
    return optimizer.optax


def _find_slots(optimizer: Optimizer, state: OptState, optax_state: PyTree) -> dict[str, PyTree]:
    """The trees of `optax_state` that are slots, by our names."""
    theirs = _counterpart(optimizer)
    kept = [name for name, tree in state.slots._asdict().items() if tree is not None]
    names = [name for name in kept if theirs.slots[name] not in COUNT_NAMES]
    nodes = list(_named_tuples(optax_state, theirs))
    _check_no_window(nodes)
    found = [node for node in nodes if type(node).__name__ == theirs.name or any(map(jnp.ndim, _own_arrays(node)))]
    wanted = [theirs.name] if names else []
    if [type(node).__name__ for node in found] != wanted:
        needs, has = wanted or ["no slots"], [type(node).__name__ for node in found] or ["no slots"]
        raise ValueError(f"{type(optimizer).__name__} needs an optax state with {needs[0]}, but this one has {', '.join(has)}")
    return {name: getattr(found[0], theirs.slots[name]) for name in names}


def _check_no_window(nodes: list[Any]) -> None:
    """Raise a ValueError if gradients have been accumulated that would be lost."""
    for node in nodes:
        if "mini_step" in node._fields and int(node.mini_step):
            raise ValueError(
                f"{type(node).__name__} is in mid-window, and its {int(node.mini_step)} gradients would be lost: take the "
                "state after a step that closes a window"
            )


def _own_arrays(node: Any) -> list[Any]:
    """The arrays in `node`, a NamedTuple, that are in no NamedTuple inside it; but for the gradients of an empty window."""
    own = [child for name, child in node._asdict().items() if name != "acc_grads"]
    return [leaf for leaf in jax.tree.leaves(own, is_leaf=_is_named_tuple) if not _is_named_tuple(leaf)]


def _is_named_tuple(node: Any) -> bool:
    return isinstance(node, tuple) and hasattr(node, "_fields")


def _named_tuples(tree: PyTree, theirs: Counterpart) -> Iterator[Any]:
    """Every NamedTuple in `tree`, but for those in the slots of `theirs`, which are the parameters' own."""
    for node in jax.tree.leaves(tree, is_leaf=_is_named_tuple):
        if _is_named_tuple(node):
            yield node
            slots = _slot_fields(node, theirs)
            yield from _named_tuples([child for name, child in node._asdict().items() if name not in slots], theirs)


def _slot_fields(node: Any, theirs: Counterpart) -> set[str]:
    """The fields of `node` that are slots; what `optax.MultiSteps` has summed is shaped like the parameters, too."""
    return {"acc_grads", *(theirs.slots.values() if type(node).__name__ == theirs.name else ())} - COUNT_NAMES


def _replaced(tree: PyTree, theirs: Counterpart, slots: dict[str, Any], step: Any) -> PyTree:
    """`tree` with `slots` in the NamedTuple of `theirs`, by its names, and `step` for every count."""

    def replaced(node: Any) -> Any:
        if not _is_named_tuple(node):
            return node
        own = _slot_fields(node, theirs)
        new = {name: child if name in own else _replaced(child, theirs, slots, step) for name, child in node._asdict().items()}
        new |= dict.fromkeys(COUNT_NAMES.intersection(node._fields), step)
        return node._replace(**new | (slots if type(node).__name__ == theirs.name else {}))

    return jax.tree.map(replaced, tree, is_leaf=_is_named_tuple)


def _cast(values: PyTree, like: PyTree) -> PyTree:
    return jax.tree.map(lambda value, slot: jnp.array(value, slot.dtype), values, like)


def _count(theirs: Counterpart, optax_state: PyTree, step: int | None) -> jax.Array:
    nodes = _named_tuples(optax_state, theirs)
    given = [getattr(node, name) for node in nodes for name in COUNT_NAMES.intersection(node._fields)]
    counts = sorted({checked_step(int(count)) for count in given} | ({checked_step(step)} if step is not None else set()))
    if not counts:
        raise ValueError("the optax state does not count its updates; give their number as step=")
    if len(counts) > 1:
        raise ValueError(f"the counts of the optax state, and step if given, differ: {counts}; one clock cannot hold them")
    return jnp.asarray(counts[0], jnp.int32)
