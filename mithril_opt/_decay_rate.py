"""Decay rates β of moving averages, and 1 − βᵗ, to the last digit."""

import dataclasses
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from mithril_opt._pytree import pytree, with_fields
from mithril_opt._typing import Array

T = TypeVar("T")


@pytree
class DecayRate:
    """A decay rate β with what a rule needs of it, computed once per update for all leaves.

    A jit boundary rounds a Python number to float32, and float32(0.999) leaves 1 − β wrong in the fifth place. So 1 − β is
    taken in float64 first and carried along.

    Attributes:
        value: β.
        complement: 1 − β.
        power_complement: 1 − βᵗ for the update being made.
    """

    value: Any
    complement: Any
    power_complement: Any = None

    def __mul__(self, other: Any) -> Any:
        return self.value * other

    __rmul__ = __mul__

    def __rsub__(self, one: Any) -> Any:
        return self.complement + (one - 1)


def one_minus_power(beta: Any, t: Array) -> Array:
    """1 − βᵗ without cancellation, in the dtype of `t`: 2 h / (1 + h) with h = tanh(½ t log(1/β)).

    That is −expm1(t log β), written so that it ends in a division: what ends in a cheaper operation XLA compiles again into
    the update of every leaf.

    Args:
        beta: a decay rate in [0, 1); 1 − β is taken in float64 where β is a Python number.
        t: number of the update, 1, 2, …; a real scalar.

    Example:
        >>> import jax.numpy as jnp
        >>> from mithril_opt._decay_rate import one_minus_power
        >>> f"{one_minus_power(0.999, jnp.float32(1)):.9f}"
        '0.001000000'
    """
    if isinstance(beta, DecayRate) and beta.power_complement is not None:
        return beta.power_complement.astype(t.dtype)
    complement = jnp.asarray(1 - beta, t.dtype)
    z = t * jnp.log1p(-jnp.where(complement == 1, 0.5, complement)) / -2
    # XLA's tanh is off by up to 2e-7 where its argument is small; there the series converges at once.
    series = z - z**3 * (1 / 3 - z**2 * (2 / 15 - z**2 * (17 / 315 - z**2 * (62 / 2835 - z**2 * 1382 / 155925))))
    h = jnp.where((z < 0.3) & (t.dtype == jnp.float32), series, jnp.tanh(z))
    h = jnp.where(complement == 1, 1, h)  # β = 0, where the logarithm has no derivative
    return 2 * h / (1 + h)


def exact(rule: T) -> T:
    """`rule` with its decay rates as `DecayRate`s, which survive a jit boundary."""
    rates = {
        field.name: DecayRate(value, 1 - value)
        for field in dataclasses.fields(rule)  # pyright: ignore[reportArgumentType]
        if field.metadata.get("decay_rate") and not isinstance(value := getattr(rule, field.name), DecayRate)
    }
    return with_fields(rule, **rates)


def with_powers(rule: T, step: Array) -> T:
    """`rule` with 1 − βᵗ of its decay rates, t = `step`, in the widest real dtype there is."""
    t = step.astype(jax.dtypes.canonicalize_dtype(float))
    rates = {
        field.name: DecayRate(rate.value, rate.complement, one_minus_power(rate, t))
        for field in dataclasses.fields(rule)  # pyright: ignore[reportArgumentType]
        if isinstance(rate := getattr(rule, field.name), DecayRate)
    }
    return with_fields(rule, **rates)
