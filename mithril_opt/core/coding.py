"""Float32 in fewer bits: bfloat16, bfloat16 with a remainder, and codes of 8 bits with a scale per block.

What does not fit is dithered: a number between two that can be stored becomes the upper one in the share of all steps that
keeps its mean right. A slow average that is rounded to nearest stands still as soon as a step changes it by less than half a
unit. The threshold of element i in step k is the Weyl sequence

    θ = (i φ + k ψ + salt) mod 2³²        φ = 0x9E3779B9, ψ = 0xC13FA9A9

It needs no random numbers, it depends on the step and the position alone, and in time it is spread more evenly than they are.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mithril_opt.core.state import exported
from mithril_opt.core.tree import with_auto_axes
from mithril_opt.core.typing import Array

PHI, PSI = 0x9E3779B9, 0xC13FA9A9
# float32 as bits; the smallest ordinary number, and the largest that a bfloat16 holds.
SIGN, INFINITY, NAN = np.uint32(1 << 31), np.uint32(0x7F800000), np.uint32(0x7FC00000)
SMALLEST, LARGEST = np.uint32(0x00800000), np.uint32(0x7F7F0000)
UPPER = np.uint32(0xFFFF0000)
LEVELS, MOST_PER_SCALE = 127, 256
# So that the smallest code is an ordinary number under every scale.
LEAST_SCALE = np.float32(2.0**-98)
# How a TPU lays out float32.
ROWS, LANES = 8, 128


@exported
class Coded(NamedTuple):
    """A float32 array in 8 bits: sign(c) (|c| / 127)⁴ · scale.

    Attributes:
        codes: c, int8, in the shape of the array.
        scales: float32, the largest magnitude in each block of up to 256 elements along the last axis, which they divide; 2⁻⁹⁸
            at least.
    """

    codes: Array
    scales: Array


def thresholds(shape: tuple[int, ...], step: Any, salt: int) -> Array:
    """θ for an array of `shape`: uint32."""
    strides = [int(np.prod(shape[axis + 1 :], dtype=np.int64)) for axis in range(len(shape))]
    terms = [jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * _uint32(stride * PHI) for axis, stride in enumerate(strides)]
    return sum(terms, jnp.asarray(step, jnp.uint32) * _uint32(PSI) + _uint32(salt))


@jax.custom_jvp
def to_bfloat16(x: Array, theta: Array) -> Array:
    """`x`, float32, in bfloat16, dithered. What is finite stays finite, and what is not zero does not become zero."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    magnitude = bits & ~SIGN
    dithered = jnp.clip(magnitude + (theta >> 16), SMALLEST, LARGEST)
    exact = magnitude - np.uint32(1) >= INFINITY - np.uint32(1)  # 0, infinity or NaN, in one comparison
    return jax.lax.platform_dependent(
        jnp.where(exact, magnitude, dithered) | bits & SIGN, cpu=_upper_half_by_uint16, default=_upper_half
    )


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def split(x: Array, bits: int, theta: Array) -> tuple[Array, Array | None]:
    """`x`, float32, as the nearest bfloat16 and a remainder of 16, 8 or 0 `bits`, an int16, an int8 or None.

    With 16 bits nothing is lost; with 8 the last of the 24 bits is dithered; with none the bfloat16 itself is.
    """
    if bits == 0:
        return to_bfloat16(x, theta), None
    whole = jax.lax.bitcast_convert_type(x, jnp.uint32)
    magnitude = whole & ~SIGN
    # With 16 bits the threshold is 0; that XLA cannot know it makes it work out x once and not for either half.
    dithered = jnp.minimum(magnitude + (theta >> 16 >> bits), INFINITY - np.uint32(1))
    special = jnp.where(magnitude > INFINITY, NAN, INFINITY)
    whole = jnp.where(magnitude < INFINITY, dithered, special) | whole & SIGN
    # Half a unit up in magnitude, so that the remainder, read as a signed number, leads back.
    upper = _upper_half(whole + np.uint32(0x8000))
    remainder = jax.lax.bitcast_convert_type(whole - _bits_of(upper), jnp.int32) >> (16 - bits)
    return upper, remainder.astype(jnp.int16 if bits == 16 else jnp.int8)


@jax.custom_jvp
def join(x: Array, remainder: Array | None) -> Array:
    """The float32 that `split` took apart."""
    if remainder is None:
        return x.astype(jnp.float32)
    upper = _bits_of(x)
    rest = remainder.astype(jnp.int32) << (0 if remainder.dtype == jnp.int16 else 8)
    return jax.lax.bitcast_convert_type(upper + jax.lax.bitcast_convert_type(rest, jnp.uint32), jnp.float32)


# Derivatives are those of numbers that nobody has rounded, as of any other conversion; bits would have none.


@to_bfloat16.defjvp
def _(primals: tuple[Array, Array], tangents: tuple[Array, Any]) -> tuple[Array, Array]:
    return to_bfloat16(*primals), tangents[0].astype(jnp.bfloat16)


@split.defjvp
def _(bits: int, primals: tuple[Array, Array], tangents: tuple[Array, Any]) -> tuple[Any, Any]:
    upper, remainder = split(primals[0], bits, primals[1])
    none = None if remainder is None else np.zeros(remainder.shape, jax.dtypes.float0)
    return (upper, remainder), (tangents[0].astype(jnp.bfloat16), none)


@join.defjvp
def _(primals: tuple[Array, Array | None], tangents: tuple[Array, Any]) -> tuple[Array, Array]:
    return join(*primals), tangents[0].astype(jnp.float32)


def block_of(shape: tuple[int, ...]) -> int:
    """How many elements along the last axis share a scale: its largest divisor up to 256. Rows have scales of their own: those
    of an embedding differ by orders of magnitude, as their tokens' frequencies do."""
    return _divisor(shape[-1], MOST_PER_SCALE)


def encode(x: Array, theta: Array) -> Coded:
    """`x`, float32 with an axis at least, in 8 bits, dithered. What is not zero does not become zero. It has no derivative."""
    x = jax.lax.stop_gradient(x)
    scales = jnp.maximum(_largest(x), LEAST_SCALE)
    unit = jnp.abs(x) * _spread(np.float32(LEVELS**4) / scales, x)  # 1 / scales may be too small for an ordinary number
    below = jnp.floor(jnp.sqrt(jnp.sqrt(unit)))
    low, high = _fourth(below), _fourth(below + 1)
    # From 2⁻¹² to 1 − 2⁻¹²: what is on the grid stays there, although the roots are rounded.
    share = (theta >> 8).astype(jnp.float32) * np.float32(2.0**-24 * (1 - 2.0**-11)) + np.float32(2.0**-12)
    code = jnp.maximum(below + (unit - low > share * (high - low)).astype(jnp.float32), 1)
    return Coded((jnp.sign(x) * code).astype(jnp.int8), scales)


def decode(coded: Coded) -> Array:
    """The float32 array that `coded` stands for."""
    unit = coded.codes.astype(jnp.float32) * np.float32(1 / LEVELS)  # 1 for a code of 127
    return unit * jnp.abs(unit) * (unit * unit) * _spread(coded.scales, coded.codes)


def _bits_of(x: Array) -> Array:
    """The bits of a bfloat16 as a float32."""
    return jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)


def _upper_half(bits: Array) -> Array:
    """The bfloat16 of the upper half of these `bits` of a float32, not NaN. By way of uint16 a TPU would need a loop more."""
    return jax.lax.bitcast_convert_type(bits & UPPER, jnp.float32).astype(jnp.bfloat16)


def _upper_half_by_uint16(bits: Array) -> Array:
    """The same, where rounding what is round takes a CPU longer."""
    return jax.lax.bitcast_convert_type((bits >> 16).astype(jnp.uint16), jnp.bfloat16)


def _uint32(number: int) -> np.uint32:
    return np.uint32(number & 0xFFFFFFFF)


def _fourth(x: Array) -> Array:
    return (x * x) * (x * x)


def _divisor(n: int, limit: int) -> int:
    return max((divisor for divisor in range(1, limit + 1) if n % divisor == 0), default=1)


def _tiles(shape: tuple[int, ...]) -> tuple[int, ...]:
    """`shape` with its last two axes in parts of a block or less, in the order in which a TPU has them in memory but for the
    transposition of the third and second axis from the last: (…, rows / r, r, columns / c, c)."""
    rows, columns = (1, *shape)[-2:]
    r, c = _divisor(rows, ROWS), _divisor(block_of(shape), LANES)
    return (*shape[:-2], rows // r, r, columns // c, c)


def _spread(scales: Array, like: Array) -> Array:
    """`scales` repeated over their blocks. They are reshaped, not the codes: a loop over those could not write in place."""

    def spread(scales: Array) -> Array:
        in_tiles, at_once = (functools.partial(way, shape=like.shape) for way in (_spread_in_tiles, _spread_at_once))
        return jax.lax.platform_dependent(scales, tpu=in_tiles, default=at_once)

    return with_auto_axes(spread, like, like.shape)(scales)


def _spread_at_once(scales: Array, shape: tuple[int, ...]) -> Array:
    return jnp.broadcast_to(scales[..., None], (*scales.shape, block_of(shape))).reshape(shape)


def _spread_in_tiles(scales: Array, shape: tuple[int, ...]) -> Array:
    tiles = _tiles(shape)
    by_lane = jnp.repeat(scales, block_of(shape) // tiles[-1], axis=-1).reshape(tiles[:-1]).swapaxes(-1, -2)[..., None]
    return jnp.broadcast_to(by_lane, (*by_lane.shape[:-1], tiles[-1])).swapaxes(-2, -3).reshape(shape)


def _largest(x: Array) -> Array:
    """The largest magnitude in each block."""

    def largest(x: Array) -> Array:
        return jax.lax.platform_dependent(
            jnp.abs(x), cpu=_largest_in_steps, tpu=_largest_in_tiles, default=lambda x: _parts(x, block_of(x.shape)).max(-1)
        )

    return with_auto_axes(largest, x, (*x.shape[:-1], x.shape[-1] // block_of(x.shape)))(x)


def _largest_in_tiles(x: Array) -> Array:
    tiles = _tiles(x.shape)
    by_lane = x.reshape(tiles).swapaxes(-2, -3).max(-1).swapaxes(-1, -2).reshape(*x.shape[:-1], x.shape[-1] // tiles[-1])
    return _parts(by_lane, block_of(x.shape) // tiles[-1]).max(-1)


def _largest_in_steps(x: Array) -> Array:
    """XLA's CPU backend writes the whole array to memory for the maximum of floats, or of more than 32 numbers; the bits of
    positive floats are in the order of the floats."""
    block = block_of(x.shape)
    blocks = _parts(jax.lax.bitcast_convert_type(x, jnp.int32), block)
    return jax.lax.bitcast_convert_type(_parts(blocks, _divisor(block, 32)).max(-1).max(-1), jnp.float32)


def _parts(x: Array, size: int) -> Array:
    """`x` with its last axis in parts of `size`: (…, n / size, size)."""
    return x.reshape(*x.shape[:-1], x.shape[-1] // size, size)
