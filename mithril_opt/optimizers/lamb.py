"""LAMB."""

from typing import ClassVar, NamedTuple

import jax.numpy as jnp

from mithril_opt.core.fields import AxesOrFunction, DecayRateOrSchedule, ScalarOrSchedule, decay_rate, number, static
from mithril_opt.core.leaf_optimizer import LeafOptimizer
from mithril_opt.core.numerics import abs_sq, ema, real_zeros, safe_divide, safe_sqrt, zeros
from mithril_opt.core.pytree import pytree
from mithril_opt.core.reductions import norm_ratio, unit_norm
from mithril_opt.core.state import Counterpart, exported
from mithril_opt.core.typing import Array, DecayMask


@exported
class LAMBSlots(NamedTuple):
    """First moment m and second moment v; float32."""

    mu: Array
    nu: Array


@pytree
class LAMB(LeafOptimizer):
    """LAMB, layer-wise adaptive moments for large batches (You et al. 2020, Algorithm 2).

        m ← β₁ m + (1 − β₁) g            m̂ = m / (1 − β₁ᵗ)
        v ← β₂ v + (1 − β₂) g²           v̂ = v / (1 − β₂ᵗ)
        u = m̂ / (√v̂ + ε) + λ p
        r = ‖p‖ / ‖u‖                    1 where a norm is 0
        p ← p − η r u

    The trust ratio r is one number for each leaf, biases included, or for each layer of a stack. Where r = 1 LAMB is `AdamW`
    with its ε: put leaves that should not adapt into a group of that. Where |g| exceeds 1.8e19 v overflows, and from then on
    the decay alone moves that element.

    Args:
        learning_rate: η ≥ 0.
        beta1: β₁ in [0, 1), the decay rate of the first moment.
        beta2: β₂ in [0, 1), the decay rate of the second moment.
        epsilon: ε ≥ 0, outside the square root, after the bias correction.
        weight_decay: λ ≥ 0, inside the ratio; 0.0 switches it off.
        trust_max: the largest r, > 0; None for no bound.
        decay_mask: `(path, leaf) -> bool`, True for the leaves that decay; None for all.
        unit_axes: the axes that count the layers stacked in a leaf, an axis, a tuple, or `(path, leaf) -> axes`; None for a
            leaf that is one layer.

    Raises:
        ValueError: a Python number is out of its range, or a leaf has no such axes.

    Example:
        >>> import jax.numpy as jnp
        >>> from mithril_opt import LAMB
        >>> optimizer = LAMB(learning_rate=0.1)
        >>> params = jnp.array([3.0, 4.0])
        >>> params, state = optimizer.update(params, jnp.array([2.0, 2.0]), optimizer.init(params))
        >>> params.round(4)
        Array([2.6464, 3.6464], dtype=float32)
    """

    learning_rate: ScalarOrSchedule = number(default=1e-3, minimum=0)
    beta1: DecayRateOrSchedule = decay_rate(default=0.9)
    beta2: DecayRateOrSchedule = decay_rate(default=0.999)
    epsilon: ScalarOrSchedule = number(default=1e-6, minimum=0)
    weight_decay: ScalarOrSchedule = number(default=0.0, minimum=0, off=True, masked=True)
    trust_max: ScalarOrSchedule = number(default=None, above=0, optional=True)
    decay_mask: DecayMask | None = static(default=None)

    moments: ClassVar = ("mu", "nu")
    bias_corrected: ClassVar = ("nu",)
    unit_axes: AxesOrFunction = static(default=None)

    @property
    def optax(self) -> Counterpart:
        return Counterpart("ScaleByAdamState", {"mu": "mu", "nu": "nu"})

    def init_leaf(self, param: Array) -> LAMBSlots:
        return LAMBSlots(mu=zeros(param), nu=real_zeros(param))

    def update_leaf(self, param: Array, grad: Array, slots: LAMBSlots, t: Array) -> tuple[Array, LAMBSlots]:
        m = ema(self.beta1, slots.mu, grad)
        v = ema(self.beta2, slots.nu, abs_sq(grad))
        m_hat = m / self.beta1.one_minus_power(t)
        v_hat = v / self.beta2.one_minus_power(t)
        u = safe_divide(m_hat, safe_sqrt(v_hat) + self.epsilon)
        if self.weight_decay is not None:
            u = u + self.weight_decay * param
        r = norm_ratio(unit_norm(param, self.unit_axes), unit_norm(u, self.unit_axes))
        if self.trust_max is not None:
            r = jnp.minimum(r, self.trust_max)
        return self.learning_rate * (r * u), LAMBSlots(mu=m, nu=v)
