"""Stochastic gradient descent with momentum."""

from typing import NamedTuple

import jax.numpy as jnp

from mithril_opt.core.fields import DecayRateOrSchedule, ScalarOrSchedule, number, static
from mithril_opt.core.leaf_optimizer import LeafOptimizer
from mithril_opt.core.numerics import zeros
from mithril_opt.core.pytree import pytree
from mithril_opt.core.state import Counterpart, exported
from mithril_opt.core.typing import Array, DecayMask


@exported
class SGDSlots(NamedTuple):
    """The momentum buffer b, float32, None without momentum; with dampening, whether the leaf has had a gradient."""

    trace: Array | None
    started: Array | None


@pytree
class SGD(LeafOptimizer):
    """Stochastic gradient descent with momentum (PyTorch's form of Sutskever et al. 2013).

        g ← g + λ p                      coupled weight decay
        b ← μ b + (1 − τ) g              (b ← g for the first gradient of a leaf)
        p ← p − η b                      Nesterov: p ← p − η (g + μ b)

    The rate multiplies after the buffer, so a change of the rate acts at once. Where gradients add up to more than 3.4e38 in b,
    the parameter becomes infinite.

    Args:
        learning_rate: η ≥ 0.
        momentum: μ ≥ 0; 0.0 switches it off, buffer included.
        nesterov: look ahead along the buffer; needs momentum and no dampening.
        dampening: τ; the first gradient enters undampened.
        weight_decay: λ ≥ 0, added to the gradient; 0.0 switches it off.
        decay_mask: `(path, leaf) -> bool`, True for the leaves that decay; None for all.

    Raises:
        ValueError: a Python number is out of its range, or Nesterov without momentum or with dampening.

    Example:
        >>> import jax.numpy as jnp
        >>> from mithril_opt import SGD
        >>> optimizer = SGD(learning_rate=0.1, momentum=0.9)
        >>> params, state = jnp.array([1.0]), optimizer.init(jnp.array([1.0]))
        >>> for _ in range(2):
        ...     params, state = optimizer.update(params, jnp.array([1.0]), state)
        >>> params
        Array([0.71], dtype=float32)
    """

    learning_rate: ScalarOrSchedule = number(default=0.01, minimum=0)
    momentum: ScalarOrSchedule = number(default=0.0, minimum=0, off=True)
    nesterov: bool = static(default=False)
    dampening: DecayRateOrSchedule = number(default=0.0, off=True, exact=True)
    weight_decay: ScalarOrSchedule = number(default=0.0, minimum=0, off=True, masked=True)
    decay_mask: DecayMask | None = static(default=None)

    @property
    def torch(self) -> Counterpart:
        slots, fields = {"trace": "momentum_buffer"}, {name: name for name in ("momentum", "nesterov", "dampening")}
        return Counterpart("SGD", slots, frozenset({"dampening"}), fields=fields, counts=False, squares=False)

    @property
    def optax(self) -> Counterpart | None:
        return Counterpart("TraceState", {"trace": "trace"}) if self.dampening is None else None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nesterov and (self.momentum is None or self.dampening is not None):
            raise ValueError("SGD: nesterov needs momentum > 0 and no dampening")

    def init_leaf(self, param: Array) -> SGDSlots:
        dampened = self.momentum is not None and self.dampening is not None
        trace = None if self.momentum is None else zeros(param)
        return SGDSlots(trace, started=jnp.zeros((), bool) if dampened else None)

    def update_leaf(self, param: Array, grad: Array, slots: SGDSlots, t: Array) -> tuple[Array, SGDSlots]:
        if self.weight_decay is not None:
            grad = grad + self.weight_decay * param
        if slots.trace is None:
            return self.learning_rate * grad, slots
        fresh = grad if slots.started is None else jnp.where(slots.started, self.dampening.complement, 1) * grad
        b = self.momentum * slots.trace + fresh
        direction = grad + self.momentum * b if self.nesterov else b
        started = None if slots.started is None else jnp.ones((), bool)
        return self.learning_rate * direction, SGDSlots(b, started)
