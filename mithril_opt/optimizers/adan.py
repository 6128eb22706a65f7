"""Adan."""

from typing import ClassVar, NamedTuple

import jax.numpy as jnp

from mithril_opt.core.fields import DecayRateOrSchedule, ScalarOrSchedule, decay_rate, number, static
from mithril_opt.core.leaf_optimizer import LeafOptimizer
from mithril_opt.core.numerics import abs_sq, ema, real_zeros, safe_divide, safe_sqrt, zeros
from mithril_opt.core.pytree import pytree
from mithril_opt.core.state import exported
from mithril_opt.core.typing import Array, DecayMask


@exported
class AdanSlots(NamedTuple):
    """First moment m, average w of the differences, second moment n, the last gradient, all float32; whether there was one."""

    mu: Array
    delta: Array
    nu: Array
    grad: Array
    started: Array


@pytree
class Adan(LeafOptimizer):
    """Adan (Xie et al. 2022, Algorithm 1): Adam with Nesterov's momentum, from the difference of two gradients.

        Δ = g − g′                               g′ is the gradient before; Δ = 0 at the first gradient
        m ← β₁ m + (1 − β₁) g                    m̂ = m / (1 − β₁ᵗ)
        w ← β₂ w + (1 − β₂) Δ                    ŵ = w / (1 − β₂ᵗ)
        n ← β₃ n + (1 − β₃) (g + β₂ Δ)²          n̂ = n / (1 − β₃ᵗ)
        u = (m̂ + β₂ ŵ) / (√n̂ + ε)
        p ← (p − η u) / (1 + η λ)                not proximal: p ← p − η (u + λ p)

    The rates are those of the authors' code; the paper's are one minus them. Optax's `adan` has 1 − β₂ for β₂ beside Δ and ŵ,
    0.08 where the paper has 0.92. For a complex parameter a square is that of the modulus. Gradients above 1e18 leave n
    infinite, and their elements where they are; two whose difference is no float32 leave NaN.

    Args:
        learning_rate: η ≥ 0.
        beta1: β₁ in [0, 1), the decay rate of the first moment.
        beta2: β₂ in [0, 1), the decay rate of the differences.
        beta3: β₃ in [0, 1), the decay rate of the second moment.
        epsilon: ε ≥ 0, outside the square root, after the bias correction.
        weight_decay: λ ≥ 0, decoupled; 0.0 switches it off.
        proximal: divide by 1 + η λ, as the paper has it, instead of subtracting η λ p.
        decay_mask: `(path, leaf) -> bool`, True for the leaves that decay; None for all.

    Raises:
        ValueError: a Python number is out of its range.

    Example:
        >>> import jax.numpy as jnp
        >>> from mithril_opt import Adan
        >>> optimizer = Adan(learning_rate=0.25, weight_decay=2.0)
        >>> params = jnp.array([1.0])
        >>> params, state = optimizer.update(params, jnp.array([3.0]), optimizer.init(params))
        >>> params
        Array([0.5], dtype=float32)
    """

    learning_rate: ScalarOrSchedule = number(default=1e-3, minimum=0)
    beta1: DecayRateOrSchedule = decay_rate(default=0.98)
    beta2: DecayRateOrSchedule = decay_rate(default=0.92)
    beta3: DecayRateOrSchedule = decay_rate(default=0.99)
    epsilon: ScalarOrSchedule = number(default=1e-8, minimum=0)
    weight_decay: ScalarOrSchedule = number(default=0.0, minimum=0, off=True, masked=True)
    proximal: bool = static(default=True)
    decay_mask: DecayMask | None = static(default=None)

    unit_steps: ClassVar = True
    moments: ClassVar = ("mu",)
    bias_corrected: ClassVar = ("nu",)

    def init_leaf(self, param: Array) -> AdanSlots:
        return AdanSlots(zeros(param), zeros(param), real_zeros(param), zeros(param), started=jnp.zeros((), bool))

    def update_leaf(self, param: Array, grad: Array, slots: AdanSlots, t: Array) -> tuple[Array, AdanSlots]:
        delta = jnp.where(slots.started, grad - slots.grad, 0)
        m = ema(self.beta1, slots.mu, grad)
        w = ema(self.beta2, slots.delta, delta)
        n = ema(self.beta3, slots.nu, abs_sq(grad + self.beta2.value * delta))
        m_hat = m / self.beta1.one_minus_power(t)
        w_hat = w / self.beta2.one_minus_power(t)
        n_hat = n / self.beta3.one_minus_power(t)
        u = safe_divide(m_hat + self.beta2.value * w_hat, safe_sqrt(n_hat) + self.epsilon)
        new = AdanSlots(m, w, n, grad, started=jnp.ones((), bool))
        if self.weight_decay is None:
            return self.learning_rate * u, new
        step = self.learning_rate * (u + self.weight_decay * param)
        return step / (1 + self.learning_rate * self.weight_decay) if self.proximal else step, new
