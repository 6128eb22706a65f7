"""AdaGrad."""

from typing import ClassVar, NamedTuple

import jax.numpy as jnp

from mithril_opt.core.fields import ScalarOrSchedule, number, static
from mithril_opt.core.leaf_optimizer import LeafOptimizer
from mithril_opt.core.numerics import abs_sq, real_dtype, safe_divide, safe_sqrt
from mithril_opt.core.pytree import pytree
from mithril_opt.core.state import Counterpart, exported
from mithril_opt.core.typing import Array, DecayMask


@exported
class AdaGradSlots(NamedTuple):
    """The sum of squared gradients s, float32."""

    sum_of_squares: Array


@pytree
class AdaGrad(LeafOptimizer):
    """AdaGrad with a diagonal matrix (Duchi, Hazan & Singer 2011).

        g ← g + λ p                      coupled weight decay
        s ← s + g²
        p ← p − η g / (√s + ε)

    For a complex parameter g² is |g|². A gradient above 1.8e19 leaves s infinite, and its element where it is from then on.

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
    weight_decay: ScalarOrSchedule = number(default=0.0, minimum=0, off=True, masked=True)
    decay_mask: DecayMask | None = static(default=None)

    unit_steps: ClassVar = True

    @property
    def torch(self) -> Counterpart:
        settings = frozenset({"lr_decay", "initial_accumulator_value"})
        return Counterpart("Adagrad", {"sum_of_squares": "sum"}, settings, fields={"epsilon": "eps"})

    @property
    def optax(self) -> Counterpart:
        return Counterpart("ScaleByRssState", {"sum_of_squares": "sum_of_squares"})

    def init_leaf(self, param: Array) -> AdaGradSlots:
        return AdaGradSlots(jnp.full_like(param, self.initial_accumulator_value, dtype=real_dtype(param.dtype)))

    def update_leaf(self, param: Array, grad: Array, slots: AdaGradSlots, t: Array) -> tuple[Array, AdaGradSlots]:
        if self.weight_decay is not None:
            grad = grad + self.weight_decay * param
        s = slots.sum_of_squares + abs_sq(grad)
        return self.learning_rate * safe_divide(grad, safe_sqrt(s) + self.epsilon), AdaGradSlots(sum_of_squares=s)
