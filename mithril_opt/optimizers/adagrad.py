"""AdaGrad."""

from typing import NamedTuple

import jax.numpy as jnp

from mithril_opt._numerics import abs_sq, real_dtype
from mithril_opt._pytree import number, pytree, static
from mithril_opt._typing import Array, DecayMask, ScalarOrSchedule
from mithril_opt.optimizer import LeafOptimizer


class AdaGradSlots(NamedTuple):
    """The sum of squared gradients s, float32."""

    sum_of_squares: Array


@pytree
class AdaGrad(LeafOptimizer):
    """AdaGrad with a diagonal matrix (Duchi, Hazan & Singer 2011).

        g ← g + λ p                      coupled weight decay
        s ← s + g²
        p ← p − η g / (√s + ε)

    Args:
        learning_rate: η ≥ 0.
        epsilon: ε ≥ 0, outside the square root.
        initial_accumulator_value: s before the first update, ≥ 0.
        weight_decay: λ ≥ 0, added to the gradient; 0.0 switches it off.
        decay_mask: `(path, leaf) -> bool`, True for the leaves that decay; None for all.

    Raises:
        ValueError: a Python number is out of its range.

    Example:
        >>> import jax.numpy as jnp
        >>> from mithril_opt import AdaGrad
        >>> optimizer = AdaGrad(learning_rate=0.1)
        >>> params = jnp.array([1.0])
        >>> params, state = optimizer.update(params, jnp.array([3.0]), optimizer.init(params))
        >>> params
        Array([0.9], dtype=float32)
    """

    learning_rate: ScalarOrSchedule = number(default=0.01, minimum=0)
    epsilon: ScalarOrSchedule = number(default=1e-8, minimum=0)
    initial_accumulator_value: ScalarOrSchedule = number(default=0.0, minimum=0)
    weight_decay: ScalarOrSchedule = number(default=0.0, minimum=0, off=True)
    decay_mask: DecayMask | None = static(default=None)

    def init_leaf(self, param: Array) -> AdaGradSlots:
        return AdaGradSlots(jnp.full_like(param, self.initial_accumulator_value, dtype=real_dtype(param.dtype)))

    def update_leaf(self, param: Array, grad: Array, slots: AdaGradSlots, t: Array) -> tuple[Array, AdaGradSlots]:
        if self.weight_decay is not None:
            grad = grad + self.weight_decay * param
        s = slots.sum_of_squares + abs_sq(grad)
        return grad / (jnp.sqrt(s) + self.epsilon), AdaGradSlots(sum_of_squares=s)
