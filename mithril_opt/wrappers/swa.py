"""Stochastic weight averaging."""

from typing import Any, NamedTuple

import jax.numpy as jnp

from mithril_opt.core.fields import steps
from mithril_opt.core.numerics import real_dtype, saturating_increment, zeros
from mithril_opt.core.optimizer import Optimizer
from mithril_opt.core.pytree import pytree
from mithril_opt.core.slots import check_tree
from mithril_opt.core.state import exported
from mithril_opt.core.tree import map_leaves, overlay, trained, widen
from mithril_opt.core.typing import Array, PyTree
from mithril_opt.wrappers.base import StatefulWrapper, fresh_beside, moved_params


@exported
class SWAState(NamedTuple):
    """What the next update needs.

    Attributes:
        optimizer: the state of the inner optimizer.
        average: a, float32 or wider, a tree shaped like the parameters; None where nothing trains.
        n_averaged: n, int32 scalar, how many parameters are in the mean.

    Example:
        >>> import jax.numpy as jnp
        >>> from mithril_opt import SGD, SWA
        >>> SWA(SGD(), start=100, every=10).init({"w": jnp.ones(2)}).n_averaged
        Array(0, dtype=int32)
    """

    optimizer: Any
    average: PyTree
    n_averaged: Array


@pytree
class SWA(StatefulWrapper):
    """An optimizer whose `eval_params` are the mean of its parameters at some updates (Izmailov et al. 2018).

        n ← n + 1,  a ← a + (p − a) / n         after the updates s, s + c, s + 2c, …, p the new parameters

    Before the first of them `eval_params` are the parameters. Training does not depend on the mean; the paper trains with a
    constant or cyclical rate from s on. The mean is float32 for narrower parameters. Averages of batch normalization are the
    model's: run some batches with the averaged parameters.

    Args:
        optimizer: the inner optimizer.
        start: s ≥ 0, the number of the first update whose parameters enter the mean; updates are counted from 1.
        every: c ≥ 1, the number of updates between two of them.

    Raises:
        ValueError: `start` or `every` is no such integer.
        TypeError: `optimizer` is no `Optimizer`.

    Example:
        >>> import jax.numpy as jnp
        >>> from mithril_opt import SGD, SWA
        >>> optimizer = SWA(SGD(learning_rate=1.0), start=1, every=2)
        >>> params, state = jnp.array([8.0]), optimizer.init(jnp.array([8.0]))
        >>> for _ in range(4):
        ...     params, state = optimizer.update(params, jnp.array([1.0]), state)
        >>> params, optimizer.eval_params(params, state)
        (Array([4.], dtype=float32), Array([6.], dtype=float32))
    """

    optimizer: Optimizer
    start: int | Array = steps(minimum=0)
    every: int | Array = steps()

    @property
    def state_type(self) -> type:
        return SWAState

    def init(self, params: PyTree) -> SWAState:
        return SWAState(self.optimizer.init(params), fresh_beside(self, params, zeros), jnp.zeros((), jnp.int32))

    def compute_updates(self, params: PyTree, grads: PyTree, state: SWAState, **extra_args: Any) -> tuple[PyTree, SWAState]:
        check_tree(params, state.average, "average")
        applies = self.window(state).applies
        updates, state = super().compute_updates(params, grads, state, **extra_args)
        since = self.clock(state) - self.start
        enters = applies & (since >= 0) & (since % self.every == 0)
        n = jnp.where(enters, saturating_increment(state.n_averaged), state.n_averaged)

        def averaged(a: Array, p: Array) -> Array:
            return jnp.where(enters, a + (widen(p) - a) / n.astype(real_dtype(a.dtype)), a)

        return updates, state._replace(
            average=map_leaves(averaged, params, state.average, moved_params(params, updates)), n_averaged=n
        )

    def eval_params(self, params: PyTree, state: SWAState) -> PyTree:
        """The mean, in the dtypes of `params`; `params` while it is empty."""
        own = super().eval_params(params, state)
        read = lambda a, p: jnp.where(state.n_averaged == 0, p, a.astype(jnp.result_type(p)))  # noqa: E731
        check_tree(trained(params), state.average, "average")
        return overlay(params, map_leaves(read, params, state.average, own), own)

    def reads(self) -> str:
        return f"their mean after {self.start}, {self.start + self.every}, … updates"

    def idle(self, leaves: list[tuple[str, Any, Optimizer]], total_steps: int) -> str | None:
        return f"its mean begins after {self.start} updates" if self.start > total_steps else None
