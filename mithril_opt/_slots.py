"""How slots are laid out: a rule sees the slots of one leaf, the state holds a few trees shaped like the parameters."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from mithril_opt._numerics import compute_dtype
from mithril_opt._tree import describe_leaf, widen
from mithril_opt._typing import Array, PyTree


def fresh_slots(init_leaf: Callable[[Any], PyTree], leaf: Any) -> PyTree:
    """The slots of `leaf`, strongly typed, none of them sharing a buffer with it or with each other (donation would fail)."""
    if isinstance(leaf, jax.ShapeDtypeStruct):
        param = jax.ShapeDtypeStruct(leaf.shape, compute_dtype(leaf.dtype), sharding=leaf.sharding)
    else:
        param = widen(leaf)
    seen = {id(param)}

    def fresh(slot: Array) -> Array:
        slot = jnp.copy(slot) if id(slot) in seen else jnp.asarray(slot, slot.dtype)
        seen.add(id(slot))
        return slot

    return jax.tree.map(fresh, init_leaf(param))


def slot_structure(init_leaf: Callable[[Any], PyTree]) -> Any:
    """The structure of one leaf's slots, known even when there are no leaves."""
    return jax.tree.structure(jax.eval_shape(init_leaf, jax.ShapeDtypeStruct((), jnp.float32)))


def gather(slot_structure: Any, structure: Any, slots: list[PyTree]) -> PyTree:
    """From slots per leaf to trees per slot."""
    columns = [slot_structure.flatten_up_to(leaf_slots) for leaf_slots in slots]
    return slot_structure.unflatten(
        [structure.unflatten([column[i] for column in columns]) for i in range(slot_structure.num_leaves)]
    )


def scatter(slot_structure: Any, structure: Any, slots: PyTree) -> list[PyTree]:
    """From trees per slot to slots per leaf."""
    try:
        rows = [structure.flatten_up_to(tree) for tree in slot_structure.flatten_up_to(slots)]
    except ValueError:
        raise ValueError(
            "the state does not belong to this optimizer and these parameters: its slots are "
            f"{jax.tree.structure(slots)}, expected {slot_structure} with {structure} in each"
        ) from None
    return [slot_structure.unflatten([row[i] for row in rows]) for i in range(structure.num_leaves)]


def check_shapes(init_leaf: Callable[[Any], PyTree], params: list[tuple[str, Array]], slots: list[PyTree]) -> None:
    """Raise a ValueError unless the slots of every parameter, given with its path, have the shapes that `init_leaf` gives."""

    @functools.cache
    def expected(shape: tuple[int, ...], dtype: Any) -> list[tuple[int, ...]]:
        return shapes(jax.eval_shape(init_leaf, jax.ShapeDtypeStruct(shape, compute_dtype(dtype))))

    def shapes(tree: PyTree) -> list[tuple[int, ...]]:
        return [leaf.shape for leaf in jax.tree.leaves(tree)]

    for (path, param), own in zip(params, slots, strict=True):
        if shapes(own) != expected(param.shape, param.dtype):
            raise ValueError(
                f"the state does not belong to these parameters: at {path!r} the parameter is {describe_leaf(param)}, whose "
                f"slots have the shapes {expected(param.shape, param.dtype)}, but those in the state are {shapes(own)}"
            )


def parameter_of_each_leaf(state: PyTree, params: PyTree) -> Iterator[int | None]:
    """For each leaf of `state` the position of its parameter among the leaves of `params`; None for counters and the like.

    What is structured like the parameters, wherever it stands in the state, holds at each leaf what belongs to it, or nothing.
    """
    structure = jax.tree.structure(params)

    def columns(node: Any) -> list[Any] | None:
        try:
            column = structure.flatten_up_to(node)
        except ValueError:
            return None
        return column if all(_leaf_or_nothing(item) for item in column) else None

    for node in jax.tree.leaves(state, is_leaf=lambda node: columns(node) is not None):
        column = columns(node)
        yield from [None] if column is None else [i for i, item in enumerate(column) if jax.tree.leaves(item)]


def _leaf_or_nothing(item: Any) -> bool:
    leaves = jax.tree.leaves(item)
    return not leaves or leaves[0] is item
