"""A step that may not be taken, in the form that each platform carries out in place.

What is donated to a step should be overwritten, not copied. Which form of "update the state, or leave it" gives that depends on
the platform (`python -m benchmarks aot` counts the bytes):

- CPUs overwrite what a branch is given, but copy what is selected afterwards;
- GPUs give the results of a branch buffers of their own, but select while they write, and loop in place;
- TPUs do all of it in place, but a loop.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mithril_opt.core.tree import select
from mithril_opt.core.typing import Array, PyTree

Update = Callable[..., tuple[PyTree, PyTree]]
Otherwise = Callable[..., PyTree]


def update_if(
    condition: Array, update: Update, otherwise: Otherwise, state: PyTree, *inputs: PyTree, lazily: bool = False
) -> tuple[PyTree, PyTree]:
    """`update(state, *inputs)` if `condition` holds, else `(state, otherwise(state, *inputs))`.

    Derivatives are those of `jax.lax.cond`.

    Args:
        condition: boolean scalar.
        update: returns the new state and something besides, of the types that the state and `otherwise` have. It may close
            over what is not differentiated.
        otherwise: returns what there is besides the state when it is not updated.
        state: tree of arrays.
        inputs: trees of arrays that are only read.
        lazily: whether `update` must not run in vain, because it seldom runs at all or is expensive. Else it may run and be
            discarded.
    """
    # All forms call one jitted function, which is traced once.
    return _update_if(jax.jit(update), otherwise, lazily, condition, _varying(condition, state), inputs)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _update_if(
    update: Update, otherwise: Otherwise, lazily: bool, condition: Array, state: PyTree, inputs: tuple[PyTree, ...]
) -> tuple[PyTree, PyTree]:
    forms = {platform: functools.partial(form, update, otherwise) for platform, form in FORMS[lazily].items()}
    return jax.lax.platform_dependent(condition, state, inputs, **forms)


@_update_if.defjvp
def _jvp(update: Update, otherwise: Otherwise, lazily: bool, primals: Any, tangents: Any) -> Any:
    return jax.jvp(functools.partial(by_branch, update, otherwise), primals, tangents)


def by_branch(update: Update, otherwise: Otherwise, condition: Array, state: PyTree, inputs: tuple[PyTree, ...]) -> Any:
    """`update_if` as a branch."""
    keep = lambda state, *inputs: (state, otherwise(state, *inputs))  # noqa: E731
    return jax.lax.cond(condition, update, keep, state, *inputs)


def by_selection(update: Update, otherwise: Otherwise, condition: Array, state: PyTree, inputs: tuple[PyTree, ...]) -> Any:
    """`update_if` as a selection of the results, for which `update` always runs."""
    return select(condition, update(state, *inputs), (state, otherwise(state, *inputs)))


def by_loop(update: Update, otherwise: Otherwise, condition: Array, state: PyTree, inputs: tuple[PyTree, ...]) -> Any:
    """`update_if` as a loop of one turn or none. It has no derivative in reverse mode."""

    def turn(carry: tuple[Array, PyTree, PyTree]) -> tuple[Array, PyTree, PyTree]:
        again, state, _ = carry
        return (jnp.zeros_like(again), *update(state, *inputs))

    return jax.lax.while_loop(lambda carry: carry[0], turn, (condition, state, otherwise(state, *inputs)))[1:]


def _varying(condition: Array, state: PyTree) -> PyTree:
    """`state`; where `condition` varies over devices that `jax.shard_map` tells apart, `state` as something that does, too."""
    zero = jnp.int32(0)
    if jax.typeof(jnp.where(condition, zero, zero)) == jax.typeof(zero):
        return state
    return jax.tree.map(lambda leaf: jnp.where(condition, leaf, leaf), state)


# By `lazily` and platform.
FORMS = {
    False: {"cpu": by_branch, "default": by_selection},
    True: {"cpu": by_branch, "tpu": by_branch, "default": by_loop},
}


def zero_after(tree: PyTree) -> Any:
    """0, known on CPUs only when the arrays of `tree` are: what has it added to its input runs after them.

    Elsewhere it is a constant, since it would only be in the way: a GPU runs one thing after the other, and what is one loop
    there this would split.
    """
    arrays = [leaf for leaf in jax.tree.leaves(tree) if leaf.size and jnp.issubdtype(leaf.dtype, jnp.floating)]
    arrays = [leaf for leaf in arrays if not any(jax.typeof(leaf).sharding.spec)]  # of those, no element is everywhere
    zero, kinds = jnp.uint32(0), [jax.eval_shape(_read, [leaf]) for leaf in arrays]
    if len({*kinds}) > 1:
        # `jax.shard_map` tells some apart by device, and what they were added to, were it alike on all, no longer would be.
        arrays = [leaf for leaf, kind in zip(arrays, kinds, strict=True) if kind == jax.eval_shape(lambda: zero)]
    if not arrays:
        return zero
    return jax.lax.platform_dependent(arrays, cpu=_read, default=lambda arrays: _read(arrays) * zero)


def _read(arrays: list[Array]) -> Array:
    firsts = (array[(0,) * array.ndim].astype(jnp.float32) for array in arrays)
    zero = sum(((jax.lax.bitcast_convert_type(first, jnp.uint32) >> 31) >> 1 for first in firsts), jnp.uint32(0))
    # A division, which XLA does not repeat in every loop that reads the zero: that would be loops times arrays.
    return jax.lax.div(zero, jnp.uint32(3))
