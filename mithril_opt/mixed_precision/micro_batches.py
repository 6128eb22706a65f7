"""A batch in pieces, one after the other within a step: a loop whose only buffer is the sum of the gradients."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mithril_opt.core.tree import leaves_with_paths, widen
from mithril_opt.core.typing import Array, PyTree


def in_turn(
    backward: Callable[[PyTree], Any], differentiated: PyTree, batch: PyTree, number: int
) -> tuple[Array, PyTree, PyTree]:
    """The mean loss and the mean gradients of `number` micro-batches, and what they return besides, stacked.

    Args:
        backward: from a micro-batch to its loss, what it returns besides, and its gradients.
        differentiated: what the gradients are shaped like.
        batch: tree of what is cut.
        number: of micro-batches, one of which alone is the batch itself.
    """
    if number == 1:
        return backward(batch)
    cut = _cutter(batch, number)

    def turn(sums: PyTree, i: Array) -> tuple[PyTree, tuple[Array, PyTree]]:
        loss, aux, grads = backward(cut(i))
        return jax.tree.map(lambda total, grad: total + widen(grad), sums, grads), (loss, aux)

    # A zero that lies, and under `jax.shard_map` varies, as the parameter does.
    zeros = jax.tree.map(lambda leaf: jnp.where(False, widen(leaf), jnp.zeros((), widen(leaf).dtype)), differentiated)
    sums, (losses, aux) = jax.lax.scan(turn, zeros, jnp.arange(number))
    # Divided after the loop: what a loop only adds up, compilers add up over devices once, behind it.
    mean = jax.tree.map(lambda total: total * jnp.asarray(1 / number, total.real.dtype), sums)
    return jnp.mean(widen(losses)).astype(losses.dtype), aux, mean


def _cutter(batch: PyTree, number: int) -> Callable[[Any], PyTree]:
    """A function from i to the i-th micro-batch: each `number`-th row, so that rows that are spread over devices stay there."""
    leaves, structure = jax.tree.flatten(batch)
    _check_lengths(batch, number)

    def split(leaf: Any) -> Callable[[Any], Any]:
        if jnp.ndim(leaf):
            rows = jnp.reshape(leaf, (-1, number, *jnp.shape(leaf)[1:]))
            return lambda i: jax.lax.dynamic_index_in_dim(rows, i, axis=1, keepdims=False)
        if jnp.issubdtype(getattr(leaf, "dtype", int), jax.dtypes.prng_key):
            keys = jax.random.split(leaf, number)
            return lambda i: keys[i]
        return lambda i: leaf

    pieces = [split(leaf) for leaf in leaves]
    return lambda i: structure.unflatten([piece(i) for piece in pieces])


def _check_lengths(batch: PyTree, number: int) -> None:
    """Raise a ValueError unless all arrays in `batch` have the same leading axis, a multiple of `number`."""
    found = [(path, jnp.shape(leaf)[0]) for path, leaf in leaves_with_paths(batch) if jnp.ndim(leaf)]
    for path, length in found:
        if length % number:
            raise ValueError(f"micro_batches={number} does not divide the {length} rows of the argument {path!r}")
        if length != found[0][1]:
            raise ValueError(
                f"the argument {path!r} has {length} rows, but {found[0][0]!r} has {found[0][1]}; what is no batch belongs "
                "into the closure of loss_fn"
            )
