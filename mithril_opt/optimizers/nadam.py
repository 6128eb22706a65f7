"""NAdam."""

from typing import ClassVar, NamedTuple

import jax.numpy as jnp

from mithril_opt.core.fields import DecayRateOrSchedule, ScalarOrSchedule, decay_rate, number, static
from mithril_opt.core.leaf_optimizer import LeafOptimizer
from mithril_opt.core.numerics import abs_sq, ema, real_dtype, real_zeros, safe_divide, safe_sqrt, zeros
from mithril_opt.core.pytree import pytree
from mithril_opt.core.state import BETAS_AND_EPS, Counterpart, exported
from mithril_opt.core.typing import Array, DecayMask


@exported
class NAdamSlots(NamedTuple):
    """First moment m, second moment v, and the product P of the momenta so far, a scalar; float32."""

    mu: Array
    nu: Array
    product: Array


@pytree
class NAdam(LeafOptimizer):
    """NAdam (Dozat 2016), Adam with Nesterov's momentum, which rises from β₁/2 to β₁; in PyTorch's form.

        g ← g + λ p                      coupled weight decay
        m ← β₁ m + (1 − β₁) g
        v ← β₂ v + (1 − β₂) g²           v̂ = v / (1 − β₂ᵗ)
        μᵢ = β₁ (1 − ½ · 0.96^(ψ i))     P ← P μₜ, from 1
        p ← p − η [μₜ₊₁ m / (1 − P μₜ₊₁) + (1 − μₜ) g / (1 − P)] / (√v̂ + ε)

    Optax's `nadam` is another rule, with the same momentum in every update. For a complex parameter g² is |g|². Gradients
    above 1e18 leave v infinite, and their elements where they are.

    Args:
        learning_rate: η ≥ 0.
        beta1: β₁ in [0, 1), the decay rate of the first moment.
        beta2: β₂ in [0, 1), the decay rate of the second moment.
        epsilon: ε ≥ 0, outside the square root, after the bias correction.
        momentum_decay: ψ ≥ 0, how fast the momentum rises; Keras has 1.
        weight_decay: λ ≥ 0; 0.0 switches it off.
        decoupled_weight_decay: subtract η λ p from the parameter instead of adding λ p to the gradient.
        decay_mask: `(path, leaf) -> bool`, True for the leaves that decay; None for all.

    Raises:
        ValueError: a Python number is out of its range.

    Example:
        >>> import jax.numpy as jnp
        >>> from mithril_opt import NAdam
        >>> optimizer = NAdam(learning_rate=0.1)
        >>> params = jnp.array([1.0])
        >>> params, state = optimizer.update(params, jnp.array([3.0]), optimizer.init(params))
        >>> f"{params[0]:.4f}"
        '0.8944'
    """

    learning_rate: ScalarOrSchedule = number(default=2e-3, minimum=0)
    beta1: DecayRateOrSchedule = decay_rate(default=0.9)
    beta2: DecayRateOrSchedule = decay_rate(default=0.999)
    epsilon: ScalarOrSchedule = number(default=1e-8, minimum=0)
    momentum_decay: ScalarOrSchedule = number(default=4e-3, minimum=0)
    weight_decay: ScalarOrSchedule = number(default=0.0, minimum=0, off=True, masked=True)
    decoupled_weight_decay: bool = static(default=False)
    decay_mask: DecayMask | None = static(default=None)

    unit_steps: ClassVar = True
    moments: ClassVar = ("nu",)
    bias_corrected: ClassVar = ("nu",)

    @property
    def torch(self) -> Counterpart:
        slots = {"mu": "exp_avg", "nu": "exp_avg_sq", "product": "mu_product"}
        values = {"decoupled_weight_decay": self.decoupled_weight_decay}
        fields = {**BETAS_AND_EPS, "momentum_decay": "momentum_decay"}
        return Counterpart("NAdam", slots, frozenset({"momentum_decay"}), values, fields=fields)

    def init_leaf(self, param: Array) -> NAdamSlots:
        return NAdamSlots(mu=zeros(param), nu=real_zeros(param), product=jnp.ones((), real_dtype(param.dtype)))

    def update_leaf(self, param: Array, grad: Array, slots: NAdamSlots, t: Array) -> tuple[Array, NAdamSlots]:
        if self.weight_decay is not None and not self.decoupled_weight_decay:
            grad = grad + self.weight_decay * param
        m = ema(self.beta1, slots.mu, grad)
        v = ema(self.beta2, slots.nu, abs_sq(grad))
        v_hat = v / self.beta2.one_minus_power(t)
        (mu, one_minus_mu), (mu_next, _) = self._momentum(t), self._momentum(t + 1)
        product = slots.product * mu
        lookahead = mu_next / (1 - product * mu_next) * m + one_minus_mu / (1 - product) * grad
        direction = safe_divide(lookahead, safe_sqrt(v_hat) + self.epsilon)
        if self.weight_decay is not None and self.decoupled_weight_decay:
            direction = direction + self.weight_decay * param
        return self.learning_rate * direction, NAdamSlots(m, v, product)

    def _momentum(self, i: Array) -> tuple[Array, Array]:
        """μᵢ, and 1 − μᵢ without cancellation."""
        lacking = self.beta1.value * (0.5 * 0.96 ** (self.momentum_decay * i))
        return self.beta1.value - lacking, self.beta1.complement + lacking
