"""The warm-up of a decay rate."""

import math

import jax.numpy as jnp

from mithril_opt.core.decay_rate import DecayRate
from mithril_opt.core.fields import Factor, decay_rate, steps
from mithril_opt.core.numerics import scalar_f32
from mithril_opt.core.pytree import pytree
from mithril_opt.core.schedule import Schedule
from mithril_opt.core.typing import Array, PyTree
from mithril_opt.schedulers.numerics import between


@pytree
class HalfLifeWarmup(Schedule):
    """A decay rate β whose half-life h rises linearly (Pagliardini, Ablin & Grangier 2024, for AdEMAMix).

        h(k) = (1 − x) h(start) + x h(end)      x = min(1, (k + 1) / steps)
        β(k) = ½^(1 / h(k))                     h(β) = log ½ / log β, k = 0 in the first update

    The half-life is the number of updates in which a gradient loses half of its weight: 6.6 for β = 0.9, 6931 for 0.9999.
    A rule that has this schedule in the place of a decay rate gets 1 − β to the last digit, which the float32 β does not hold.

    Args:
        start: the rate before the first update, in [0, 1).
        end: the rate from the update with the number `steps` on, in [0, 1).
        steps: length of the warm-up, ≥ 0; 0 means none.

    Raises:
        ValueError: a Python number is out of its range.

    Example:
        >>> from mithril_opt import HalfLifeWarmup
        >>> schedule = HalfLifeWarmup(start=0.5, end=0.9, steps=10)
        >>> print(schedule([0, 4, 9, 99]).round(2))
        [0.64 0.83 0.9  0.9 ]
    """

    start: Factor = decay_rate()
    end: Factor = decay_rate()
    steps: int | Array = steps(minimum=0)

    def value(self, step: Array) -> Array:
        return 1 - self._complement(step)

    def read_decay_rate(self, memory: PyTree, step: Array) -> DecayRate:
        complement = self._complement(step)
        value = 1 - complement
        return DecayRate(value, (1 - value) - complement)

    def _complement(self, step: Array) -> Array:
        """1 − β without cancellation."""
        done = jnp.minimum(step, self.steps - 1) + 1
        h = between(half_life(self.start), half_life(self.end), done, self.steps - done)
        forgets = h == 0
        return jnp.where(forgets, 1, -jnp.expm1(-math.log(2) / jnp.where(forgets, 1, h)))


def half_life(beta: DecayRate) -> Array:
    """log ½ / log β, 0 for β = 0."""
    complement = scalar_f32(beta.complement)
    forgets = complement == 1
    return jnp.where(forgets, 0, -math.log(2) / jnp.log1p(-jnp.where(forgets, 0.5, complement)))
