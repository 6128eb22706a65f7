"""The points of Schedule-Free: z moves, x is the average of it, and y = β₁ x + (1 − β₁) z is where gradients are taken."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mithril_opt.core.decay_rate import DecayRate
from mithril_opt.core.tree import widen
from mithril_opt.core.typing import Array


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
