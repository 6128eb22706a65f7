"""How slots are laid out: a rule sees the slots of one leaf, the state holds a few trees shaped like the parameters.

`read` and `write` are the one place where a slot leaves the state for the arithmetic, and returns to it.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from mithril_opt.core.coding import Coded
from mithril_opt.core.numerics import compute_dtype, real_dtype
from mithril_opt.core.tree import agree, aligned, describe_leaf, placed_like, trained, trains, widen
from mithril_opt.core.typing import Array, PyTree


def read(slots: PyTree) -> PyTree:
    """The slots of a leaf in the dtypes of the arithmetic: float32 or wider."""
    return jax.tree.map(lambda slot: widen(slot) if jnp.issubdtype(slot.dtype, jnp.inexact) else slot, slots)


def write(where: str, new: PyTree, old: PyTree) -> PyTree:
    """`new` slots of a leaf as the state keeps them: in the dtypes and with the sharding of the `old` ones.

    Raises:
        ValueError: they differ in structure or in a shape; begins with `where`.
    """
    if _kinds(new) != _kinds(old):
        raise ValueError(f"{where} returned the slots {_described(new)}, but the state holds {_described(old)}")
    return jax.tree.map(lambda new, old: placed_like(jnp.asarray(new, old.dtype), old), new, old)


def fresh(init_leaf: Callable[[Any], PyTree], leaf: Any) -> PyTree:
    """The slots of `leaf`, as `init_leaf` makes them, in buffers of their own."""
    param = widen(leaf)
    return own("init_leaf", init_leaf(param), param)


def own(where: str, slots: PyTree, params: PyTree) -> PyTree:
    """`slots`, strongly typed, none of them sharing a buffer with `params` or with each other (donation would fail).

    Raises:
        TypeError: one of them is no array; names `where` they come from.
    """
    seen = {id(leaf) for leaf in jax.tree.leaves(params)}

    def separate(slot: Array) -> Array:
        if not hasattr(slot, "dtype"):
            raise TypeError(f"{where} returned {slot!r} as a slot; a slot is an array, or None")
        slot = jnp.copy(slot) if id(slot) in seen else jnp.asarray(slot, slot.dtype)
        seen.add(id(slot))
        return slot

    return jax.tree.map(separate, slots)


def start_at(param: Any) -> Any:
    """A slot that begins as `param` itself; zeros for a parameter that is abstract."""
    return jnp.zeros_like(param) if isinstance(param, jax.ShapeDtypeStruct) else param


def zeros_along(param: Any, kept: Sequence[int], *sizes: int) -> Array:
    """Zeros, real and as wide as `param`, of its axes `kept`, sharded like them, and behind them of axes of `sizes`."""
    shape, sharding = (*(param.shape[axis] for axis in kept), *sizes), None
    if not isinstance(param, jax.core.Tracer) and isinstance(param.sharding, NamedSharding):
        spec = [*param.sharding.spec, *[None] * (param.ndim - len(param.sharding.spec))]
        own = PartitionSpec(*(spec[axis] for axis in kept), *[None] * len(sizes))
        sharding = NamedSharding(param.sharding.mesh, own, memory_kind=param.sharding.memory_kind)
    return jnp.zeros_like(param, real_dtype(param.dtype), shape=shape, device=sharding)


def empty(rule: Any, structure: Any) -> PyTree:
    """The slots of parameters of a `structure` without leaves: every field, as the slots of a matrix have them, like it."""
    slots = jax.eval_shape(rule.init_leaf, jax.ShapeDtypeStruct((1, 1), jnp.float32))
    return type(slots)(*(structure.unflatten([]) for _ in slots)) if _is_named_tuple(slots) else structure.unflatten([])


def gather(structure: Any, slots: list[PyTree]) -> PyTree:
    """From the slots of each leaf to a tree for each of their fields; None for a field that no leaf has."""
    if slots and _is_named_tuple(slots[0]):
        return type(slots[0])(*(_column(structure, column) for column in zip(*slots, strict=True)))
    return _column(structure, slots)


def scatter(rules: list[Any], params: PyTree, slots: PyTree) -> list[PyTree]:
    """From a tree for each field to the slots that each of `rules` keeps for its leaf of `params`.

    Raises:
        ValueError: `slots` are of another type, or not shaped like `params`.
    """
    leaves = jax.tree.leaves(params)
    kind = type(_expected(rules[0], leaves[0])) if leaves else type(slots)
    if not hasattr(kind, "_fields"):
        return _row(params, slots)
    if type(slots) is not kind:
        raise ValueError(foreign(f"its slots should be {kind.__name__}, but are {type(slots).__name__}"))
    return [kind(*row) for row in zip(*(_row(params, tree) for tree in slots), strict=True)]


def check(rule: Any, param: Any, slots: PyTree) -> None:
    """Raise a ValueError unless `slots` have the structure, the shapes and the kinds of dtype that `rule` gives to `param`."""
    if _kinds(slots) != _kinds(expected := _expected(rule, param)):
        raise ValueError(foreign(f"the slots of {describe_leaf(param)} are {_described(slots)}, not {_described(expected)}"))


def check_tree(params: PyTree, tree: PyTree, name: str) -> None:
    """Raise a ValueError unless `tree`, which a state calls `name`, is shaped like `params` or lacks leaves of it."""
    try:
        agree(params, tree, ("parameter", f"{name} in the state"))
    except ValueError as error:
        raise ValueError(foreign(str(error))) from None


def foreign(why: str) -> str:
    """The message about a state that is another one's."""
    return f"the state does not belong to this optimizer and these parameters: {why}"


class Kept(NamedTuple):
    """A leaf of a state.

    Attributes:
        leaf: itself, or its shape and dtype.
        position: that of its parameter among the leaves of the parameters; None for counters and the like.
        of_layers: whether it is one of a tuple that is kept for the parameter: an array for each of its layers, which are
            counted by the first axes, and not for each of its elements.
    """

    leaf: Any
    position: int | None
    of_layers: bool


def kept(optimizer: Any, params: PyTree) -> Iterator[Kept]:
    """The leaves, abstract, of the state that `optimizer` has for `params`."""
    # A bare array has no structure of its own, and everything would be structured like it. This one has the same path.
    params = {"": params} if jax.tree_util.treedef_is_leaf(jax.tree.structure(params)) else params
    yield from belonging(jax.eval_shape(optimizer.init, params), params)


def belonging(tree: PyTree, params: PyTree) -> Iterator[Kept]:
    """The leaves of `tree`, a state or a part of one, in their order.

    What is structured like the parameters, wherever it stands in the state, holds at each leaf what belongs to it: an array, a
    tuple of some, or nothing.
    """
    structure = jax.tree.structure(params)

    def columns(node: Any) -> list[Any] | None:
        try:
            column = structure.flatten_up_to(node)
        except ValueError:
            return None
        return column if all(_belongs_to_a_leaf(item) for item in column) else None

    for node in jax.tree.leaves(tree, is_leaf=lambda node: columns(node) is not None):
        column = columns(node)
        for index, item in [(None, node)] if column is None else enumerate(column):
            yield from (Kept(leaf, index, type(item) is tuple) for leaf in jax.tree.leaves(item))


def state_bytes(optimizer: Any, params: PyTree) -> list[int]:
    """Bytes of state that `optimizer` keeps for each leaf of `params`; its counters belong to none."""
    positions = [i for i, leaf in enumerate(jax.tree.leaves(params)) if trains(leaf)]
    sizes = [0] * len(jax.tree.leaves(params))
    for leaf, index, _ in kept(optimizer, trained(params)):
        if index is not None:
            sizes[positions[index]] += math.prod(leaf.shape) * leaf.dtype.itemsize
    return sizes


def _belongs_to_a_leaf(item: Any) -> bool:
    parts = item if type(item) is tuple else (item,)
    leaves = [jax.tree.leaves(part, is_leaf=lambda node: isinstance(node, Coded)) for part in parts]
    return all(not own or own[0] is part for part, own in zip(parts, leaves, strict=True))


def _expected(rule: Any, leaf: Any) -> PyTree:
    """The slots that `rule` gives to `leaf`, as shapes and dtypes."""
    return jax.eval_shape(rule.init_leaf, jax.ShapeDtypeStruct(jnp.shape(leaf), compute_dtype(jnp.result_type(leaf))))


def _is_named_tuple(slots: Any) -> bool:
    return isinstance(slots, tuple) and hasattr(slots, "_fields")


def _column(structure: Any, values: Any) -> PyTree:
    return None if all(value is None for value in values) else structure.unflatten(values)


def _row(params: PyTree, tree: PyTree) -> list[Any]:
    try:
        return [None for _ in jax.tree.leaves(params)] if tree is None else aligned(params, tree, ("parameter", "slot"))
    except ValueError as error:
        raise ValueError(foreign(str(error))) from None


def _kinds(slots: PyTree) -> Any:
    """Structure, shapes, and whether the dtypes are real or complex floats."""
    is_kind = lambda leaf: tuple(jnp.issubdtype(jnp.result_type(leaf), kind) for kind in (jnp.floating, jnp.complexfloating))  # noqa: E731
    return jax.tree.structure(slots), [(jnp.shape(leaf), is_kind(leaf)) for leaf in jax.tree.leaves(slots)]


def _described(slots: PyTree) -> Any:
    return jax.tree.map(describe_leaf, slots)
