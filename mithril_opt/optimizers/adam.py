"""Adam, and Adam with decoupled weight decay."""

from typing import NamedTuple

import jax.numpy as jnp

from mithril_opt._decay_rate import one_minus_power
from mithril_opt._numerics import abs_sq, real_zeros, zeros
from mithril_opt._pytree import number, pytree, static
from mithril_opt._typing import Array, DecayMask, ScalarOrSchedule
from mithril_opt.optimizer import LeafOptimizer


class AdamSlots(NamedTuple):
    """First moment m, second moment v, and with AMSGrad the largest v so far; float32."""

    mu: Array
    nu: Array
    nu_max: Array | None


def _empty_slots(param: Array, amsgrad: bool) -> AdamSlots:
    return AdamSlots(mu=zeros(param), nu=real_zeros(param), nu_max=real_zeros(param) if amsgrad else None)


def _adam(rule: "Adam | AdamW", grad: Array, slots: AdamSlots, t: Array) -> tuple[Array, AdamSlots]:
    """m̂ / (√v̂ + ε), and the new moments."""
    m = rule.beta1 * slots.mu + (1 - rule.beta1) * grad
    v = rule.beta2 * slots.nu + (1 - rule.beta2) * abs_sq(grad)
    v_max = v if slots.nu_max is None else jnp.maximum(slots.nu_max, v)
    m_hat = m / one_minus_power(rule.beta1, t)
    v_hat = v_max / one_minus_power(rule.beta2, t)
    return m_hat / (jnp.sqrt(v_hat) + rule.epsilon), AdamSlots(m, v, None if slots.nu_max is None else v_max)


@pytree
class Adam(LeafOptimizer):
    """Adam (Kingma & Ba 2015, Algorithm 1), with L2 regularization and AMSGrad (Reddi et al. 2018).

        g ← g + λ p                      coupled weight decay
        m ← β₁ m + (1 − β₁) g            m̂ = m / (1 − β₁ᵗ)
        v ← β₂ v + (1 − β₂) g²           v̂ = v / (1 − β₂ᵗ)       (AMSGrad: the largest v so far, then corrected)
        p ← p − η m̂ / (√v̂ + ε)

    Moments and arithmetic are float32 (float64 for float64 parameters), whatever the dtype of the parameters. For a complex
    parameter g² is |g|². `weight_decay` is added to the gradient; for the decoupled form see `AdamW`.

    Args:
        learning_rate: η ≥ 0.
        beta1: β₁ in [0, 1), the decay rate of the first moment.
        beta2: β₂ in [0, 1), the decay rate of the second moment.
        epsilon: ε ≥ 0, outside the square root, after the bias correction.
        weight_decay: λ ≥ 0; 0.0 switches it off.
        amsgrad: divide by the largest second moment so far, as PyTorch does.
        decay_mask: `(path, leaf) -> bool`, True for the leaves that decay; None for all.

    Raises:
        ValueError: a Python number is out of its range.

    Example:
        >>> import jax.numpy as jnp
        >>> from mithril_opt import Adam
        >>> optimizer = Adam(learning_rate=0.1)
        >>> params = {"w": jnp.array([1.0, 2.0])}
        >>> state = optimizer.init(params)
        >>> params, state = optimizer.update(params, {"w": jnp.array([0.5, -0.5])}, state)
        >>> params["w"]
        Array([0.9, 2.1], dtype=float32)
    """

    learning_rate: ScalarOrSchedule = number(default=1e-3, minimum=0)
    beta1: ScalarOrSchedule = number(default=0.9, minimum=0, below=1)
    beta2: ScalarOrSchedule = number(default=0.999, minimum=0, below=1)
    epsilon: ScalarOrSchedule = number(default=1e-8, minimum=0)
    weight_decay: ScalarOrSchedule = number(default=0.0, minimum=0, off=True)
    amsgrad: bool = static(default=False)
    decay_mask: DecayMask | None = static(default=None)

    def init_leaf(self, param: Array) -> AdamSlots:
        return _empty_slots(param, self.amsgrad)

    def update_leaf(self, param: Array, grad: Array, slots: AdamSlots, t: Array) -> tuple[Array, AdamSlots]:
        if self.weight_decay is not None:
            grad = grad + self.weight_decay * param
        return _adam(self, grad, slots, t)


@pytree
class AdamW(LeafOptimizer):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, Algorithm 2, with the schedule multiplier in η).

        m ← β₁ m + (1 − β₁) g            m̂ = m / (1 − β₁ᵗ)
        v ← β₂ v + (1 − β₂) g²           v̂ = v / (1 − β₂ᵗ)       (AMSGrad: the largest v so far, then corrected)
        p ← p − η m̂ / (√v̂ + ε) − η λ p

    The decay uses the parameter before the update and stays out of the moments.

    Args:
        learning_rate: η ≥ 0.
        beta1: β₁ in [0, 1), the decay rate of the first moment.
        beta2: β₂ in [0, 1), the decay rate of the second moment.
        epsilon: ε ≥ 0, outside the square root, after the bias correction.
        weight_decay: λ ≥ 0; 0.0 switches it off.
        amsgrad: divide by the largest second moment so far, as PyTorch does.
        decay_mask: `(path, leaf) -> bool`, True for the leaves that decay; None for all.

    Raises:
        ValueError: a Python number is out of its range.

    Example:
        >>> import jax.numpy as jnp
        >>> from mithril_opt import AdamW
        >>> optimizer = AdamW(learning_rate=0.1, weight_decay=0.1, decay_mask=lambda path, leaf: leaf.ndim > 1)
        >>> params = {"w": jnp.ones((1, 2)), "b": jnp.ones(2)}
        >>> grads = {"w": jnp.ones((1, 2)), "b": jnp.ones(2)}
        >>> params, state = optimizer.update(params, grads, optimizer.init(params))
        >>> params["w"], params["b"]
        (Array([[0.89, 0.89]], dtype=float32), Array([0.9, 0.9], dtype=float32))
    """

    learning_rate: ScalarOrSchedule = number(default=1e-3, minimum=0)
    beta1: ScalarOrSchedule = number(default=0.9, minimum=0, below=1)
    beta2: ScalarOrSchedule = number(default=0.999, minimum=0, below=1)
    epsilon: ScalarOrSchedule = number(default=1e-8, minimum=0)
    weight_decay: ScalarOrSchedule = number(default=0.01, minimum=0, off=True)
    amsgrad: bool = static(default=False)
    decay_mask: DecayMask | None = static(default=None)

    def init_leaf(self, param: Array) -> AdamSlots:
        return _empty_slots(param, self.amsgrad)

    def update_leaf(self, param: Array, grad: Array, slots: AdamSlots, t: Array) -> tuple[Array, AdamSlots]:
        direction, slots = _adam(self, grad, slots, t)
        if self.weight_decay is not None:
            direction = direction + self.weight_decay * param
        return direction, slots
