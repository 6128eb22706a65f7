"""Numbers whose distance from 1 counts: decay rates β of moving averages, factors γ of schedules.

A jit boundary rounds a Python number to float32, and float32(0.999) leaves 1 − β wrong in the fifth place. So such a number
crosses it as two leaves: what float32 holds of it, and the rest. From both come 1 − β, 1 − βᵗ and βⁿ to the last digit.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mithril_opt.core.typing import Array


class Known(NamedTuple):
    """1 − β, and 1 − βᵗ of one t: computed once for all leaves."""

    complement: Array
    one_minus_power: Array
    t: Array | None = None


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class DecayRate:
    """A number β that keeps through `jax.jit` what float64 knows of it. It prints and compares as the number.

    Attributes:
        value: β, a float, or a real scalar array.
        rest: of an array, what float32 lost of β when it became one; None if that is not known.
        known: what is computed already.

    Example:
        >>> import jax
        >>> from mithril_opt import DecayRate
        >>> DecayRate(0.999), DecayRate(0.999) == 0.999
        (0.999, True)
        >>> f"{jax.jit(lambda beta: beta.complement)(DecayRate(0.999)):.9f}"
        '0.001000000'
    """

    value: Any
    rest: Any = None
    known: Known | None = None

    def parts(self) -> tuple[Array, Array]:
        """β as the sum of two numbers, the second far smaller than the first."""
        value, rest = jnp.asarray(self.value), _rest(self.value) if isinstance(self.value, float) else self.rest
        if rest is None or value.dtype == jnp.float64:
            return value, jnp.zeros_like(value)
        # A step on the number is a step on its value alone.
        return value, jax.lax.stop_gradient(jnp.asarray(rest).astype(value.dtype))

    @property
    def complement(self) -> Array:
        """1 − β, a real scalar."""
        if self.known is not None:
            return self.known.complement
        value, rest = self.parts()
        return (1 - value) - rest

    def one_minus_power(self, t: Array) -> Array:
        """1 − βᵗ without cancellation, in the dtype of `t`: 2 h / (1 + h) with h = tanh(½ t log(1/β)).

        That is −expm1(t log β), written so that it ends in a division: what ends in a cheaper operation XLA compiles again
        into the update of every leaf.

        Args:
            t: number of an update, 1, 2, …; a real scalar.

        Example:
            >>> import jax.numpy as jnp
            >>> from mithril_opt import DecayRate
            >>> f"{DecayRate(0.999).one_minus_power(jnp.float32(1)):.9f}"
            '0.001000000'
        """
        if self.known is not None and t is self.known.t:
            return self.known.one_minus_power.astype(t.dtype)
        complement = self.complement.astype(t.dtype)
        z = t * jnp.log1p(-jnp.where(complement == 1, 0.5, complement)) / -2
        # XLA's tanh is off by up to 2e-7 where its argument is small; there the series converges at once.
        s = jnp.minimum(z, 0.3)
        series = s - s**3 * (1 / 3 - s**2 * (2 / 15 - s**2 * (17 / 315 - s**2 * (62 / 2835 - s**2 * 1382 / 155925))))
        h = jnp.where((z < 0.3) & (t.dtype == jnp.float32), series, jnp.tanh(z))
        h = jnp.where(complement == 1, 1, h)  # β = 0, where the logarithm has no derivative
        return 2 * h / (1 + h)

    def __eq__(self, other: object) -> Any:
        return self.value == (other.value if isinstance(other, DecayRate) else other)

    def __hash__(self) -> int:
        return hash(self.value)

    def __repr__(self) -> str:
        return repr(self.value)

    def __float__(self) -> float:
        return float(self.value)

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.asarray(self.value, dtype)

    def __jax_array__(self) -> Array:
        return jnp.asarray(self.value)


_LARGEST = float(np.finfo(np.float32).max)


def _rest(value: float) -> float:
    """What float32 loses of `value`; nothing of what it does not hold at all."""
    return value - float(np.float32(value)) if abs(value) <= _LARGEST else 0.0


def _flatten(rate: DecayRate) -> tuple[tuple[Any, Any], None]:
    return (rate.value, _rest(rate.value) if isinstance(rate.value, float) else rate.rest), None


jax.tree_util.register_pytree_node(DecayRate, _flatten, lambda _, children: DecayRate(*children))
