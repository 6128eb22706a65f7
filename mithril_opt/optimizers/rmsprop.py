"""RMSProp."""

from typing import NamedTuple

import jax.numpy as jnp

from mithril_opt._numerics import abs_sq, real_zeros, zeros
from mithril_opt._pytree import number, pytree, static
from mithril_opt._typing import Array, DecayMask, ScalarOrSchedule
from mithril_opt.optimizer import LeafOptimizer


class RMSPropSlots(NamedTuple):
    """Second moment v, first moment a (centered only), momentum buffer b (with momentum only); float32."""

    nu: Array
    mu: Array | None
    trace: Array | None


@pytree
class RMSProp(LeafOptimizer):
    """RMSProp (Tieleman & Hinton 2012), centered as in Graves 2013, in PyTorch's form.

        g ← g + λ p                      coupled weight decay
        v ← α v + (1 − α) g²
        a ← α a + (1 − α) g              centered: v − a² takes the place of v below
        b ← μ b + g / (√v + ε)           without momentum b is g / (√v + ε)
        p ← p − η b

    Args:
        learning_rate: η ≥ 0.
        decay: α in [0, 1), the decay rate of the moments.
        epsilon: ε ≥ 0, outside the square root.
        momentum: μ ≥ 0; 0.0 switches it off, buffer included.
        centered: divide by an estimate of the standard deviation.
        weight_decay: λ ≥ 0, added to the gradient; 0.0 switches it off.
        decay_mask: `(path, leaf) -> bool`, True for the leaves that decay; None for all.

    Raises:
        ValueError: a Python number is out of its range.

    Example:
        >>> import jax.numpy as jnp
        >>> from mithril_opt import RMSProp
        >>> optimizer = RMSProp(learning_rate=0.1, decay=0.75)
        >>> params = jnp.array([1.0])
        >>> params, state = optimizer.update(params, jnp.array([3.0]), optimizer.init(params))
        >>> params
        Array([0.8], dtype=float32)
    """

    learning_rate: ScalarOrSchedule = number(default=1e-3, minimum=0)
    decay: ScalarOrSchedule = number(default=0.9, minimum=0, below=1)
    epsilon: ScalarOrSchedule = number(default=1e-8, minimum=0)
    momentum: ScalarOrSchedule = number(default=0.0, minimum=0, off=True)
    centered: bool = static(default=False)
    weight_decay: ScalarOrSchedule = number(default=0.0, minimum=0, off=True)
    decay_mask: DecayMask | None = static(default=None)

    def init_leaf(self, param: Array) -> RMSPropSlots:
        return RMSPropSlots(
            nu=real_zeros(param),
            mu=zeros(param) if self.centered else None,
            trace=None if self.momentum is None else zeros(param),
        )

    def update_leaf(self, param: Array, grad: Array, slots: RMSPropSlots, t: Array) -> tuple[Array, RMSPropSlots]:
        if self.weight_decay is not None:
            grad = grad + self.weight_decay * param
        v = self.decay * slots.nu + (1 - self.decay) * abs_sq(grad)
        a = None if slots.mu is None else self.decay * slots.mu + (1 - self.decay) * grad
        # v − a² is a variance; rounding can make it negative when the gradient hardly changes.
        variance = v if a is None else jnp.maximum(v - abs_sq(a), 0)
        b = grad / (jnp.sqrt(variance) + self.epsilon)
        if slots.trace is not None:
            b = self.momentum * slots.trace + b
        return b, RMSPropSlots(nu=v, mu=a, trace=None if slots.trace is None else b)
