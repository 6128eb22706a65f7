"""The few numbers that need care in float32."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mithril_opt._typing import Array, Scalar

LARGEST = np.finfo(np.float32).max


def integer_power(base: Any, n: Array) -> Array:
    """baseⁿ for an integer n ≥ 0, float32; what overflows is the largest float32.

    A float32 base would cost n · 3e-8 of relative accuracy: 0.3 % after 100,000 steps. A Python number is therefore raised in
    float64 to the powers d · 16ʲ that the hexadecimal digits d of n call for, and at most eight factors are multiplied.
    """
    if not isinstance(base, float):
        base, exponent = scalar_f32(base), n.astype(jnp.float32)
        overflows = exponent * jnp.log(base) >= jnp.log(LARGEST)
        # The derivative is taken as 0 where the power is 0⁰ = 1 and where it overflows.
        power = jnp.where(overflows, 1, base) ** jnp.maximum(exponent, 1)
        return jnp.where(overflows, LARGEST, jnp.where(n == 0, 1, power))
    with np.errstate(over="ignore", under="ignore"):
        table = np.power(base, np.arange(16.0) * 16.0 ** np.arange(8.0)[:, None]).astype(np.float32)
    digits = [(n >> 4 * place) & 15 for place in range(8)]
    power = math.prod((jnp.asarray(row)[digit] for row, digit in zip(table, digits, strict=True)), start=jnp.float32(1))
    return jnp.minimum(power, LARGEST)


def half_cosine(n: Array, period: Any, half_turns: Any = 1) -> Array:
    """½ (1 + cos(π h n / T)) for an integer n ≥ 0, T = `period` and h = `half_turns`, float32.

    Written as sin²(π x / 2) with x the distance of h n / T from the next odd integer, which keeps its relative accuracy where
    the cosine nears −1. For an integer h that distance is exact; what h has beyond an integer is added as a real number.
    """
    half_turns = scalar_f32(half_turns)
    whole = jnp.round(half_turns)
    turns, place = jnp.divmod(n, period)
    quotient, rest = multiple_divmod(whole, place, period)
    odd = (whole.astype(jnp.int32) * turns + quotient) % 2 == 1
    beyond = (half_turns - whole) * ratio(n, period)
    distance = ratio(jnp.where(odd, rest, period - rest), period)
    return half_wave(distance + jnp.where(odd, beyond, -beyond))


def half_wave(fraction: Array) -> Array:
    """sin²(π x / 2): from 0 at x = 0 along a cosine to 1 at x = 1."""
    return jnp.sin(jnp.pi / 2 * fraction) ** 2


def between(start: Any, end: Any, done: Any, left: Any, weight: Callable[[Array], Array] = lambda x: x) -> Array:
    """The point `done` behind `start` and `left` before `end`: w(left / (done + left)) start + w(done / (done + left)) end.

    The weights w(x) + w(1 − x) = 1 are computed apart, so that the value keeps its relative accuracy where it nears 0.

    Args:
        start, end: the values at done = 0 and at left = 0; `end` also where both are 0.
        done, left: integers or reals, ≥ 0.
        weight: w, the identity for a straight line, `half_wave` for a cosine.
    """
    total = done + left
    return weight(ratio(left, total)) * start + weight(ratio(done, total, empty=1)) * end


def ratio(numerator: Any, denominator: Any, empty: float = 0) -> Array:
    """The quotient of two integers or reals, each rounded to float32 once; `empty` where the denominator is 0."""
    numerator, denominator = scalar_f32(numerator), scalar_f32(denominator)
    return jnp.where(denominator == 0, empty, numerator / jnp.where(denominator == 0, 1, denominator))


def multiple_divmod(m: Any, n: Array, period: Any) -> tuple[Array, Array]:
    """divmod(m n, T) as int32, for 0 ≤ n < T = `period` and 0 ≤ m < 100,000, although m n may not fit 32 bits."""
    m, n, period = (jax.lax.convert_element_type(x, jnp.uint32) for x in (m, n, period))
    # Too small by one at most, so that the rest fits 32 bits and the products may wrap around.
    quotient = jnp.floor(scalar_f32(m) * ratio(n, period) * (1 - 1e-6)).astype(jnp.uint32)
    rest = m * n - quotient * period
    over = rest >= period
    return (quotient + over.astype(jnp.uint32)).astype(jnp.int32), jnp.where(over, rest - period, rest).astype(jnp.int32)


def abs_sq(x: Array) -> Array:
    """|x|², real for a complex `x`."""
    return jnp.real(x) ** 2 + jnp.imag(x) ** 2 if jnp.iscomplexobj(x) else x * x


def compute_dtype(dtype: Any) -> Any:
    """The dtype that arithmetic on a leaf of `dtype` is done in: float32 or complex64 at least."""
    wide = jnp.issubdtype(dtype, jnp.complexfloating) or dtype == jnp.float64
    return jnp.dtype(dtype) if wide else jnp.dtype(jnp.float32)


def real_dtype(dtype: Any) -> Any:
    """The dtype of the real part of a floating or complex `dtype`."""
    return jnp.finfo(dtype).dtype


def zeros(param: Array) -> Array:
    """Zeros shaped and sharded like `param`, in its compute dtype: an empty first moment."""
    return jnp.zeros_like(param, dtype=compute_dtype(param.dtype))


def real_zeros(param: Array) -> Array:
    """Zeros shaped and sharded like `param`, in its real compute dtype: an empty second moment."""
    return jnp.zeros_like(param, dtype=real_dtype(compute_dtype(param.dtype)))


def saturating_increment(step: Array) -> Array:
    """`step + 1`, or the largest int32 from there on."""
    return jnp.minimum(step, jnp.iinfo(jnp.int32).max - 1) + 1


def scalar_f32(value: Scalar) -> Array:
    """`value` in float32, strongly typed."""
    return jax.lax.convert_element_type(value, jnp.float32)
