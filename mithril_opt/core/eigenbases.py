"""Eigenbases of arrays: a rotation along every axis, and how the rotations follow the averages that they belong to.

The first `count` axes of an array count layers. The bases of the array are a tuple with the orthogonal matrices Q, an array
(layers, d, d), of each of its other axes, or None for an axis that is not rotated. All products are in full precision: bfloat16
would lose the small eigenvalues.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from mithril_opt.core.branch import zero_after
from mithril_opt.core.typing import Array

Bases: TypeAlias = tuple[Array | None, ...]
matmul = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


def rotate(x: Array, qs: Bases, count: int) -> Array:
    """`x` multiplied by Qᵀ along every axis."""
    return _along_each_axis(matmul, x, qs, count)


def rotate_back(x: Array, qs: Bases, count: int) -> Array:
    """`x` multiplied by Q along every axis, the inverse of `rotate`."""
    return _along_each_axis(lambda rows, q: matmul(rows, _transposed(q)), x, qs, count)


def reorder(x: Array, orders: Bases, count: int) -> Array:
    """`x` with its elements along every axis in another order, integers (layers, 1, d)."""
    return _along_each_axis(lambda rows, order: jnp.take_along_axis(rows, order, axis=-1), x, orders, count)


def outer_products(x: Array, qs: Bases, count: int) -> Bases:
    """For each axis that is rotated the products of `x` with itself, summed over all other axes: (layers, d, d)."""
    rows = (_rows(jnp.moveaxis(x, count + i, -1), count) for i in range(len(qs)))
    return tuple(None if q is None else matmul(_transposed(own), own) for q, own in zip(qs, rows, strict=True))


def eigenvectors(matrices: Array) -> tuple[Array]:
    """Those of each of `matrices` (…, d, d), symmetric, as columns."""
    return (jnp.linalg.eigh(matrices)[1],)


def improved(matrices: Array, qs: Array) -> tuple[Array, Array]:
    """A step of power iteration from `qs` towards the eigenvectors of `matrices`, and the order in which it took their columns,
    that of falling eigenvalues."""
    products = matmul(matrices, qs)
    order = jnp.argsort(-jnp.sum(qs * products, axis=-2, keepdims=True), axis=-1)
    return jnp.linalg.qr(jnp.take_along_axis(products, order, axis=-1))[0], order


def turns(new: Bases, old: Bases) -> Bases:
    """What takes coordinates in the `old` bases to those in the `new` ones, as bases: Q_oldᵀ Q_new."""
    pairs = zip(new, old, strict=True)
    return tuple(None if q is None or r is None else matmul(_transposed(r), q) for q, r in pairs)


def together(fun: Callable[..., tuple[Array, ...]], *columns: Sequence[Array]) -> list[list[Array]]:
    """`fun` of arrays (…, d, d), those of one type in one batch: for each of its results a list, as long as the columns."""
    groups: dict[Any, list[int]] = {}
    for i, matrix in enumerate(columns[0]):
        groups.setdefault(jax.typeof(matrix), []).append(i)
    rows: list[Any] = [None] * len(columns[0])
    results: tuple[Array, ...] = ()
    for members in groups.values():
        # Behind the axes that count layers, over which they may be sharded. One batch after the other: on a CPU a decomposition
        # waits for threads, and several at once may wait for each other's for ever.
        stacked = [jnp.stack([column[i] for i in members], axis=-3) for column in columns]
        stacked[0] += zero_after(results).astype(stacked[0].dtype)
        results = _with_automatic_axes(fun, stacked)
        for place, i in enumerate(members):
            rows[i] = [result[..., place, :, :] for result in results]
    return [list(column) for column in zip(*rows, strict=True)]


def _with_automatic_axes(fun: Callable[..., tuple[Array, ...]], arrays: list[Array]) -> tuple[Array, ...]:
    """`fun` of arrays that are sharded alike, as its results are. Under explicit axes JAX has no rule for those of a QR."""
    sharding = jax.typeof(arrays[0]).sharding
    if all(entry is None for entry in sharding.spec):
        return fun(*arrays)
    automatic: Any = jax.sharding.auto_axes(fun, out_sharding=sharding)
    return automatic(*arrays)


def _along_each_axis(fun: Callable[[Array, Array], Array], x: Array, qs: Bases, count: int) -> Array:
    """`fun` of the rows of `x` along each axis that has a Q, and of that Q."""
    for q in qs:  # each takes the first axis to the end
        x = jnp.moveaxis(x, count, -1)
        x = x if q is None else fun(_rows(x, count), q).reshape(x.shape)
    return x


def _rows(x: Array, count: int) -> Array:
    """`x` as matrices (layers, rows, d) whose rows are its last axis."""
    return x.reshape(*x.shape[:count], math.prod(x.shape[count:-1]), x.shape[-1])


def _transposed(matrices: Array) -> Array:
    return jnp.swapaxes(matrices, -1, -2)
