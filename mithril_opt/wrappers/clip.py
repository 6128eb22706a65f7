"""Clipping as part of an optimizer."""

from typing import Any, Self

import jax

from mithril_opt._pytree import check_numbers, number, pytree, with_fields
from mithril_opt._state import Window, check_order
from mithril_opt._tree import agree, trained, widen
from mithril_opt._typing import Array, PyTree, Scalar
from mithril_opt.clipping import clip_gradients
from mithril_opt.optimizer import Optimizer, check_optimizer


@pytree
class Clip(Optimizer):
    """An optimizer that sees its gradients clipped, with the rule of `clip_gradients`.

    Outside a wrapper, `clip_gradients` before `update` does the same. As part of the optimizer it clips what `clip_gradients`
    cannot reach: the mean of a window (`Accumulate(Clip(AdamW(), clip_norm=1.0), every=8)`, PyTorch's order), or one group
    of a `MultiOptimizer` by its own norm. The state is that of the inner optimizer.

    Args:
        optimizer: the inner optimizer.
        clip_norm: bound for the global norm of the leaves that train, ≥ 0.
        clip_value: bound for every element, ≥ 0.

    Raises:
        ValueError: not exactly one of the two bounds is given, or it is negative.
        TypeError: `optimizer` is no `Optimizer`.

    Example:
        >>> import jax.numpy as jnp
        >>> from mithril_opt import SGD, Clip
        >>> optimizer = Clip(SGD(learning_rate=1.0), clip_norm=1.0)
        >>> params = jnp.array([1.0, 1.0])
        >>> optimizer.update(params, jnp.array([0.0, 2.0]), optimizer.init(params))[0]
        Array([1., 0.], dtype=float32)
    """

    optimizer: Optimizer
    clip_norm: Scalar | None = number(default=None, minimum=0, optional=True)
    clip_value: Scalar | None = number(default=None, minimum=0, optional=True)

    def __post_init__(self) -> None:
        check_optimizer("Clip: optimizer", self.optimizer)
        check_numbers(self, schedules=False)
        if (self.clip_norm is None) == (self.clip_value is None):
            raise ValueError(f"Clip: give exactly one of clip_norm and clip_value, got {self.clip_norm!r}, {self.clip_value!r}")

    def init(self, params: PyTree) -> Any:
        return self.optimizer.init(params)

    def update(self, params: PyTree, grads: PyTree, state: Any) -> tuple[PyTree, Any]:
        return self.optimizer.update(params, self._clipped(params, grads), state)

    def compute_updates(self, params: PyTree, grads: PyTree, state: Any) -> tuple[PyTree, Any]:
        """The updates −η d and the new state, without applying them."""
        optimizer: Any = self.optimizer
        return optimizer.compute_updates(params, self._clipped(params, grads), state)

    def _clipped(self, params: PyTree, grads: PyTree) -> PyTree:
        check_order(self, grads)
        return _clip(self, trained(params), agree(params, grads))

    def at(self, step: Any, schedules: PyTree = None) -> Self:
        return with_fields(self, optimizer=self.optimizer.at(step, schedules))

    def resolve(self, state: Any) -> Self:
        return with_fields(self, optimizer=self.optimizer.resolve(state))

    def get_learning_rate(self, state: Any) -> Any:
        return self.optimizer.get_learning_rate(state)

    def observe(self, state: Any, metric: Any) -> Any:
        return self.optimizer.observe(state, metric)

    def drop_frozen(self, params: PyTree, grads: PyTree) -> PyTree:
        return self.optimizer.drop_frozen(params, grads)

    def window(self, state: Any) -> Window:
        return self.optimizer.window(state)

    def skip(self, state: Any, verdict: Array) -> Any:
        return self.optimizer.skip(state, verdict)


@jax.jit  # so that a call outside jit compiles itself once
def _clip(clip: Clip, params: PyTree, grads: PyTree) -> PyTree:
    """In float32 or wider, as whatever comes next computes."""
    wide = jax.tree.map(widen, clip.drop_frozen(params, grads))
    return clip_gradients(wide, clip_value=clip.clip_value, clip_norm=clip.clip_norm)
