"""RMSProp."""

from typing import ClassVar, NamedTuple

import jax.numpy as jnp

from mithril_opt.core.fields import DecayRateOrSchedule, ScalarOrSchedule, decay_rate, number, static
from mithril_opt.core.leaf_optimizer import LeafOptimizer
from mithril_opt.core.numerics import abs_sq, ema, real_zeros, safe_divide, safe_sqrt, zeros
from mithril_opt.core.pytree import pytree
from mithril_opt.core.state import Counterpart, exported
from mithril_opt.core.typing import Array, DecayMask


@exported
class RMSPropSlots(NamedTuple):
    """Second moment v, first moment a (centered only), momentum buffer b (with momentum only); float32."""

    nu: Array
    mu: Array | None
    trace: Array | None

    @property
    def _exact(self) -> tuple[str, ...]:
        """v and a, where v − a² would be little but their errors."""
        return () if self.mu is None else ("nu", "mu")


@pytree
class RMSProp(LeafOptimizer):
    """RMSProp (Tieleman & Hinton 2012), centered as in Graves 2013, in PyTorch's form.

        g ← g + λ p                      coupled weight decay
        v ← α v + (1 − α) g²
        a ← α a + (1 − α) g              centered: v − a² takes the place of v below
        b ← μ b + g / (√v + ε)           without momentum b is g / (√v + ε)
        p ← p − η b

    For a complex parameter g² is |g|². A gradient above 1.8e19 leaves v infinite, and its element where it is from then on.

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
    decay: DecayRateOrSchedule = decay_rate(default=0.9)
    epsilon: ScalarOrSchedule = number(default=1e-8, minimum=0)
    momentum: ScalarOrSchedule = number(default=0.0, minimum=0, off=True)
    centered: bool = static(default=False)
    weight_decay: ScalarOrSchedule = number(default=0.0, minimum=0, off=True, masked=True)
    decay_mask: DecayMask | None = static(default=None)

    unit_steps: ClassVar = True
    moments: ClassVar = ("nu",)

    @property
    def torch(self) -> Counterpart:
        slots = {"nu": "square_avg", "mu": "grad_avg", "trace": "momentum_buffer"}
        fields = {"decay": "alpha", "epsilon": "eps", "momentum": "momentum", "centered": "centered"}
        return Counterpart("RMSprop", slots, frozenset({"centered"}), fields=fields)

    @property
    def optax(self) -> Counterpart | None:
        if self.momentum is not None:  # optax keeps the rate in the buffer, which means something else
            return None
        if self.centered:
            return Counterpart("ScaleByRStdDevState", {"nu": "nu", "mu": "mu"})
        return Counterpart("ScaleByRmsState", {"nu": "nu"})

    def init_leaf(self, param: Array) -> RMSPropSlots:
        return RMSPropSlots(
            nu=real_zeros(param),
            mu=zeros(param) if self.centered else None,
            trace=None if self.momentum is None else zeros(param),
        )

    def update_leaf(self, param: Array, grad: Array, slots: RMSPropSlots, t: Array) -> tuple[Array, RMSPropSlots]:
        if self.weight_decay is not None:
            grad = grad + self.weight_decay * param
        v = ema(self.decay, slots.nu, abs_sq(grad))
        a = None if slots.mu is None else ema(self.decay, slots.mu, grad)
        # v − a² is a variance; rounding can make it negative when the gradient hardly changes.
        variance = v if a is None else jnp.maximum(v - abs_sq(a), 0)
        b = safe_divide(grad, safe_sqrt(variance) + self.epsilon)
        if slots.trace is not None:
            b = self.momentum * slots.trace + b
        return self.learning_rate * b, RMSPropSlots(nu=v, mu=a, trace=None if slots.trace is None else b)
