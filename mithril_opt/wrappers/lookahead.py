"""Lookahead."""

from typing import Any, NamedTuple

import jax.numpy as jnp

from mithril_opt.core.fields import ScalarOrSchedule, number, steps
from mithril_opt.core.optimizer import Optimizer
from mithril_opt.core.pytree import pytree
from mithril_opt.core.slots import check_tree, start_at
from mithril_opt.core.state import exported
from mithril_opt.core.tree import map_leaves, overlay, trained, widen
from mithril_opt.core.typing import Array, PyTree
from mithril_opt.core.updates import moved, plain
from mithril_opt.wrappers.base import StatefulWrapper, fresh_beside, moved_params
from mithril_opt.wrappers.words import constant


@exported
class LookaheadState(NamedTuple):
    """What the next update needs.

    Attributes:
        optimizer: the state of the inner optimizer.
        slow: φ, float32 or wider, a tree shaped like the parameters; None where nothing trains.

    Example:
        >>> import jax.numpy as jnp
        >>> from mithril_opt import SGD, Lookahead
        >>> Lookahead(SGD()).init({"w": jnp.ones(2)}).slow
        {'w': Array([1., 1.], dtype=float32)}
    """

    optimizer: Any
    slow: PyTree


@pytree
class Lookahead(StatefulWrapper):
    """Lookahead (Zhang et al. 2019, Algorithm 1): slow weights that follow those of another optimizer, and call them back.

        p ← p + u                               every update, u the inner optimizer's
        φ ← φ + α (p − φ),  p ← φ               after every k-th update

    The parameters are the fast weights p; `eval_params` are the slow ones, which start at the first parameters. The state of
    the inner optimizer stays as it is when p returns to φ. A leaf whose gradient is None in the k-th update does not return.

    Args:
        optimizer: the inner optimizer.
        every: k ≥ 1; the paper has 5.
        alpha: α in [0, 1], or its schedule.

    Raises:
        ValueError: `every` or `alpha` is out of its range, or the state of `optimizer` counts on its very updates, as that of
            Schedule-Free, Prodigy and `Round` does.
        TypeError: `optimizer` is no `Optimizer`.

    Example:
        >>> import jax.numpy as jnp
        >>> from mithril_opt import SGD, Lookahead
        >>> optimizer = Lookahead(SGD(learning_rate=1.0), every=2, alpha=0.5)
        >>> params, state = jnp.array([8.0]), optimizer.init(jnp.array([8.0]))
        >>> for _ in range(3):
        ...     params, state = optimizer.update(params, jnp.array([1.0]), state)
        ...     print(params, optimizer.eval_params(params, state))
        [7.] [8.]
        [7.] [7.]
        [6.] [7.]
    """

    optimizer: Optimizer
    every: int | Array = steps(default=6)
    alpha: ScalarOrSchedule = number(default=0.5, minimum=0, maximum=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_updates_may_change()

    @property
    def state_type(self) -> type:
        return LookaheadState

    def init(self, params: PyTree) -> LookaheadState:
        return LookaheadState(self.optimizer.init(params), fresh_beside(self, params, start_at))

    def compute_updates(
        self, params: PyTree, grads: PyTree, state: LookaheadState, **extra_args: Any
    ) -> tuple[PyTree, LookaheadState]:
        check_tree(params, state.slow, "slow weights")
        alpha, applies = self.numbers(state).alpha, self.window(state).applies
        updates, state = super().compute_updates(params, grads, state, **extra_args)
        returns = applies & (self.clock(state) % self.every == 0)
        u, fast = plain(updates), moved_params(params, updates)

        def called_back(u: Array, p: Array, φ: Array | None) -> Array:
            return u if φ is None else jnp.where(returns, φ - widen(p), u)

        def followed(φ: Array, p: Array, u: Array | None) -> Array:
            return φ if u is None else jnp.where(returns, φ + alpha * (widen(p) - φ), φ).astype(φ.dtype)

        slow = map_leaves(followed, params, state.slow, fast, u)
        u = map_leaves(called_back, params, u, params, slow)
        new = map_leaves(lambda p, φ: p if φ is None else jnp.where(returns, φ.astype(p.dtype), p), params, fast, slow)
        return moved(params, u, new), state._replace(slow=slow)

    def eval_params(self, params: PyTree, state: LookaheadState) -> PyTree:
        """The slow weights, in the dtypes of `params`."""
        own = super().eval_params(params, state)
        check_tree(trained(params), state.slow, "slow weights")
        read = lambda φ, p: φ.astype(jnp.result_type(p))  # noqa: E731
        return overlay(params, map_leaves(read, params, state.slow, own), own)

    def says(self) -> str:
        return f"called back to slow weights after every {self.every} updates"

    def reads(self) -> str:
        return "their slow weights"

    def idle(self, leaves: list[tuple[str, Any, Optimizer]], total_steps: int) -> str | None:
        if self.every > total_steps:
            return f"it calls back after {self.every} updates, and eval_params are those of the start"
        return "its alpha is 1" if constant(self.alpha) == 1 else None
