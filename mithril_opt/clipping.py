"""Clipping gradients, by value or by their global norm."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mithril_opt._norm import global_norm
from mithril_opt._numerics import scalar_f32
from mithril_opt._tree import trains, widen
from mithril_opt._typing import Array, PyTree, Scalar


def clip_gradients(gradients: PyTree, clip_value: Scalar | None = None, clip_norm: Scalar | None = None) -> PyTree:
    """Clip gradients to `[−clip_value, clip_value]` elementwise, or scale them down to the global norm `clip_norm`.

    By norm (Pascanu et al. 2013): `g ← g · min(1, clip_norm / ‖g‖)`, with ‖g‖ over all leaves. At or below the threshold the
    gradients are exactly what they were. If the norm is not finite they also come back unchanged: nothing is hidden and
    nothing zeroed. For a complex leaf, `clip_value` bounds real and imaginary part.

    Args:
        gradients: tree of arrays; None, float0 and integer leaves are handed back as they are and do not count.
        clip_value: bound for every element, ≥ 0.
        clip_norm: bound for the global norm, ≥ 0.

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
            f"give exactly one of clip_value and clip_norm, got clip_value={clip_value!r}, clip_norm={clip_norm!r}"
        )
    bound = _checked("clip_value", clip_value) if clip_norm is None else _checked("clip_norm", clip_norm)
    if clip_norm is None:
        return _map_gradients(lambda grad: _clamp(grad, scalar_f32(bound)), gradients)
    first, second = clip_factors(global_norm(gradients), scalar_f32(bound))
    clips = first * second != 1
    # A product with 1 is not the identity: it flushes subnormal numbers.
    return _map_gradients(lambda grad: jnp.where(clips, grad * first * second, grad), gradients)


def _checked(name: str, bound: Any) -> Any:
    """`bound`, a scalar; if it is a number and not an array that may be traced, at least 0."""
    if hasattr(bound, "dtype") and not isinstance(bound, np.number):
        if bound.shape != ():
            raise ValueError(f"{name} must be a scalar, got shape {bound.shape}")
        return bound
    if isinstance(bound, bool) or not isinstance(bound, int | float | np.number):
        raise TypeError(f"{name} must be a number, got {bound!r} of type {type(bound).__name__}")
    if not bound >= 0:
        raise ValueError(f"{name} must be at least 0, got {bound!r}")
    return bound


def clip_factors(norm: Array, clip_norm: Array) -> tuple[Array, Array]:
    """Two factors that bring a gradient of norm `norm` down to `clip_norm`: 1 and 1 at or below it or if it is not finite.

    Two, because 1 / 3e38 is no normal float32 and would be flushed to 0.
    """
    clips = (norm > clip_norm) & jnp.isfinite(norm)
    first = jnp.where(clips & (norm > 2.0**64), jnp.float32(2.0**-64), 1)
    return first, jnp.where(clips, clip_norm / jnp.where(clips, norm * first, 1), 1)


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
