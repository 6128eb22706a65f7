"""Adamax."""

from typing import ClassVar, NamedTuple

import jax.numpy as jnp

from mithril_opt.core.fields import DecayRateOrSchedule, ScalarOrSchedule, decay_rate, number, static
from mithril_opt.core.leaf_optimizer import LeafOptimizer
from mithril_opt.core.numerics import ema, real_zeros, safe_divide, zeros
from mithril_opt.core.pytree import pytree
from mithril_opt.core.state import BETAS_AND_EPS, Counterpart, exported
from mithril_opt.core.typing import Array, DecayMask

LARGE_EPSILON = 1e-3  # few gradients are larger


@exported
class AdamaxSlots(NamedTuple):
    """First moment m, and the infinity norm u; float32."""

    mu: Array
    u: Array


@pytree
class Adamax(LeafOptimizer):
    """Adamax (Kingma & Ba 2015, Algorithm 2): Adam with an infinity norm in place of the second moment.

        g ← g + λ p                      coupled weight decay
        m ← β₁ m + (1 − β₁) g            m̂ = m / (1 − β₁ᵗ)
        u ← max(β₂ u, |g| + ε)
        p ← p − η m̂ / u

    ε is inside the maximum, as in PyTorch and optax. Nothing is squared, so gradients up to 3e38 are taken as they are.

    Args:
        learning_rate: η ≥ 0.
        beta1: β₁ in [0, 1), the decay rate of the first moment.
        beta2: β₂ in [0, 1), the decay rate of the norm.
        epsilon: ε ≥ 0.
        weight_decay: λ ≥ 0; 0.0 switches it off.
        decoupled_weight_decay: subtract η λ p from the parameter instead of adding λ p to the gradient.
        decay_mask: `(path, leaf) -> bool`, True for the leaves that decay; None for all.

    Raises:
        ValueError: a Python number is out of its range.

    Example:
        >>> import jax.numpy as jnp
        >>> from mithril_opt import Adamax
        >>> optimizer = Adamax(learning_rate=0.1)
        >>> params = jnp.array([1.0, 2.0])
        >>> params, state = optimizer.update(params, jnp.array([3.0, -0.01]), optimizer.init(params))
        >>> params
        Array([0.9, 2.1], dtype=float32)
    """

    learning_rate: ScalarOrSchedule = number(default=2e-3, minimum=0)
    beta1: DecayRateOrSchedule = decay_rate(default=0.9)
    beta2: DecayRateOrSchedule = decay_rate(default=0.999)
    epsilon: ScalarOrSchedule = number(default=1e-8, minimum=0)
    weight_decay: ScalarOrSchedule = number(default=0.0, minimum=0, off=True, masked=True)
    decoupled_weight_decay: bool = static(default=False)
    decay_mask: DecayMask | None = static(default=None)

    unit_steps: ClassVar = True
    moments: ClassVar = ("mu",)

    @property
    def torch(self) -> Counterpart:
        return Counterpart("Adamax", {"mu": "exp_avg", "u": "exp_inf"}, frozenset({"betas"}), fields=BETAS_AND_EPS)

    @property
    def optax(self) -> Counterpart:
        return Counterpart("ScaleByAdamState", {"mu": "mu", "u": "nu"})

    def lints(self, learning_rate: float) -> list[str]:
        epsilon = self.epsilon if isinstance(self.epsilon, float) else 0.0
        found = f"an epsilon of {epsilon:.2g} is added to every |g|; gradients of that size and below it hardly move anything"
        return [found] if epsilon >= LARGE_EPSILON else []

    def init_leaf(self, param: Array) -> AdamaxSlots:
        return AdamaxSlots(mu=zeros(param), u=real_zeros(param))

    def update_leaf(self, param: Array, grad: Array, slots: AdamaxSlots, t: Array) -> tuple[Array, AdamaxSlots]:
        if self.weight_decay is not None and not self.decoupled_weight_decay:
            grad = grad + self.weight_decay * param
        m = ema(self.beta1, slots.mu, grad)
        u = jnp.maximum(self.beta2.value * slots.u, jnp.abs(grad) + self.epsilon)
        direction = safe_divide(m / self.beta1.one_minus_power(t), u)
        if self.weight_decay is not None and self.decoupled_weight_decay:
            direction = direction + self.weight_decay * param
        return self.learning_rate * direction, AdamaxSlots(mu=m, u=u)
