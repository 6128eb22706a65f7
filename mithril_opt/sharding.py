"""Where the state lives on many devices. JAX's own engine does the rest."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mithril_opt.core.fields import shown
from mithril_opt.core.leaf_optimizer import LeafOptimizer
from mithril_opt.core.slots import kept
from mithril_opt.core.tree import leaves_with_paths, narrowed, trained, trains
from mithril_opt.core.typing import PyTree


def state_shardings(optimizer: Any, params: PyTree, param_shardings: PyTree, zero_axis: str | None = None) -> PyTree:
    """The sharding of every leaf of the optimizer's state, for `jax.jit(..., out_shardings=...)`.

    Slots shaped like their parameter, or with a number for each of its blocks, are sharded like it along each axis that the
    mesh divides, and the bases of `SOAP` along the axes that count layers; all else, counters mostly, is replicated. With
    `zero_axis` the slots are also spread over that axis of the mesh (ZeRO stage 1, Rajbhandari et al. 2020): along the first
    dimension that is not sharded yet and that it divides, or else, unless the mesh has explicit axes, along the first that it
    divides further; of a basis that of the layers. A slot without such a dimension stays as it is.

    Args:
        optimizer: an `Optimizer` or a `MixedPrecisionTrainer`: whatever has `init(params)`.
        params: tree of arrays or `jax.ShapeDtypeStruct`s.
        param_shardings: tree of `jax.sharding.NamedSharding`s shaped like `params`, or one for all. What does not train needs
            none.
        zero_axis: name of the mesh axis over which data is parallel.

    Returns:
        A tree of `NamedSharding`s shaped like `optimizer.init(params)`.

    Raises:
        ValueError: the mesh has no axis `zero_axis`, or `param_shardings` is not shaped like `params`.
        TypeError: a sharding is no `NamedSharding`.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from jax.sharding import NamedSharding, PartitionSpec
        >>> from mithril_opt import Adam, state_shardings
        >>> mesh = jax.make_mesh((1,), ("data",))
        >>> replicated = NamedSharding(mesh, PartitionSpec())
        >>> shardings = state_shardings(Adam(), {"w": jnp.ones((4, 2))}, replicated, zero_axis="data")
        >>> shardings.slots.mu["w"].spec
        P('data', None)
    """
    own, params = _per_leaf(params, param_shardings), trained(params)
    if not own:
        raise ValueError("no leaf of params trains, so there is nothing to shard the state like")
    mesh = own[0].mesh
    if zero_axis is not None and any(zero_axis not in sharding.mesh.shape for sharding in own):
        raise ValueError(f"the mesh has no axis {zero_axis!r}; its axes are {', '.join(map(repr, mesh.axis_names))}")
    shapes, layers = [jnp.shape(leaf) for leaf in jax.tree.leaves(params)], _layers(optimizer, params)
    shardings = []
    for leaf, index, of_layers in kept(optimizer, params):
        if index is None:
            shardings.append(NamedSharding(mesh, PartitionSpec()))
        elif of_layers:
            shardings.append(_spread(_along(own[index], layers[index]), leaf.shape[: len(layers[index])], zero_axis))
        else:
            shardings.append(_spread(_like(own[index], shapes[index], leaf.shape), leaf.shape, zero_axis))
    return jax.tree.unflatten(jax.tree.structure(jax.eval_shape(optimizer.init, params)), shardings)


def _layers(optimizer: Any, params: PyTree) -> list[tuple[int, ...]]:
    """For each leaf of `params` the axes that count layers, as its rule has them."""
    rules = [(path, leaf, rule) for (path, leaf), rule in zip(leaves_with_paths(params), optimizer.rules(params), strict=True)]
    own = [rule[1].for_leaf(path, leaf) if rule and isinstance(rule[1], LeafOptimizer) else None for path, leaf, rule in rules]
    return [getattr(rule, "unit_axes", None) or () for rule in own]


def _per_leaf(params: PyTree, shardings: PyTree) -> list[NamedSharding]:
    """The sharding of each leaf of `params` that trains."""
    leaves, structure = leaves_with_paths(params), jax.tree.structure(params)
    try:
        flat = [shardings] * len(leaves) if isinstance(shardings, jax.sharding.Sharding) else structure.flatten_up_to(shardings)
    except ValueError as error:
        why = shown(str(error))
        raise ValueError(f"param_shardings must be one sharding, or a tree of them shaped like params: {why}") from None
    own = []
    for (path, leaf), sharding in zip(leaves, flat, strict=True):
        if trains(leaf) and not isinstance(sharding, NamedSharding):
            raise TypeError(f"the sharding of {path!r} must be a jax.sharding.NamedSharding, got {sharding!r}")
        own += [sharding] if trains(leaf) else []
    return own


def _like(sharding: NamedSharding, whole: tuple[int, ...], shape: tuple[int, ...]) -> NamedSharding:
    """The `sharding` of a parameter of shape `whole` for a slot of its shape, or with a number for each of its blocks; another
    slot is replicated."""
    fits = len(shape) == len(whole) and all(n == size or (n and size % n == 0) for n, size in zip(shape, whole, strict=True))
    spec = narrowed(sharding.spec, sharding.mesh, shape) if fits else PartitionSpec()
    return NamedSharding(sharding.mesh, spec, memory_kind=sharding.memory_kind if fits else None)


def _along(sharding: NamedSharding, axes: tuple[int, ...]) -> NamedSharding:
    """The `sharding` of a parameter for a slot whose first axes are its `axes`; along the others it is whole."""
    entries = [*sharding.spec, *[None] * (1 + max(axes, default=0))]
    spec = PartitionSpec(*(entries[axis] for axis in axes))
    return NamedSharding(sharding.mesh, spec, memory_kind=sharding.memory_kind)


def _spread(sharding: NamedSharding, shape: tuple[int, ...], axis: str | None) -> NamedSharding:
    """`sharding` with one more dimension of an array of `shape` sharded over `axis`, where one can be."""
    spec, mesh = sharding.spec, sharding.mesh
    entries = [*spec, *[None] * (len(shape) - len(spec))]
    names = [entry if isinstance(entry, tuple) else () if entry is None else (entry,) for entry in entries]
    if axis is None or any(axis in taken for taken in names):
        return sharding
    parts = [math.prod(mesh.shape[name] for name in (*taken, axis)) for taken in names]
    # Under explicit axes JAX adds arrays that are sharded alike along each dimension, or one of them not at all.
    further = AxisType.Explicit not in mesh.axis_types
    fits = [i for i, size in enumerate(shape) if size and size % parts[i] == 0 and (further or not names[i])]
    if not fits:
        return sharding
    chosen = min(fits, key=lambda i: (bool(names[i]), i))
    entries[chosen] = (*names[chosen], axis) if names[chosen] else axis
    return NamedSharding(mesh, PartitionSpec(*entries), memory_kind=sharding.memory_kind)
