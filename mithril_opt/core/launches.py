"""Fewer kernels than small arrays, on GPUs.

A GPU takes as long to launch a kernel as to update a small array. XLA computes several results of one shape in one kernel if
they read an array in common. So small arrays are given one to read, which says that they are what they are; the compilers for
GPUs do not know what it says, all others know and drop it.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mithril_opt.core.typing import Array, PyTree

# The most elements of a small array, and how many of these read the same: XLA compares each with each.
SMALL, GROUP = 2**14, 64
# Whose compilers must not know what is read.
GPUS = ("cuda", "rocm")


def truths(arrays: Sequence[Any]) -> list[Array | None]:
    """For each array, or None, a boolean scalar that is true and that `if_true` wants; None for a large one."""
    small = [i for i, array in enumerate(arrays) if array is not None and math.prod(np.shape(array)) <= SMALL]
    read = _one_for_each_group(len(small)) if len(small) > 1 else [None]
    found = {i: read[n // GROUP] for n, i in enumerate(small)}
    return [found.get(i) for i in range(len(arrays))]


def _one_for_each_group(number: int) -> list[Array]:
    known = lambda: [jnp.ones(2, bool)] * -(-number // GROUP)  # noqa: E731
    unknown = lambda: jax.lax.optimization_barrier(known())  # noqa: E731
    # A scalar out of an array, and not an array of their shape, through which one array's sharding would reach the others.
    return [array[0] for array in jax.lax.platform_dependent(**dict.fromkeys(GPUS, unknown), default=known)]


def if_true(truth: Array | None, array: Array) -> Array:
    """`array` itself."""
    return array if truth is None else jax.lax.select(truth, array, jnp.zeros_like(array))


def together(tree: PyTree) -> PyTree:
    """`tree` itself, its small arrays such that GPUs treat them in one kernel."""
    leaves, structure = jax.tree.flatten(tree)
    return structure.unflatten([if_true(truth, leaf) for truth, leaf in zip(truths(leaves), leaves, strict=True)])
