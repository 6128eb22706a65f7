"""RAdam."""

from typing import ClassVar, NamedTuple

import jax.numpy as jnp

from mithril_opt.core.decay_rate import DecayRate
from mithril_opt.core.fields import DecayRateOrSchedule, ScalarOrSchedule, decay_rate, number, static
from mithril_opt.core.leaf_optimizer import LeafOptimizer
from mithril_opt.core.numerics import abs_sq, ema, real_zeros, safe_divide, safe_sqrt, zeros
from mithril_opt.core.pytree import pytree
from mithril_opt.core.state import BETAS_AND_EPS, Counterpart, exported
from mithril_opt.core.typing import Array, DecayMask


@exported
class RAdamSlots(NamedTuple):
    """First moment m and second moment v, float32."""

    mu: Array
    nu: Array


@pytree
class RAdam(LeafOptimizer):
    """RAdam (Liu et al. 2020): Adam, rectified while the second moment is made of few gradients.

        g ← g + λ p                      coupled weight decay
        m ← β₁ m + (1 − β₁) g            m̂ = m / (1 − β₁ᵗ)
        v ← β₂ v + (1 − β₂) g²           v̂ = v / (1 − β₂ᵗ)
        ρ∞ = 2 / (1 − β₂) − 1            ρ = ρ∞ − 2 t β₂ᵗ / (1 − β₂ᵗ)
        r = √[(ρ − 4) (ρ − 2) ρ∞ / ((ρ∞ − 4) (ρ∞ − 2) ρ)]
        p ← p − η r m̂ / (√v̂ + ε)         ρ > 5
        p ← p − η m̂                      ρ ≤ 5: with β₂ = 0.999 in the first five updates

    Those first updates are momentum SGD with the full rate, small or large as the gradients are. PyTorch adds ε to √v, before
    the bias correction; its ε is this one times √(1 − β₂ᵗ). For a complex parameter g² is |g|². Gradients above 1e18 leave v
    infinite, and once updates are rectified their elements where they are.

    Args:
        learning_rate: η ≥ 0.
        beta1: β₁ in [0, 1), the decay rate of the first moment.
        beta2: β₂ in (⅔, 1), the decay rate of the second moment; up to ⅔ no update would be rectified.
        epsilon: ε ≥ 0, outside the square root, after the bias correction.
        weight_decay: λ ≥ 0; 0.0 switches it off.
        decoupled_weight_decay: subtract η λ p from the parameter instead of adding λ p to the gradient.
        decay_mask: `(path, leaf) -> bool`, True for the leaves that decay; None for all.

    Raises:
        ValueError: a Python number is out of its range.

    Example:
        >>> import jax.numpy as jnp
        >>> from mithril_opt import RAdam
        >>> optimizer = RAdam(learning_rate=0.1)
        >>> params = jnp.array([1.0])
        >>> params, state = optimizer.update(params, jnp.array([3.0]), optimizer.init(params))
        >>> f"{params[0]:.4f}"
        '0.7000'
    """

    learning_rate: ScalarOrSchedule = number(default=1e-3, minimum=0)
    beta1: DecayRateOrSchedule = decay_rate(default=0.9)
    beta2: DecayRateOrSchedule = decay_rate(default=0.999, above=2 / 3)
    epsilon: ScalarOrSchedule = number(default=1e-8, minimum=0)
    weight_decay: ScalarOrSchedule = number(default=0.0, minimum=0, off=True, masked=True)
    decoupled_weight_decay: bool = static(default=False)
    decay_mask: DecayMask | None = static(default=None)

    unit_steps: ClassVar = True
    moments: ClassVar = ("mu", "nu")
    bias_corrected: ClassVar = ("nu",)

    @property
    def torch(self) -> Counterpart:
        slots = {"mu": "exp_avg", "nu": "exp_avg_sq"}
        values = {"decoupled_weight_decay": self.decoupled_weight_decay}
        return Counterpart("RAdam", slots, frozenset({"betas"}), values, frozenset({"amsgrad"}), BETAS_AND_EPS)

    @property
    def optax(self) -> Counterpart:
        return Counterpart("ScaleByAdamState", {"mu": "mu", "nu": "nu"})

    def init_leaf(self, param: Array) -> RAdamSlots:
        return RAdamSlots(mu=zeros(param), nu=real_zeros(param))

    def update_leaf(self, param: Array, grad: Array, slots: RAdamSlots, t: Array) -> tuple[Array, RAdamSlots]:
        if self.weight_decay is not None and not self.decoupled_weight_decay:
            grad = grad + self.weight_decay * param
        m = ema(self.beta1, slots.mu, grad)
        v = ema(self.beta2, slots.nu, abs_sq(grad))
        m_hat = m / self.beta1.one_minus_power(t)
        v_hat = v / self.beta2.one_minus_power(t)
        rectified, r = rectification(self.beta2, t)
        direction = jnp.where(rectified, safe_divide(r * m_hat, safe_sqrt(v_hat) + self.epsilon), m_hat)
        if self.weight_decay is not None and self.decoupled_weight_decay:
            direction = direction + self.weight_decay * param
        return self.learning_rate * direction, RAdamSlots(mu=m, nu=v)


def rectification(beta2: DecayRate, t: Array) -> tuple[Array, Array]:
    """Whether ρ > 5, and r."""
    limit, rho = 2 / beta2.complement - 1, average_length(beta2, t)
    rectified = rho > 5
    rho, limit = jnp.where(rectified, rho, 6), jnp.where(rectified, limit, 6)
    return rectified, jnp.sqrt((rho - 4) / (limit - 4) * ((rho - 2) / (limit - 2)) * (limit / rho))


def average_length(beta2: DecayRate, t: Array) -> Array:
    """ρ for β₂ above ⅔, some number below 5 for the others. As a difference of two numbers near 2 / (1 − β₂) it would have few
    digits in the first updates.

    With a = −log β₂, x = t a and Langevin's function L(y) = coth(y) − 1 / y it is L(a / 2) + t (1 − L(x / 2)), and the second
    of these is (2 / a) (1 − x / (eˣ − 1)).
    """
    complement = beta2.complement.astype(t.dtype)
    a = -jnp.log1p(-jnp.where(complement == 1, 0.5, complement))
    x = t * a
    small = x < (1 if t.dtype == jnp.float32 else 0.1)
    early = t * (1 - langevin(jnp.where(small, x, 0) / 2))
    late = 2 / a * (1 - x / jnp.expm1(jnp.minimum(x, 80)))
    return langevin(a / 2) + jnp.where(small, early, late)


def langevin(y: Array) -> Array:
    """coth(y) − 1 / y for 0 ≤ y ≤ ½: its series."""
    z = y * y
    tail = 2 / 945 - z * (1 / 4725 - z * (2 / 93555 - z * 1382 / 638512875))
    return y * (1 / 3 - z * (1 / 45 - z * tail))
