"""Parameters that do not train."""

from typing import Any

import jax
import jax.numpy as jnp

from mithril_opt.core.numerics import saturating_increment
from mithril_opt.core.optimizer import Optimizer
from mithril_opt.core.pytree import pytree
from mithril_opt.core.state import OptState
from mithril_opt.core.typing import PyTree


@pytree
class Frozen(Optimizer):
    """An optimizer for parameters that do not train: they stay as they are, have no slots and do not count in a norm.

    Example:
        >>> from mithril_opt import AdamW, Frozen, MultiOptimizer
        >>> optimizer = MultiOptimizer({"base": Frozen(), "head": AdamW()}, groups={"base": "backbone/*", "head": ...})
    """

    def init(self, params: PyTree) -> OptState:
        return OptState(step=jnp.zeros((), jnp.int32), slots=None, schedules={})

    def compute_updates(self, params: PyTree, grads: PyTree, state: OptState) -> tuple[PyTree, OptState]:
        return self.drop_frozen(params, grads), state._replace(step=saturating_increment(state.step))

    @property
    def learning_rate(self) -> float:
        """0.0."""
        return 0.0

    def decays(self, path: str, leaf: Any) -> list[Any]:
        return []

    @property
    def window_length(self) -> None:
        return None

    def drop_frozen(self, params: PyTree, grads: PyTree) -> PyTree:
        return jax.tree.map(lambda _: None, params)
