"""Trees of parameters: which leaves train, whether the gradients fit, where two trees first differ.

A leaf *trains* if it is a floating or complex array (a Python float or complex counts as a scalar array). Every other leaf
(integers, booleans, PRNG keys, strings, functions) is a *passenger*: it is handed back as it came. None is an empty subtree.
"""

import functools
import math
import sys
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, PartitionSpec

from mithril_opt.core.numerics import compute_dtype
from mithril_opt.core.typing import Array, PyTree


def leaves_with_paths(tree: PyTree, is_leaf: Callable[[Any], bool] = lambda node: False) -> list[tuple[str, Any]]:
    """The leaves of `tree`, each with its path as `a/b/0/c`. The attribute `value` of nnx's variables is no part of it."""
    nnx = sys.modules.get("flax.nnx")  # without it there are no variables
    is_variable = lambda node: nnx is not None and isinstance(node, nnx.Variable)  # noqa: E731
    nodes = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda node: is_variable(node) or is_leaf(node))
    inside = [(path, jax.tree_util.tree_leaves_with_path(node) if is_variable(node) else [((), node)]) for path, node in nodes]
    return [(_path_string((*path, *own[1:])), leaf) for path, leaves in inside for own, leaf in leaves]


def _path_string(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def paths_of(params: PyTree) -> PyTree:
    """A tree shaped like `params` that holds at each leaf its path."""
    return jax.tree.structure(params).unflatten([path for path, _ in leaves_with_paths(params)])


def trains(leaf: Any) -> bool:
    """Whether `leaf` is a floating or complex array, or a Python float or complex."""
    dtype = getattr(leaf, "dtype", None)
    return isinstance(leaf, float | complex) if dtype is None else jnp.issubdtype(dtype, jnp.inexact)


def trained(params: PyTree) -> PyTree:
    """`params` with None in place of the passengers, and with scalar arrays in place of Python numbers."""
    return jax.tree.map(lambda leaf: as_array(leaf) if trains(leaf) else None, params)


def is_staged(tree: PyTree) -> bool:
    """Whether what is done to `tree` becomes part of a program that is being traced: not under `vmap` or `grad` alone."""
    is_tracer = lambda leaf: isinstance(leaf, jax.core.Tracer)  # noqa: E731
    # In a program, constants are tracers, too.
    return any(map(is_tracer, jax.tree.leaves(tree))) and is_tracer(jnp.zeros(()))


def as_array(leaf: Any) -> Any:
    """`leaf`, a Python number as a scalar array."""
    return leaf if hasattr(leaf, "dtype") else jnp.asarray(leaf)


def overlay(params: PyTree, *trees: PyTree) -> PyTree:
    """A tree shaped like `params` that holds at each leaf what the first of `trees` that is not None there holds, or None."""
    structure = jax.tree.structure(params)
    columns = zip(*(structure.flatten_up_to(tree) for tree in trees), strict=True)
    return structure.unflatten([next((leaf for leaf in column if leaf is not None), None) for column in columns])


def only(params: PyTree, tree: PyTree, kept: Iterable[bool]) -> PyTree:
    """`tree`, shaped like `params`, with None at the leaves of `params` that are not `kept`."""
    structure = jax.tree.structure(params)
    leaves = zip(structure.flatten_up_to(tree), kept, strict=True)
    return structure.unflatten([leaf if keep else None for leaf, keep in leaves])


def map_leaves(fun: Callable[..., Any], params: PyTree, first: PyTree, *others: PyTree) -> PyTree:
    """A tree shaped like `params`: `fun` of what the trees, shaped like it, hold at each leaf; None where the first holds None.

    A real number of any width may meet a wider or a complex leaf in `fun`.
    """
    structure = jax.tree.structure(params)
    columns = zip(*(structure.flatten_up_to(tree) for tree in (first, *others)), strict=True)
    with jax.numpy_dtype_promotion("standard"):
        return structure.unflatten([None if leaves[0] is None else fun(*leaves) for leaves in columns])


def select(condition: Any, new: PyTree, old: PyTree) -> PyTree:
    """`new` where `condition` holds, `old` elsewhere, leaf by leaf.

    What a training step carries besides parameters and state (batch statistics, a random key) is committed or kept with the
    verdict of `MixedPrecisionTrainer.update` in this way.

    Args:
        condition: boolean scalar.
        new: tree of arrays.
        old: tree of the same structure, shapes and dtypes.

    Returns:
        A tree of that structure; what was not chosen may hold NaN.

    Example:
        >>> import jax.numpy as jnp
        >>> from mithril_opt import select
        >>> select(jnp.bool(False), {"mean": jnp.float32(jnp.nan)}, {"mean": jnp.float32(0.5)})
        {'mean': Array(0.5, dtype=float32)}
    """
    return jax.tree.map(lambda new, old: jnp.where(condition, new, old), new, old)


def agree(params: PyTree, grads: PyTree, names: tuple[str, str] = ("parameter", "gradient")) -> PyTree:
    """`grads` as a tree shaped like `params`, with None where there is no gradient or nothing trains.

    Raises:
        ValueError: the two differ in structure or in a shape, or a real parameter has a complex gradient; names the path of
            the first difference.
    """
    leaves, structure = jax.tree.flatten(params)
    pairs = list(zip(leaves, aligned(params, grads, names), strict=True))
    fits = [_fitting(param, grad) for param, grad in pairs]
    if not all(fits):
        raise ValueError(_first_misfit(params, pairs, fits.index(False), *names) + _of_a_pair(params, grads, names[1]))
    return structure.unflatten([grad if trains(param) else None for param, grad in pairs])


def _first_misfit(params: PyTree, pairs: list[tuple[Any, Any]], first: int, param: str, grad: str) -> str:
    path, (ours, theirs) = leaves_with_paths(params)[first][0], pairs[first]
    return f"at {path!r} the {param} is {describe_leaf(ours)} but the {grad} is {describe_leaf(theirs)}"


def aligned(params: PyTree, tree: PyTree, names: tuple[str, str]) -> list[Any]:
    """What `tree`, shaped like `params`, holds at each leaf of `params`; a ValueError with the path of the first difference."""
    try:
        return jax.tree.structure(params).flatten_up_to(tree)
    except ValueError:
        raise ValueError(_first_difference(params, tree, *names) + _of_a_pair(params, tree, names[1])) from None


def _of_a_pair(params: PyTree, grads: PyTree, grad: str) -> str:
    """What `grads` are if they are a pair of which one part fits, as the end of a message."""
    if "gradient" not in grad or type(grads) is not tuple or len(grads) != 2:
        return ""
    if _fits(params, grads[0]) == _fits(params, grads[1]):
        return ""
    second = "(loss, grads), which jax.value_and_grad returns"
    first = "(grads, aux), which jax.grad returns with has_aux=True"
    return f"; this looks like the pair {second if _fits(params, grads[1]) else first}"


def _fits(params: PyTree, tree: PyTree) -> bool:
    try:
        return all(map(_fitting, jax.tree.leaves(params), jax.tree.structure(params).flatten_up_to(tree)))
    except ValueError:
        return False


def _fitting(param: Any, grad: Any) -> bool:
    if grad is None or not trains(param):
        return True
    return trains(grad) and np.shape(param) == np.shape(grad) and (jnp.iscomplexobj(param) or not jnp.iscomplexobj(grad))


def _first_difference(params: PyTree, grads: PyTree, param: str, grad: str) -> str:
    """Where two trees of different structure part: the first path that one of them lacks."""
    ours = leaves_with_paths(params)
    theirs = dict(leaves_with_paths(grads, is_leaf=lambda leaf: leaf is None))
    for path, leaf in ours:
        if path not in theirs:
            return f"at {path!r} the {param} is {describe_leaf(leaf)} but there is no {grad}"
    known = dict(ours)
    for path, leaf in theirs.items():
        if path not in known:
            return f"at {path!r} there is a {grad}, {describe_leaf(leaf)}, but no {param}"
    theirs = _containers(grads)
    path, kind = next((path, kind) for path, kind in _containers(params).items() if theirs.get(path) != kind)
    return f"{f'at {path!r} ' if path else ''}the {param}s are in a {kind}, the {grad}s in a {theirs.get(path)}"


def _containers(tree: PyTree, path: Any = ()) -> dict[str, str]:
    """The classes of the nodes of `tree` that are no leaves, by their paths."""
    children = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda node: node is not tree)
    if len(children) == 1 and children[0][0] == ():
        return {}
    own = {_path_string(path): type(tree).__name__}
    return functools.reduce(lambda found, child: found | _containers(child[1], (*path, *child[0])), children, own)


def describe_leaf(leaf: Any) -> str:
    """`leaf` in a few words: `float32[3,4]`, or its type."""
    if hasattr(leaf, "dtype") and hasattr(leaf, "shape"):
        return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
    return type(leaf).__name__


def listed(names: Iterable[Any], most: int = 6) -> str:
    """The first few of `names`, and how many there are beside them."""
    names = [str(name) for name in names]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def widen(leaf: Any) -> Any:
    """`leaf`, an array or a `jax.ShapeDtypeStruct`, in its compute dtype: float32 for anything narrower."""
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(leaf.shape, compute_dtype(leaf.dtype), sharding=leaf.sharding)
    leaf = leaf if isinstance(leaf, jax.Array) else jnp.asarray(leaf)
    return cast(leaf, compute_dtype(leaf.dtype))


def cast(leaf: Any, dtype: Any) -> Any:
    """`leaf`, an array, in `dtype`, strongly typed. What it is already is not traced, once for each of thousands of leaves."""
    return leaf if leaf.dtype == dtype and not leaf.weak_type else leaf.astype(dtype)


def stored(leaf: Any) -> Array:
    """`widen(leaf)`, infinite where the 16 bits of `leaf` are. XLA for GPUs drops a conversion to 16 bits and back, and would
    take for finite what overflows in memory."""
    dtype, wide = jnp.result_type(leaf), widen(leaf)
    if dtype not in (jnp.float16, jnp.bfloat16):
        return wide
    rounded = jax.lax.reduce_precision(wide, jnp.finfo(dtype).nexp, jnp.finfo(dtype).nmant)
    return jnp.where(jnp.isinf(rounded), rounded, wide)  # rounded would have no subnormal numbers


def placed_like(new: Array, old: Any) -> Array:
    """`new` sharded like `old` where the mesh has explicit axes: there the sharding is part of the type, which must not change
    when slots are spread over more devices than their parameter."""
    sharding = jax.typeof(old).sharding
    explicit = AxisType.Explicit in sharding.mesh.axis_types
    return jax.sharding.reshard(new, sharding) if explicit else new


def narrowed(spec: PartitionSpec, mesh: Any, shape: tuple[int, ...]) -> PartitionSpec:
    """`spec` for an array of another `shape` with as many axes: without what an axis cannot be divided by."""
    names = [entry if isinstance(entry, tuple) else () if entry is None else (entry,) for entry in spec]
    parts = [math.prod(mesh.shape[name] for name in own) for own in names]
    return PartitionSpec(*(entry if size % part == 0 else None for entry, size, part in zip(spec, shape, parts, strict=False)))


def with_auto_axes(function: Callable[..., Array], like: Array, shape: tuple[int, ...]) -> Callable[..., Array]:
    """`function`, whose result has as many axes as `like` and this `shape`, where the mesh has explicit axes: the compiler
    finds how what is inside is sharded, and the result is sharded as `like` is."""
    sharding = jax.typeof(like).sharding
    if AxisType.Explicit not in sharding.mesh.axis_types:
        return function
    placed: Any = jax.sharding.auto_axes(function, out_sharding=narrowed(sharding.spec, sharding.mesh, shape))
    return placed
