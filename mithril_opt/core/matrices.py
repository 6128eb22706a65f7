"""Leaves read as matrices.

The matrix axes of a leaf are a pair (in, out), each an axis or a tuple of axes that are taken as one; every other axis counts
matrices. The field `matrix_axes` of a rule names them:

    None                 the two axes of a kernel (in, out); what has more or fewer is refused
    "stacked"            the last two; the ones before count layers
    "conv"               all but the last as in, the last as out: a kernel (height, width, in, out)
    (0, (1, 2))          the in-axis 0 and the out-axes 1 and 2 together: a kernel (in, heads, size)
    (0, 2)               the same kernel, a matrix for each head

or it is a function `(path, leaf) -> axes`. Axes that `unit_axes` names count layers, whatever is said here.
"""

import math
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mithril_opt.core.fields import shown
from mithril_opt.core.reductions import axes_at
from mithril_opt.core.typing import Array

NAMES = ("stacked", "conv")


def check_matrix_axes(where: str, axes: Any) -> None:
    """Raise a TypeError that begins with `where` unless `axes` may name the matrices in a leaf."""
    pair = isinstance(axes, tuple) and len(axes) == 2 and all(_is_side(side) for side in axes)
    if not (axes is None or axes in NAMES or pair or callable(axes)):
        raise TypeError(
            f"{where} must be None, 'stacked', 'conv', a pair of axes (in, out), or a function (path, leaf) -> axes; "
            f"got {shown(axes)}"
        )


def matrix_axes_at(where: str, axes: Any, units: Any, path: str, leaf: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What the field `axes` of a rule means at the leaf at `path`, whose axes `units` count layers: the pair (in, out), each a
    tuple of axes ≥ 0.

    Raises:
        ValueError: the leaf holds no such matrices; begins with the path and with `where`, the rule and its field.
    """
    chosen: Any = axes(path, leaf) if callable(axes) else axes
    layers = units or ()
    check_matrix_axes(f"at {path!r}: {where}", chosen)
    free = [axis for axis in range(np.ndim(leaf)) if axis not in layers]
    if chosen is None or chosen in NAMES:
        if len(free) < 2 or (chosen is None and len(free) > 2):
            wanted = "two" if chosen is None else "two or more"
            raise ValueError(
                f"at {path!r}: {where}={chosen!r} needs a leaf with {wanted} axes, got {np.shape(leaf)}; name the axes of its "
                "matrices, or put the leaf into another group"
            )
        return tuple(free[:-1] if chosen == "conv" else free[-2:-1]), (free[-1],)
    sides: list[tuple[int, ...]] = [side if isinstance(side, tuple) else (side,) for side in chosen]
    flat = axes_at(where, (*sides[0], *sides[1]), path, leaf) or ()
    if set(flat) & set(layers):
        raise ValueError(f"at {path!r}: {where} must name no axes that count layers, {tuple(layers)}, got {chosen!r}")
    return flat[: len(sides[0])], flat[len(sides[0]) :]


def as_matrices(x: Array, axes: tuple[tuple[int, ...], tuple[int, ...]]) -> Array:
    """`x` as an array (…, in, out) of matrices. Under explicit axes each matrix comes to lie on one device."""
    order, sizes = _order(x.ndim, axes), [math.prod(x.shape[axis] for axis in side) for side in axes]
    count = x.ndim - len(axes[0]) - len(axes[1])
    moved = whole(x.transpose(order), count)
    return moved.reshape(*moved.shape[:count], *sizes)


def from_matrices(matrices: Array, axes: tuple[tuple[int, ...], tuple[int, ...]], shape: tuple[int, ...]) -> Array:
    """The array of `shape` that `as_matrices` has turned into `matrices`."""
    order = _order(len(shape), axes)
    return matrices.reshape([shape[axis] for axis in order]).transpose(np.argsort(order))


def whole(x: Array, count: int) -> Array:
    """`x` with nothing but its first `count` axes sharded, where the mesh has explicit axes."""
    sharding = jax.typeof(x).sharding
    if all(entry is None for entry in sharding.spec[count:]):
        return x
    return jax.sharding.reshard(x, NamedSharding(sharding.mesh, P(*sharding.spec[:count], *[None] * (x.ndim - count))))


def _order(rank: int, axes: tuple[tuple[int, ...], tuple[int, ...]]) -> list[int]:
    """The axes of a leaf, those that count matrices first."""
    own = [*axes[0], *axes[1]]
    return [axis for axis in range(rank) if axis not in own] + own


def _is_side(side: Any) -> bool:
    axes = side if isinstance(side, tuple) else (side,)
    return all(isinstance(axis, int) and not isinstance(axis, bool) for axis in axes)
