"""The points of Schedule-Free: z moves, x is the average of it, and y = β₁ x + (1 − β₁) z is where gradients are taken."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mithril_opt.core.decay_rate import DecayRate
from mithril_opt.core.numerics import safe_divide
from mithril_opt.core.state import exported
from mithril_opt.core.tree import select, widen
from mithril_opt.core.typing import Array


@exported
class Weights(NamedTuple):
    """The weights of the points so far. Their sum is kept in units of the last of them, so that it neither overflows nor, as a
    sum of two numbers, stands still after 2²⁴ points.

    Attributes:
        sum: n = (w₁ + … + wₜ) / wₜ, float32 or float64 scalar; 0 before the first point that weighs anything.
        rest: what `sum` lacks of n, a scalar of its dtype.
        max_rate: the largest learning rate so far; None where the points weigh alike.
    """

    sum: Array
    rest: Array
    max_rate: Array | None

    @classmethod
    def of_nothing(cls, dtype: Any, alike: bool = False) -> "Weights":
        """Before the first point; `alike` if rates do not matter."""
        return cls(jnp.zeros((), dtype), jnp.zeros((), dtype), None if alike else jnp.zeros((), dtype))

    def with_point(self, t: Array, rate: Any, r: Any, q: Any) -> tuple[Array, "Weights"]:
        """c = wₜ / (w₁ + … + wₜ) for the point `t` = 1, 2, …, of weight wₜ = tʳ (largest η so far)^q, and the weights then."""
        dtype, weighs, max_rate = self.sum.dtype, jnp.bool(True), None
        logarithm = r * jnp.log1p(-1 / jnp.maximum(t.astype(dtype), 2))  # of wₜ₋₁ / wₜ; at t = 1 it does not matter
        if self.max_rate is not None:
            max_rate = jnp.maximum(self.max_rate, jnp.asarray(rate, dtype))
            logarithm = logarithm - q * jnp.log1p(safe_divide(max_rate - self.max_rate, self.max_rate))
            weighs = (max_rate > 0) | (q == 0)
        change = 1 + self.sum * jnp.expm1(jnp.asarray(logarithm, dtype)) + self.rest
        total = self.sum + change
        new = Weights(total, change - (total - self.sum), max_rate)
        return jnp.where(weighs, 1 / total, 0), select(weighs, new, self._replace(max_rate=max_rate))


class Averaging(NamedTuple):
    """The weight c of the new z in x, and 1 − β₁/β with the β that y was made with: 0 for a constant β₁."""

    c: Array
    fall: Array | float = 0.0


def is_narrow(param: Any) -> bool:
    """Whether a parameter has too few digits to tell x: y and z differ by a few units in its last place."""
    return jnp.finfo(jnp.result_type(param)).bits < 32


def follow(
    y: Array, z: Array, x: Array | None, step: Array, beta1: DecayRate, averaging: Averaging
) -> tuple[Array, Array, Array | None]:
    """The step of y when z makes `step`, the new z, and the new x where it is kept.

    Without x, which is z + (y − z) / β with the β that y was made with, the difference of the old and the new y is worked out
    by hand, so that no digit of a small step is lost: for β₁ = β it is c (y − z) + (1 − β₁ (1 − c)) step.
    """
    (c, fall), new_z = averaging, z - step
    if x is None:
        return (c + (1 - c) * fall) * (y - z) + (beta1.complement + beta1.value * c) * step, new_z, None
    new_x = x + c * (new_z - x)
    return y - (new_z + beta1.value * (new_x - new_z)), new_z, new_x


def average(y: Any, z: Array, x: Array | None, beta1: Any) -> Array:
    """x, in the dtype of y = β₁ x + (1 − β₁) z."""
    with jax.numpy_dtype_promotion("standard"):
        wide = z + (widen(y) - z) / beta1 if x is None else x
    return wide.astype(jnp.result_type(y))
