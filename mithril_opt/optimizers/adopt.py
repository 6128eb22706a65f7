"""ADOPT."""

from typing import ClassVar, NamedTuple

import jax.numpy as jnp

from mithril_opt.core.fields import DecayRateOrSchedule, ScalarOrSchedule, decay_rate, number, static
from mithril_opt.core.leaf_optimizer import LeafOptimizer
from mithril_opt.core.numerics import abs_sq, ema, real_zeros, safe_divide, safe_sqrt, saturating_increment, zeros
from mithril_opt.core.pytree import pytree
from mithril_opt.core.state import Counterpart, exported
from mithril_opt.core.typing import Array, DecayMask


@exported
class ADOPTSlots(NamedTuple):
    """First moment m and second moment v, float32, and the number n of gradients so far, an int32 scalar."""

    mu: Array
    nu: Array
    seen: Array


@pytree
class ADOPT(LeafOptimizer):
    """ADOPT (Taniguchi et al. 2024, with the clipping of its second version): Adam that converges with any β₂.

        v ← g²                                   at the first gradient, and nothing moves
        u = clip(g / max(√v, ε), ±n^¼)           at all others, with n gradients before this one
        m ← β₁ m + (1 − β₁) u
        p ← p − η (m + λ p)
        v ← β₂ v + (1 − β₂) g²                   after it was used

    A gradient is divided by what is known without it, so there is no bias correction. Where the first gradient is 0, the
    clipping alone bounds the second step: the bound is 1 there and grows. A complex u is clipped to the modulus n^¼, and g² is
    |g|². Gradients above 1e18 leave v infinite, and their elements where they are once m has faded.

    Args:
        learning_rate: η ≥ 0.
        beta1: β₁ in [0, 1), the decay rate of the first moment.
        beta2: β₂ in [0, 1), the decay rate of the second moment.
        epsilon: ε ≥ 0, the smallest divisor.
        weight_decay: λ ≥ 0, decoupled; 0.0 switches it off.
        decay_mask: `(path, leaf) -> bool`, True for the leaves that decay; None for all.

    Raises:
        ValueError: a Python number is out of its range.

    Example:
        >>> import jax.numpy as jnp
        >>> from mithril_opt import ADOPT
        >>> optimizer = ADOPT(learning_rate=0.1, beta1=0.75)
        >>> params, state = jnp.array([1.0]), optimizer.init(jnp.array([1.0]))
        >>> for _ in range(2):
        ...     params, state = optimizer.update(params, jnp.array([3.0]), state)
        ...     print(params)
        [1.]
        [0.975]
    """

    learning_rate: ScalarOrSchedule = number(default=1e-3, minimum=0)
    beta1: DecayRateOrSchedule = decay_rate(default=0.9)
    beta2: DecayRateOrSchedule = decay_rate(default=0.9999)
    epsilon: ScalarOrSchedule = number(default=1e-6, minimum=0)
    weight_decay: ScalarOrSchedule = number(default=0.0, minimum=0, off=True, masked=True)
    decay_mask: DecayMask | None = static(default=None)

    unit_steps: ClassVar = True

    @property
    def optax(self) -> Counterpart:
        return Counterpart("ScaleByAdamState", {"mu": "mu", "nu": "nu", "seen": "count"})

    def init_leaf(self, param: Array) -> ADOPTSlots:
        return ADOPTSlots(mu=zeros(param), nu=real_zeros(param), seen=jnp.zeros((), jnp.int32))

    def update_leaf(self, param: Array, grad: Array, slots: ADOPTSlots, t: Array) -> tuple[Array, ADOPTSlots]:
        first = slots.seen == 0
        n, divisor = jnp.maximum(slots.seen, 1).astype(t.dtype), jnp.maximum(safe_sqrt(slots.nu), self.epsilon)
        u = safe_divide(clip(grad, n**0.25 * divisor), divisor)  # in this order g / ε cannot overflow
        m = ema(self.beta1, slots.mu, u)
        direction = m if self.weight_decay is None else m + self.weight_decay * param
        step = jnp.where(first, 0, self.learning_rate * direction)
        v = jnp.where(first, abs_sq(grad), ema(self.beta2, slots.nu, abs_sq(grad)))
        return step, ADOPTSlots(jnp.where(first, slots.mu, m), v, saturating_increment(slots.seen))


def clip(x: Array, bound: Array) -> Array:
    """`x`, brought back to |x| = `bound` where it is beyond."""
    size = jnp.abs(x)
    beyond = size > bound
    return jnp.where(beyond, x / jnp.where(beyond, size, 1) * bound, x)
