"""Lion, and with it Signum and SignSGD."""

from typing import ClassVar, NamedTuple

import jax.numpy as jnp

from mithril_opt.core.fields import DecayRateOrSchedule, ScalarOrSchedule, decay_rate, number, static
from mithril_opt.core.leaf_optimizer import LeafOptimizer
from mithril_opt.core.numerics import ema, zeros
from mithril_opt.core.pytree import pytree
from mithril_opt.core.state import Counterpart, exported
from mithril_opt.core.typing import Array, DecayMask

# Adam's default; Lion's rates are 3 to 10 times below Adam's.
RATE_OF_ADAM = 1e-3


@exported
class LionSlots(NamedTuple):
    """The momentum m, float32."""

    mu: Array


@pytree
class Lion(LeafOptimizer):
    """Lion (Chen et al. 2023, Algorithm 2).

        c ← β₁ m + (1 − β₁) g
        p ← p − η (sign(c) + λ p)
        m ← β₂ m + (1 − β₂) g

    Every element moves by the whole rate, up or down, or not at all where c is 0. So η is 3 to 10 times smaller than Adam's,
    and λ as many times larger. For a complex parameter sign(c) is c / |c|. The size of the gradient does not matter: to clip
    it changes nothing but its share in m.

    `Lion(beta1=0.9, beta2=0.9)`, or any two equal rates, is Signum (Bernstein et al. 2018), the sign of a moving average, and
    `Lion(beta1=0.0, beta2=0.0)` is SignSGD.

    Args:
        learning_rate: η ≥ 0.
        beta1: β₁ in [0, 1), the share of the momentum in the direction.
        beta2: β₂ in [0, 1), the decay rate of the momentum.
        weight_decay: λ ≥ 0, decoupled; 0.0 switches it off.
        decay_mask: `(path, leaf) -> bool`, True for the leaves that decay; None for all.

    Raises:
        ValueError: a Python number is out of its range.

    Example:
        >>> import jax.numpy as jnp
        >>> from mithril_opt import Lion
        >>> optimizer = Lion(learning_rate=0.1)
        >>> params = jnp.array([1.0, 2.0, 3.0])
        >>> params, state = optimizer.update(params, jnp.array([0.5, -7.0, 0.0]), optimizer.init(params))
        >>> params
        Array([0.9, 2.1, 3. ], dtype=float32)
    """

    learning_rate: ScalarOrSchedule = number(default=1e-4, minimum=0)
    beta1: DecayRateOrSchedule = decay_rate(default=0.9)
    beta2: DecayRateOrSchedule = decay_rate(default=0.99)
    weight_decay: ScalarOrSchedule = number(default=0.0, minimum=0, off=True, masked=True)
    decay_mask: DecayMask | None = static(default=None)

    unit_steps: ClassVar = True
    moments: ClassVar = ("mu",)
    scale_free: ClassVar = True

    @property
    def optax(self) -> Counterpart:
        return Counterpart("ScaleByLionState", {"mu": "mu"})

    def lints(self, learning_rate: float) -> list[str]:
        found = f"a rate of {learning_rate:.2g} is one for Adam; Lion moves every element by all of it and needs a smaller one"
        return [found] if learning_rate >= RATE_OF_ADAM else []

    def init_leaf(self, param: Array) -> LionSlots:
        return LionSlots(mu=zeros(param))

    def update_leaf(self, param: Array, grad: Array, slots: LionSlots, t: Array) -> tuple[Array, LionSlots]:
        direction = jnp.sign(ema(self.beta1, slots.mu, grad))
        if self.weight_decay is not None:
            direction = direction + self.weight_decay * param
        return self.learning_rate * direction, LionSlots(mu=ema(self.beta2, slots.mu, grad))
