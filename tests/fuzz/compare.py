"""A number in float64 with its bound against one in the dtype that it was kept in."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np


class Compared(NamedTuple):
    """One array. All but `right` have four axes: entries, steps, elements, components.

    Attributes:
        right: boolean, broadcast over the last axes.
        value: what was expected.
        allowed: by how much it may be missed: the bound and the rounding to the dtype; 0 where every bit must be there.
        found: what is there.
    """

    right: np.ndarray
    value: np.ndarray
    allowed: np.ndarray
    found: np.ndarray

    @property
    def deviation(self):
        """In units of what is allowed."""
        usual = np.isfinite(self.allowed) & (self.allowed > 0) & np.isfinite(self.value) & np.isfinite(self.found)
        return np.where(usual, np.abs(self.found - self.value) / np.where(usual, self.allowed, 1), 0.0)


def components(x, count=1):
    """`x` in float64 with four axes: entries, steps, elements, components, at least `count` of them."""
    x = np.stack([x.real, x.imag], axis=-1) if np.iscomplexobj(x) else x[..., None]
    x = x.astype(np.float64).reshape(*x.shape[:2], int(np.prod(x.shape[2:-1])), x.shape[-1])
    return np.pad(x, [(0, 0)] * 3 + [(0, max(count - x.shape[-1], 0))])


def compare(expected, found, old):
    """Whether `found` lies between what its dtype makes of the ends; with a bound below 0, whether it has the bits of `old`."""
    got = components(found)
    value, error = (np.broadcast_to(x, got.shape) for x in (expected.value, expected.error))
    low, high = (cast(value + end, found.dtype) for end in (-error, error))
    inside = np.where(np.isfinite(value), (low <= got) & (got <= high), ~np.isfinite(got)) | np.isinf(error)
    right = np.where(error < 0, same_bits(found, old), inside)
    return Compared(right, value, np.where(error < 0, 0.0, error + half_an_ulp(value, found.dtype)), got)


def cast(x, dtype):
    """`x` as `dtype` holds it, in float64 again."""
    if dtype.kind in "iub":
        return x
    return x.astype(real(dtype)).astype(np.float64)


def half_an_ulp(x, dtype):
    if dtype.kind in "iub":
        return np.zeros(())
    info = jnp.finfo(real(dtype))
    return np.abs(x) * float(info.eps) / 2 + float(info.smallest_subnormal) / 2


def real(dtype):
    return jnp.finfo(dtype).dtype


def same_bits(a, b):
    """Element by element, with four axes."""
    bytes_ = [np.ascontiguousarray(x)[..., None].view(np.uint8).reshape(*x.shape[:2], x[0, 0].size, x.itemsize) for x in (a, b)]
    return np.all(bytes_[0] == bytes_[1], axis=-1, keepdims=True)


def is_finite(x):
    """By entry and step."""
    return np.isfinite(components(x)).all((2, 3))
