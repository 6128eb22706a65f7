"""AdEMAMix."""

from typing import ClassVar, NamedTuple

from mithril_opt.core.fields import DecayRateOrSchedule, ScalarOrSchedule, decay_rate, number, static
from mithril_opt.core.leaf_optimizer import LeafOptimizer
from mithril_opt.core.numerics import abs_sq, ema, real_zeros, safe_divide, safe_sqrt, zeros
from mithril_opt.core.pytree import pytree
from mithril_opt.core.state import Counterpart, exported
from mithril_opt.core.typing import Array, DecayMask


@exported
class AdEMAMixSlots(NamedTuple):
    """Fast first moment m₁ (none with β₁ = 0), slow first moment m₂, second moment v; float32."""

    mu: Array | None
    slow: Array
    nu: Array


@pytree
class AdEMAMix(LeafOptimizer):
    """AdEMAMix (Pagliardini, Ablin & Grangier 2024): Adam with a second, slow average of the gradients.

        m₁ ← β₁ m₁ + (1 − β₁) g          m̂₁ = m₁ / (1 − β₁ᵗ)
        m₂ ← β₃ m₂ + (1 − β₃) g          not corrected
        v  ← β₂ v + (1 − β₂) g²          v̂ = v / (1 − β₂ᵗ)
        p ← p − η [(m̂₁ + α m₂) / (√v̂ + ε) + λ p]

    Without a warm-up of β₃ and α the first thousands of updates may diverge. The authors warm both up over the whole training
    of T updates: `beta3=HalfLifeWarmup(0.9, 0.9999, T)` and `alpha=LinearWarmupScheduler(T - 1, 5 / T, 5)`. For a complex
    parameter g² is |g|². Gradients above 1e18 leave v infinite, and their elements where they are.

    Args:
        learning_rate: η ≥ 0.
        beta1: β₁ in [0, 1), the decay rate of the fast average; with 0.0 it is the gradient and has no slot.
        beta2: β₂ in [0, 1), the decay rate of the second moment.
        beta3: β₃ in [0, 1), the decay rate of the slow average.
        alpha: α ≥ 0, the weight of the slow average; 4 to 10.
        epsilon: ε ≥ 0, outside the square root, after the bias correction.
        weight_decay: λ ≥ 0, decoupled; 0.0 switches it off.
        decay_mask: `(path, leaf) -> bool`, True for the leaves that decay; None for all.

    Raises:
        ValueError: a Python number is out of its range.

    Example:
        >>> import jax.numpy as jnp
        >>> from mithril_opt import AdEMAMix, HalfLifeWarmup, LinearWarmupScheduler
        >>> beta3, alpha = HalfLifeWarmup(0.9, 0.9999, steps=1000), LinearWarmupScheduler(999, 0.005, 5.0)
        >>> optimizer = AdEMAMix(learning_rate=0.1, beta3=beta3, alpha=alpha)
        >>> params = jnp.array([1.0])
        >>> params, state = optimizer.update(params, jnp.array([3.0]), optimizer.init(params))
        >>> f"{params[0]:.4f}"
        '0.9000'
    """

    learning_rate: ScalarOrSchedule = number(default=1e-3, minimum=0)
    beta1: DecayRateOrSchedule = decay_rate(default=0.9, off=True)
    beta2: DecayRateOrSchedule = decay_rate(default=0.999)
    beta3: DecayRateOrSchedule = decay_rate(default=0.9999)
    alpha: ScalarOrSchedule = number(default=5.0, minimum=0)
    epsilon: ScalarOrSchedule = number(default=1e-8, minimum=0)
    weight_decay: ScalarOrSchedule = number(default=0.0, minimum=0, off=True, masked=True)
    decay_mask: DecayMask | None = static(default=None)

    unit_steps: ClassVar = True
    moments: ClassVar = ("mu", "nu")
    bias_corrected: ClassVar = ("nu",)

    @property
    def optax(self) -> Counterpart:
        return Counterpart("ScaleByAdemamixState", {"mu": "m1", "slow": "m2", "nu": "nu"})

    def init_leaf(self, param: Array) -> AdEMAMixSlots:
        return AdEMAMixSlots(mu=None if self.beta1 is None else zeros(param), slow=zeros(param), nu=real_zeros(param))

    def update_leaf(self, param: Array, grad: Array, slots: AdEMAMixSlots, t: Array) -> tuple[Array, AdEMAMixSlots]:
        m1 = None if slots.mu is None else ema(self.beta1, slots.mu, grad)
        m2 = ema(self.beta3, slots.slow, grad)
        v = ema(self.beta2, slots.nu, abs_sq(grad))
        m1_hat = grad if m1 is None else m1 / self.beta1.one_minus_power(t)
        v_hat = v / self.beta2.one_minus_power(t)
        root = safe_sqrt(v_hat) + self.epsilon
        direction = safe_divide(m1_hat, root) + self.alpha * safe_divide(m2, root)  # α m₂ alone could overflow
        if self.weight_decay is not None:
            direction = direction + self.weight_decay * param
        return self.learning_rate * direction, AdEMAMixSlots(m1, m2, v)
