"""Numbers in float64 with a bound on what float32 makes of them: running error analysis (Wilkinson 1963).

The bound of every result is that of its arguments, carried through the operation, and one rounding more. So a tolerance is as
wide as the arithmetic is ill-conditioned, element by element, and nobody sets it by hand.
"""

import numpy as np

ROUNDING = 2.0**-23  # twice that of an exact operation, since a compiler's quotients and roots are not all exact
SMALLEST = 2.0**-126  # what is smaller may be flushed to 0
LARGEST = float(np.finfo(np.float32).max)


class Bounded:
    """`value`, and by how much float32 may miss it: infinitely where nothing is said, −1 where every bit is that of before."""

    __array_ufunc__ = None

    def __init__(self, value, error=None):
        self.value = np.asarray(value, np.float64)
        small = (self.value != 0) & (np.abs(self.value) < SMALLEST)
        self.error = np.where(small, SMALLEST, 0.0) if error is None else np.broadcast_to(error, self.value.shape)

    def __add__(self, other):
        other = bounded(other)
        return rounded(self.value + other.value, self.error + other.error)

    def __sub__(self, other):
        other = bounded(other)
        return rounded(self.value - other.value, self.error + other.error)

    def __mul__(self, other):
        a, b = self, bounded(other)
        error = np.abs(a.value) * b.error + np.abs(b.value) * a.error + a.error * b.error
        return rounded(a.value * b.value, error)

    def __truediv__(self, other):
        """a / b, and 0 where b is 0; where b may be 0 nothing can be said."""
        a, b = self, bounded(other)
        least, zero = np.abs(b.value) - b.error, (b.value == 0) & (b.error == 0)
        quotient = np.where(least > 0, a.value / np.where(least > 0, b.value, 1), np.where(np.isnan(least), np.nan, 0))
        error = np.where(least > 0, (a.error + np.abs(quotient) * b.error) / least, np.inf)
        return rounded(quotient, np.where(zero, 0, error))

    def __radd__(self, other):
        return bounded(other) + self

    def __rsub__(self, other):
        return bounded(other) - self

    def __rmul__(self, other):
        return bounded(other) * self

    def __rtruediv__(self, other):
        return bounded(other) / self


def bounded(x):
    """`x`, exact unless it has a bound already."""
    return x if isinstance(x, Bounded) else Bounded(x)


def rounded(value, error):
    """The result of one operation in float32. Only 0 with the bound 0 is exact; of what float32 cannot hold nothing is said."""
    error = error + ROUNDING * np.abs(value) + SMALLEST * ((value != 0) | (error > 0))
    error = np.where(np.isnan(error) | (np.abs(value) + error > LARGEST), np.inf, error)
    return Bounded(value, np.where(np.isfinite(value), error, 0.0))


def kept(x):
    """What must be `x` to the last bit."""
    return Bounded(x.value, -1.0)


def exact(x):
    """`x` as it is, without the rounding that a number passed to float32 arithmetic has."""
    return Bounded(x, 0.0)


def sqrt(x):
    low, high = np.maximum(x.value - x.error, 0), np.maximum(x.value, 0) + x.error
    root = np.sqrt(np.maximum(x.value, 0))
    return rounded(root, np.maximum(root - np.sqrt(low), np.sqrt(high) - root))


def maximum(a, b):
    a, b = bounded(a), bounded(b)
    return Bounded(np.maximum(a.value, b.value), np.maximum(*np.broadcast_arrays(a.error, b.error)))


def clamp(x, bound):
    """x in [−bound, bound]; NaN stays."""
    low, value, high = (np.clip(end, -bound.value, bound.value) for end in (x.value - x.error, x.value, x.value + x.error))
    reaches = np.maximum(np.abs(low), np.abs(high)) >= bound.value - bound.error
    error = np.maximum(high - value, value - low) + np.where(reaches, bound.error, 0.0)
    return Bounded(value, np.where(np.isfinite(value), error, 0.0))


def abs_sq(x):
    """|x|² of numbers whose last axis holds their components."""
    squares = x * x
    return sum((component(squares, i) for i in range(1, x.value.shape[-1])), start=component(squares, 0))


def sign(x):
    """x / |x|, 0 of 0, of numbers whose last axis holds their components; nothing is said where |x| may be 0, nor of a complex
    number that is not finite."""
    if x.value.shape[-1] == 1:
        return Bounded(np.sign(x.value), np.where(np.abs(x.value) > x.error, 0.0, np.where(x.error == 0, 0.0, np.inf)))
    size = sqrt(abs_sq(x))
    zero = (size.value == 0) & (np.max(x.error, axis=-1, keepdims=True) == 0)
    found = where(zero, exact(0.0), x / where(zero, 1.0, size))
    return where(np.isfinite(size.value), found, Bounded(np.zeros_like(x.value), np.inf))


def component(x, i):
    return Bounded(x.value[..., i : i + 1], x.error[..., i : i + 1])


def where(condition, a, b):
    a, b = bounded(a), bounded(b)
    return Bounded(np.where(condition, a.value, b.value), np.where(condition, a.error, b.error))


def norm(leaves):
    """The 2-norm over all axes but the first two of all of `leaves`."""
    if not leaves:
        return exact(0.0)
    squares = sum(np.sum(np.square(x.value), axis=(2, 3), keepdims=True) for x in leaves)
    errors = sum(np.sum(np.square(x.error), axis=(2, 3), keepdims=True) for x in leaves)
    root = np.sqrt(squares)
    return Bounded(root, np.where(np.isfinite(root), np.sqrt(errors) + 4 * ROUNDING * root, 0.0))
