"""Clipping gradients, by value or by their global norm."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mithril_opt.core.fields import Number, shown
from mithril_opt.core.norm import Norm, norm_of
from mithril_opt.core.numerics import scalar_f32
from mithril_opt.core.tree import trains, widen
from mithril_opt.core.typing import Array, PyTree, Scalar

BOUND = Number(minimum=0, infinite=True)


def clip_gradients(gradients: PyTree, clip_value: Scalar | None = None, clip_norm: Scalar | None = None) -> PyTree:
    """Clip gradients to `[−clip_value, clip_value]` elementwise, or scale them down to the global norm `clip_norm`.

    By norm (Pascanu et al. 2013): `g ← g · min(1, clip_norm / ‖g‖)`, with ‖g‖ over all leaves. At or below the threshold the
    gradients are exactly what they were. If the norm is not finite they also come back unchanged: nothing is hidden and
    nothing zeroed. For a complex leaf, `clip_value` bounds real and imaginary part. Always give the bound by its name: the
    second position is `clip_value`, so that `clip_gradients(grads, 1.0)` is not PyTorch's `clip_grad_norm_(parameters, 1.0)`.

    Args:
        gradients: tree of arrays; None, float0 and integer leaves are handed back as they are and do not count.
        clip_value: bound for every element, ≥ 0.
        clip_norm: bound for the global norm, ≥ 0; infinity, of either bound, clips nothing.

    Returns:
        Gradients of the same structure, shapes and dtypes.

    Raises:
        ValueError: not exactly one of the two is given, or it is negative, NaN or no scalar.
        TypeError: it is no number.

    Example:
        >>> import jax.numpy as jnp
        >>> from mithril_opt import clip_gradients
        >>> clip_gradients({"w": jnp.array([3.0, 4.0])}, clip_norm=1.0)
        {'w': Array([0.6, 0.8], dtype=float32)}
    """
    if (clip_value is None) == (clip_norm is None):
        raise ValueError(
            f"give exactly one of clip_value and clip_norm, got clip_value={shown(clip_value)}, clip_norm={shown(clip_norm)}"
        )
    name, given = ("clip_value", clip_value) if clip_norm is None else ("clip_norm", clip_norm)
    bound = scalar_f32(BOUND.check(given, name))
    if bound.shape != ():
        raise ValueError(f"{name} must be a scalar, got shape {bound.shape}")
    if clip_norm is None:
        return _map_gradients(lambda grad: _clamp(grad, bound), gradients)
    factors = clip_factors(norm_of(gradients), bound)
    clips = factors[0] * factors[1] != 1
    # A product with 1 is not the identity: it flushes subnormal numbers.
    return _map_gradients(lambda grad: jnp.where(clips, times(grad, factors), grad), gradients)


def clip_factors(norm: Norm, clip_norm: Array) -> tuple[Array, Array]:
    """Two factors that bring a gradient of norm `norm` down to `clip_norm`: 1 and 1 at or below it, or if it is not finite.

    Two, because 1 / 3e38 is no normal float32 and would be flushed to 0.
    """
    clips = exceeds(norm, clip_norm)
    factor, divisor = norm.divisor()
    # The norm stays out of the quotient that is not chosen: of a small one the derivative is infinite.
    quotient = clip_norm.astype(divisor.dtype) / jnp.where(clips, divisor, 1)
    return jnp.where(clips, factor, 1), jnp.where(clips, quotient, 1)


def exceeds(norm: Norm, clip_norm: Array) -> Array:
    """Whether a gradient of norm `norm` is clipped: it is above the bound, and finite."""
    return (norm.value > clip_norm) & jnp.isfinite(norm.scaled)


def times(grad: Array, factors: Sequence[Array]) -> Array:
    """`grad` in float32 or wider, multiplied by each factor in turn."""
    grad = widen(grad)
    with jax.numpy_dtype_promotion("standard"):
        for factor in factors:
            grad = grad * factor.astype(grad.real.dtype)
    return grad


def _map_gradients(fun: Any, gradients: PyTree) -> PyTree:
    """`fun` on every gradient in float32 or wider, back in the dtype it came in."""

    def on_leaf(grad: Any) -> Any:
        if not trains(grad):
            return grad
        with jax.numpy_dtype_promotion("standard"):
            return fun(widen(grad)).astype(jnp.result_type(grad))

    return jax.tree.map(on_leaf, gradients)


def _clamp(grad: Array, bound: Array) -> Array:
    if jnp.iscomplexobj(grad):
        return jax.lax.complex(jnp.clip(grad.real, -bound, bound), jnp.clip(grad.imag, -bound, bound))
    return jnp.clip(grad, -bound, bound)
