"""The global norm of the gradients, and whether they are finite, in one pass.

A float32 square overflows above 1.8e19. On CPUs the squares are summed in float64, which nothing in float32 can overflow. Other
devices have no fast float64, but they fuse sums that read the same array, so there x² is split at B² into two terms that
cannot overflow a sum of 2³¹ elements,

    x² = min(|x|, B)² + (max(s |x|, s B)² − (s B)²) / s²        with B = 2⁴⁰, s = 2⁻⁸⁰,

the second of which is 0 unless |x| > B. GPUs add up a large array in two kernels, and only the first is fused with another sum;
there both terms are the parts of one complex number. Whatever the form, the sum of a leaf is infinite or NaN exactly if one of
its elements is; and when the gradients are sharded, all sums travel in one collective. Leaves of float64 are split in float64,
on every device.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mithril_opt.core.launches import if_true, truths
from mithril_opt.core.numerics import abs_sq
from mithril_opt.core.tree import stored, trains, widen
from mithril_opt.core.typing import Array, PyTree

# A norm above this is used in the form that is scaled down by it.
LARGE = 2.0**64
# B and s.
BOUND, SCALE = 2.0**40, 2.0**-80


class Norm(NamedTuple):
    """The norm of a tree.

    Attributes:
        value: the norm, float32 scalar; infinite where no float32 holds it.
        scaled: the norm / 2⁶⁴, float32 or float64 scalar; finite whenever all elements are.
        finite: whether each floating and complex leaf is finite, boolean vector in the order of `jax.tree.leaves`.
    """

    value: Array
    scaled: Array
    finite: Array

    def divisor(self) -> tuple[Array, Array]:
        """Two numbers f, d > 0 with x / norm = f x / d, which neither overflow nor let x vanish; 1 and 1 for a norm of 0."""
        dtype, large = self.scaled.dtype, self.value > LARGE
        value = self.scaled * LARGE if dtype == jnp.float64 else self.value
        small = jnp.where(value == 0, jnp.ones((), dtype), value)
        return jnp.where(large, 1 / LARGE, 1).astype(dtype), jnp.where(large, self.scaled, small)


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
    return norm_of(tree).value


def norm_of(tree: PyTree) -> Norm:
    """The norm of all floating and complex leaves of `tree` together, and whether each of them is finite."""
    leaves = [stored(leaf) for leaf in jax.tree.leaves(tree) if trains(leaf)]
    if not leaves:
        return Norm(jnp.float32(0), jnp.float32(0), jnp.ones(0, bool))
    value, scaled, bad = _compiled(leaves)
    return Norm(value, scaled, bad == 0)


def norms_of_step(params: PyTree, updates: PyTree) -> tuple[Array, Array]:
    """The norms of `updates`, None where nothing moves, and of the parameters that move: float32, infinite from 1e19 on.

    They have no derivative. Sums along the last axis are ones that a GPU makes while it computes the updates, with no pass
    over memory for them; sums over a whole array it makes afterwards.
    """
    pairs = zip(jax.tree.structure(params).flatten_up_to(updates), jax.tree.leaves(params), strict=True)
    moving = jax.lax.stop_gradient([(widen(update), widen(param)) for update, param in pairs if update is not None])
    rows = jax.lax.optimization_barrier([_squares_of_rows(*pair) for pair in moving])
    totals = [[jnp.sum(row).astype(jnp.float32) for row in column] for column in zip(*rows, strict=True)] or [[], []]
    update, param = (jnp.sqrt(sum(total, start=jnp.float32(0))) for total in totals)
    return update, param


def _squares_of_rows(update: Array, param: Array) -> tuple[Array, Array]:
    squares = abs_sq(update), abs_sq(param)
    if squares[0].ndim == 0:
        return squares
    zeros = tuple(jnp.zeros((), square.dtype) for square in squares)
    return jax.lax.reduce(squares, zeros, lambda a, b: (a[0] + b[0], a[1] + b[1]), (squares[0].ndim - 1,))


def first_bad_leaf(params: PyTree, grads: PyTree, finite: Array) -> Array:
    """The position among the leaves of `params` of the first gradient that is not `finite`, which `norm_of(grads)` knows;
    −1 if all are."""
    given = [i for i, grad in enumerate(jax.tree.structure(params).flatten_up_to(grads)) if grad is not None]
    first = jnp.asarray(given, jnp.int32)[jnp.argmin(finite)] if given else -1
    return jnp.where(jnp.all(finite), jnp.int32(-1), first)


@jax.jit  # so that a call outside jit compiles itself once
def _compiled(leaves: list[Array]) -> tuple[Array, Array, Array]:
    return _norm(leaves)


@jax.custom_jvp  # its own derivative would be NaN at 0
def _norm(leaves: list[Array]) -> tuple[Array, Array, Array]:
    """The norm, the scaled norm, and 1.0 for every leaf that is not finite."""
    parts = [[leaf.real, leaf.imag] if jnp.iscomplexobj(leaf) else [leaf] for leaf in leaves]
    if any(part.dtype == jnp.float64 for leaf in parts for part in leaf):
        return _split(jax.tree.map(lambda part: part.astype(jnp.float64), parts), 2.0**480, 2.0**-560)
    return jax.lax.platform_dependent(parts, cpu=in_float64, cuda=in_complex64, rocm=in_complex64, default=in_float32)


def in_float64(leaves: list[list[Array]]) -> tuple[Array, Array, Array]:
    """The norm of leaves given as lists of their float32 real parts."""
    with jax.enable_x64(True):
        sums = jnp.stack([sum(map(_wide_sum, leaf)) for leaf in leaves])
        norm = jnp.sqrt(jnp.sum(sums))
        results = norm, norm / LARGE, ~jnp.isfinite(sums)
        return tuple(jax.lax.convert_element_type(result, np.float32) for result in results)  # pyright: ignore[reportReturnType]


def in_float32(leaves: list[list[Array]]) -> tuple[Array, Array, Array]:
    """The same with float32 alone."""
    return _split(leaves, BOUND, SCALE)


def in_complex64(leaves: list[list[Array]]) -> tuple[Array, Array, Array]:
    """The same with the two float32 terms as one complex number, and small leaves together."""
    parts, structure = jax.tree.flatten(leaves)
    sums = structure.unflatten([_paired_sum(part, truth) for part, truth in zip(parts, truths(parts), strict=True)])
    both = jnp.stack([sum(leaf) for leaf in sums])
    return _total(both.real, both.imag, SCALE)


def _split(leaves: list[list[Array]], bound: float, scale: float) -> tuple[Array, Array, Array]:
    """The norm in the dtype of `leaves`, with B = `bound` and s = `scale`."""
    sums = [[_split_sum(part, bound, scale) for part in leaf] for leaf in leaves]
    below, above = (jnp.stack([sum(part[i] for part in leaf) for leaf in sums]) for i in (0, 1))
    return _total(below, above, scale)


def _total(below: Array, above: Array, scale: float) -> tuple[Array, Array, Array]:
    small, large = jnp.sqrt(jnp.sum(below)), jnp.sqrt(jnp.sum(above))
    scaled = jnp.hypot(small / LARGE, large * (1 / scale / LARGE))
    value = jnp.hypot(small, large / np.asarray(scale, large.dtype))
    return value.astype(jnp.float32), scaled, (~jnp.isfinite(above)).astype(jnp.float32)


# Each is traced once for leaves of one shape.


@jax.jit
def _wide_sum(x: Array) -> Array:
    wide = jax.lax.convert_element_type(x, np.float64)
    return jnp.sum(wide * wide)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _split_sum(x: Array, bound: float, scale: float) -> tuple[Array, Array]:
    below, above = _terms(x, bound, scale)
    return jnp.sum(below), jnp.sum(above)


@jax.jit
def _paired_sum(x: Array, truth: Array | None) -> Array:
    return jnp.sum(jax.lax.complex(*_terms(if_true(truth, x), BOUND, SCALE)))


def _terms(x: Array, bound: float, scale: float) -> tuple[Array, Array]:
    """min(|x|, B)², and what is missing of x², times s²."""
    b, s, sb, sb2 = (np.asarray(number, x.dtype) for number in (bound, scale, scale * bound, (scale * bound) ** 2))
    # The bounds stand inside the squares: of (s x)² XLA would make s² x², and s² is no float32.
    return jnp.square(jnp.minimum(jnp.abs(x), b)), jnp.square(jnp.maximum(jnp.abs(x) * s, sb)) - sb2


@_norm.defjvp
def _jvp(primals: tuple[list[Array]], tangents: tuple[list[Array]]) -> Any:
    """d‖x‖ = Re⟨x, dx⟩ / ‖x‖, taken as 0 at x = 0."""
    (leaves,), (directions,) = primals, tangents
    value, scaled, bad = _norm(leaves)
    factor, divisor = Norm(value, scaled, bad == 0).divisor()
    with jax.numpy_dtype_promotion("standard"):
        units = [leaf * factor.astype(leaf.real.dtype) / divisor.astype(leaf.real.dtype) for leaf in leaves]
        parts = [jnp.sum(jnp.real(jnp.conj(unit) * dx)) for unit, dx in zip(units, directions, strict=True)]
    slope = jnp.sum(jnp.stack([part.astype(jnp.float32) for part in parts]))
    return (value, scaled, bad), (slope, (slope / LARGE).astype(scaled.dtype), jnp.zeros_like(bad))
