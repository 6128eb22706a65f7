"""The arithmetic that rules share."""

from typing import Any

import jax
import jax.numpy as jnp

from mithril_opt.core.decay_rate import DecayRate
from mithril_opt.core.typing import Array, PyTree, Scalar


def ema(beta: Any, average: Array, x: Array) -> Array:
    """β a + (1 − β) x: the exponential moving average with `x` in it.

    Args:
        beta: β, a `DecayRate`, or a real number.
        average: a, the average so far; float32 or wider.
        x: of the same dtype and shape.

    Example:
        >>> import jax.numpy as jnp
        >>> from mithril_opt import ema
        >>> ema(0.75, jnp.array([1.0]), jnp.array([3.0]))
        Array([1.5], dtype=float32)
    """
    beta = beta if isinstance(beta, DecayRate) else DecayRate(beta)
    return beta.value * average + beta.complement * x


def abs_sq(x: Array) -> Array:
    """|x|², real for a complex `x`; a second moment is the average of it.

    Args:
        x: real or complex array.

    Example:
        >>> import jax.numpy as jnp
        >>> from mithril_opt import abs_sq
        >>> abs_sq(jnp.array([3 + 4j]))
        Array([25.], dtype=float32)
    """
    return jnp.real(x) ** 2 + jnp.imag(x) ** 2 if jnp.iscomplexobj(x) else x * x


@jax.custom_jvp
def safe_sqrt(x: Array) -> Array:
    """√x, with the derivative 0 at 0, where it is infinite.

    Args:
        x: real array, ≥ 0.

    Example:
        >>> import jax
        >>> from mithril_opt import safe_sqrt
        >>> jax.value_and_grad(safe_sqrt)(0.0)
        (Array(0., dtype=float32, weak_type=True), Array(0., dtype=float32, weak_type=True))
    """
    return jnp.sqrt(x)


@safe_sqrt.defjvp
def _safe_sqrt_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    root = safe_sqrt(x)
    return root, jnp.where(x == 0, 0, dx / (2 * jnp.where(x == 0, 1, root)))


@jax.custom_jvp
def safe_divide(a: Array, b: Array) -> Array:
    """a / b, which is 0 with the derivative 0 where b is 0: where nothing was ever seen, nothing moves.

    Args:
        a: real or complex array.
        b: real array of a shape that goes with that of `a`.

    Example:
        >>> import jax.numpy as jnp
        >>> from mithril_opt import safe_divide
        >>> safe_divide(jnp.array([0.0, 1.0]), jnp.array([0.0, 2.0]))
        Array([0. , 0.5], dtype=float32)
    """
    with jax.numpy_dtype_promotion("standard"):  # a may be complex
        quotient = a / b
        zero = jnp.zeros_like(quotient)
        # `where` is a call, one more for each of thousands of leaves; `b == 0` may be sharded otherwise than the quotient.
        return jax.lax.select(b == zero, zero, quotient)


@safe_divide.defjvp
def _safe_divide_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    (a, b), (da, db) = primals, tangents
    quotient = safe_divide(a, b)
    with jax.numpy_dtype_promotion("standard"):
        return quotient, jnp.where(b == 0, 0, (da - quotient * db) / jnp.where(b == 0, 1, b))


def compute_dtype(dtype: Any) -> Any:
    """The dtype that arithmetic on a leaf of `dtype` is done in: float32 or complex64 at least."""
    wide = jnp.issubdtype(dtype, jnp.complexfloating) or dtype == jnp.float64
    return jnp.dtype(dtype) if wide else jnp.dtype(jnp.float32)


def real_dtype(dtype: Any) -> Any:
    """The dtype of the real part of a floating or complex `dtype`."""
    return jnp.finfo(dtype).dtype


def widest_real(params: PyTree) -> Any:
    """The dtype of a number that is about all of `params`: that of the widest real part in their arithmetic."""
    dtypes = (real_dtype(compute_dtype(jnp.result_type(leaf))) for leaf in jax.tree.leaves(params))
    return max(dtypes, default=jnp.dtype(jnp.float32), key=lambda dtype: dtype.itemsize)


def zeros(param: Array) -> Array:
    """Zeros shaped and sharded like `param`, in its compute dtype (float32 or wider): an empty first moment.

    Args:
        param: floating or complex array, or a `jax.ShapeDtypeStruct`.

    Example:
        >>> import jax.numpy as jnp
        >>> from mithril_opt import zeros
        >>> zeros(jnp.ones(2, jnp.bfloat16))
        Array([0., 0.], dtype=float32)
    """
    return jnp.zeros_like(param, dtype=compute_dtype(param.dtype))


def real_zeros(param: Array) -> Array:
    """Zeros shaped and sharded like `param`, in the real dtype of its arithmetic: an empty second moment.

    Args:
        param: floating or complex array, or a `jax.ShapeDtypeStruct`.

    Example:
        >>> import jax.numpy as jnp
        >>> from mithril_opt import real_zeros
        >>> real_zeros(jnp.ones(2, jnp.complex64))
        Array([0., 0.], dtype=float32)
    """
    return jnp.zeros_like(param, dtype=real_dtype(compute_dtype(param.dtype)))


def saturating_increment(step: Array) -> Array:
    """`step + 1`, or the largest int32 from there on; strongly typed, also for a step that was set to a Python number."""
    return jnp.minimum(jax.lax.convert_element_type(step, jnp.int32), jnp.iinfo(jnp.int32).max - 1) + 1


def scalar_f32(value: Scalar) -> Array:
    """`value` in float32, strongly typed."""
    return jax.lax.convert_element_type(value, jnp.float32)
