"""The global norm of the gradients, and whether they are finite, in one pass.

A float32 square overflows above 1.8e19. On CPUs the squares are summed in float64, which nothing in float32 can overflow. Other
devices have no fast float64, but they fuse sums that read the same array, so there x² is split at B² = 2⁸⁰ into two float32
terms that cannot overflow a sum of 2³¹ elements,

    x² = min(x², B²) + (max((s x)², (s B)²) − (s B)²) / s²        with s = 2⁻⁸⁰,

the second of which is 0 unless |x| > B. Either way the sum of a leaf is infinite or NaN exactly if one of its elements is; and
when the gradients are sharded, all sums travel in one collective.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mithril_opt._tree import trains, widen
from mithril_opt._typing import Array, PyTree

B2 = np.float32(2.0**80)
SCALE = np.float32(2.0**-80)
SCALED_B2 = np.float32(2.0**-80)  # (s B)²; s² itself is no float32


def global_norm(tree: PyTree) -> Array:
    """The 2-norm of all floating and complex leaves together.

    It is accumulated in float32 across leaves and does not overflow while the true norm is a float32. None, float0, integer
    and other leaves do not count; the norm of an empty tree is 0.

    Args:
        tree: tree of arrays of any dtype and shape.

    Returns:
        float32 scalar; inf or NaN if an element is.

    Example:
        >>> import jax.numpy as jnp
        >>> from mithril_opt import global_norm
        >>> global_norm({"w": jnp.array([3.0]), "b": jnp.array([4.0])})
        Array(5., dtype=float32)
    """
    return norm_and_finite(tree)[0]


def norm_and_finite(tree: PyTree) -> tuple[Array, Array]:
    """The global norm of `tree`, a float32 scalar, and whether each of its floating and complex leaves is finite, a boolean
    vector in the order of `jax.tree.leaves`."""
    leaves = [widen(leaf) for leaf in jax.tree.leaves(tree) if trains(leaf)]
    return _compiled(leaves) if leaves else (jnp.float32(0), jnp.ones(0, bool))


@jax.jit  # so that a call outside jit compiles itself once
def _compiled(leaves: list[Array]) -> tuple[Array, Array]:
    return _norm_and_finite(leaves)


@jax.custom_jvp  # its own derivative would be NaN at 0
def _norm_and_finite(leaves: list[Array]) -> tuple[Array, Array]:
    parts = [[leaf.real, leaf.imag] if jnp.iscomplexobj(leaf) else [leaf] for leaf in leaves]
    parts = jax.tree.map(lambda part: part.astype(jnp.float32), parts)
    return jax.lax.platform_dependent(parts, cpu=in_float64, default=in_float32)


def in_float64(leaves: list[list[Array]]) -> tuple[Array, Array]:
    """Norm and finiteness of leaves given as lists of their real parts."""
    with jax.enable_x64(True):
        wide = [[jax.lax.convert_element_type(part, np.float64) for part in leaf] for leaf in leaves]
        sums = jnp.stack([sum(jnp.sum(part * part) for part in leaf) for leaf in wide])
        return jax.lax.convert_element_type(jnp.sqrt(jnp.sum(sums)), np.float32), jnp.isfinite(sums)


def in_float32(leaves: list[list[Array]]) -> tuple[Array, Array]:
    """The same with float32 alone."""
    below = [sum(jnp.sum(jnp.minimum(x * x, B2)) for x in leaf) for leaf in leaves]
    above = [sum(jnp.sum(jnp.maximum((x * SCALE) * (x * SCALE), SCALED_B2) - SCALED_B2) for x in leaf) for leaf in leaves]
    below, above = jnp.stack(below), jnp.stack(above)
    return jnp.hypot(jnp.sqrt(jnp.sum(below)), jnp.sqrt(jnp.sum(above)) / SCALE), jnp.isfinite(above)


@_norm_and_finite.defjvp
def _jvp(primals: tuple[list[Array]], tangents: tuple[list[Array]]) -> Any:
    """d‖x‖ = Re⟨x, dx⟩ / ‖x‖, taken as 0 at x = 0."""
    (leaves,), (directions,) = primals, tangents
    norm, finite = _norm_and_finite(leaves)
    slope = jnp.float32(0)
    for leaf, direction in zip(leaves, directions, strict=True):
        unit = leaf / jnp.where(norm == 0, 1, norm).astype(jnp.real(leaf).dtype)
        slope += jnp.sum(jnp.real(jnp.conj(unit) * direction)).astype(jnp.float32)
    return (norm, finite), (slope, np.zeros(finite.shape, jax.dtypes.float0))
