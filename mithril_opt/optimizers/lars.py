"""LARS."""

from collections.abc import Callable
from typing import Any, NamedTuple, Self

import jax.numpy as jnp

from mithril_opt.core.fields import AxesOrFunction, ScalarOrSchedule, number, shown, static
from mithril_opt.core.leaf_optimizer import LeafOptimizer
from mithril_opt.core.numerics import safe_divide, zeros
from mithril_opt.core.pytree import pytree, with_fields
from mithril_opt.core.reductions import unit_norm
from mithril_opt.core.state import exported
from mithril_opt.core.typing import Array, DecayMask


@exported
class LARSSlots(NamedTuple):
    """The momentum buffer b, float32; None without momentum."""

    trace: Array | None


@pytree
class LARS(LeafOptimizer):
    """LARS, layer-wise adaptive rates for large batches (You, Gitman & Ginsburg 2017, Algorithm 1).

        r = τ ‖p‖ / (‖g‖ + λ ‖p‖ + ε)    1 where ‖p‖ or ‖g‖ is 0
        b ← μ b + r (g + λ p)
        p ← p − η b                      Nesterov: p ← p − η (r (g + λ p) + μ b)

    The ratio r is one number for each leaf, or for each layer of a stack. In the paper η is inside b; outside it a change of
    the rate acts at once, and a constant rate does the same. What the trust mask leaves out is trained by SGD with momentum.
    Where ‖g‖ is so large that r is no float32, above about 1e35, a layer stays where it is.

    Args:
        learning_rate: η ≥ 0.
        momentum: μ ≥ 0; 0.0 switches it off, buffer included.
        nesterov: look ahead along the buffer; needs momentum.
        trust_coefficient: τ > 0.
        epsilon: ε ≥ 0.
        weight_decay: λ ≥ 0; 0.0 switches it off.
        decay_mask: `(path, leaf) -> bool`, True for the leaves that decay; None for all.
        trust_mask: `(path, leaf) -> bool`, False for the leaves with r = 1, usually biases and norms; None for none.
        unit_axes: the axes that count the layers stacked in a leaf, an axis, a tuple, or `(path, leaf) -> axes`; None for a
            leaf that is one layer.

    Raises:
        ValueError: a Python number is out of its range, Nesterov without momentum, or a leaf has no such axes.

    Example:
        >>> import jax.numpy as jnp
        >>> from mithril_opt import LARS
        >>> optimizer = LARS(learning_rate=10.0, trust_coefficient=0.01)
        >>> params = jnp.array([3.0, 4.0])
        >>> params, state = optimizer.update(params, jnp.array([6.0, 8.0]), optimizer.init(params))
        >>> params
        Array([2.7, 3.6], dtype=float32)
    """

    learning_rate: ScalarOrSchedule = number(default=1.0, minimum=0)
    momentum: ScalarOrSchedule = number(default=0.9, minimum=0, off=True)
    nesterov: bool = static(default=False)
    trust_coefficient: ScalarOrSchedule = number(default=1e-3, above=0)
    epsilon: ScalarOrSchedule = number(default=0.0, minimum=0)
    weight_decay: ScalarOrSchedule = number(default=0.0, minimum=0, off=True, masked=True)
    decay_mask: DecayMask | None = static(default=None)
    trust_mask: Callable[[str, Any], bool] | None = static(default=None)
    unit_axes: AxesOrFunction = static(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nesterov and self.momentum is None:
            raise ValueError("LARS: nesterov needs momentum > 0")
        if not (self.trust_mask is None or callable(self.trust_mask)):
            raise TypeError(f"LARS: trust_mask must be a function (path, leaf) -> bool, got {shown(self.trust_mask)}")

    def for_leaf(self, path: str, param: Any) -> Self:
        rule = super().for_leaf(path, param)
        trusted = self.trust_mask is None or self.trust_mask(path, param)
        return rule if trusted else with_fields(rule, trust_coefficient=None)

    def init_leaf(self, param: Array) -> LARSSlots:
        return LARSSlots(trace=None if self.momentum is None else zeros(param))

    def update_leaf(self, param: Array, grad: Array, slots: LARSSlots, t: Array) -> tuple[Array, LARSSlots]:
        direction = grad if self.weight_decay is None else grad + self.weight_decay * param
        if self.trust_coefficient is not None:
            direction = self._trust_ratio(param, grad) * direction
        if slots.trace is None:
            return self.learning_rate * direction, slots
        b = self.momentum * slots.trace + direction
        return self.learning_rate * (direction + self.momentum * b if self.nesterov else b), LARSSlots(trace=b)

    def _trust_ratio(self, param: Array, grad: Array) -> Array:
        p, g = unit_norm(param, self.unit_axes), unit_norm(grad, self.unit_axes)
        total = g + self.epsilon if self.weight_decay is None else g + self.weight_decay * p + self.epsilon
        return jnp.where((p == 0) | (g == 0), 1, safe_divide(self.trust_coefficient * p, total))
