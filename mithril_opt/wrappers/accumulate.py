"""Gradient accumulation."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp

from mithril_opt._numerics import compute_dtype, real_dtype
from mithril_opt._pytree import pytree, static, with_fields
from mithril_opt._tree import agree, merge, trained, widen
from mithril_opt._typing import Array, PyTree
from mithril_opt.optimizer import Optimizer, Window, check_state


class AccumulateState(NamedTuple):
    """What the next micro-step needs.

    Attributes:
        optimizer: the state of the inner optimizer; its clock counts applied updates.
        sums: the sum of the gradients of this window, float32, a tree shaped like the parameters; None where nothing trains.
        micro_step: int32 scalar, the number of gradients in it.
        verdict: int32 scalar, why this window will be dropped; 0 if it will not.
    """

    optimizer: Any
    sums: PyTree
    micro_step: Array
    verdict: Array


@pytree
class Accumulate(Optimizer):
    """Gradient accumulation: one update of the inner optimizer on the mean of `every` gradients.

    The gradients are summed in float32. The inner optimizer runs on every k-th call only (`jax.lax.cond`), so the other calls
    touch nothing but the sums, and its schedules and bias corrections count applied updates. A leaf whose gradient is None
    on the k-th call is not updated. When k has shrunk in mid-window, the window closes on the next call, with the mean of
    what is in it. To clip the mean, wrap what is inside: `Accumulate(Clip(AdamW(), clip_norm=1.0), every=8)`.

    Args:
        optimizer: the inner optimizer.
        every: k ≥ 1, the number of gradients in a window.

    Raises:
        ValueError: `every` is no integer of at least 1.
        TypeError: `optimizer` is no `Optimizer`.

    Example:
        >>> import jax.numpy as jnp
        >>> from mithril_opt import SGD, Accumulate
        >>> optimizer = Accumulate(SGD(learning_rate=1.0), every=2)
        >>> params, state = jnp.array([1.0]), optimizer.init(jnp.array([1.0]))
        >>> params, state = optimizer.update(params, jnp.array([0.25]), state)
        >>> params
        Array([1.], dtype=float32)
        >>> params, state = optimizer.update(params, jnp.array([0.75]), state)
        >>> params
        Array([0.5], dtype=float32)
    """

    optimizer: Optimizer
    every: int = static()

    def __post_init__(self) -> None:
        if not isinstance(self.optimizer, Optimizer):
            raise TypeError(f"Accumulate: optimizer must be an Optimizer, got {self.optimizer!r}")
        if isinstance(self.every, bool) or not isinstance(self.every, int) or self.every < 1:
            raise ValueError(f"Accumulate: every must be an integer of at least 1, got {self.every!r}")

    def init(self, params: PyTree) -> AccumulateState:
        leaves = self.drop_frozen(trained(params), trained(params))
        sums = jax.tree.map(lambda leaf: jnp.zeros_like(leaf, dtype=compute_dtype(jnp.result_type(leaf))), leaves)
        return AccumulateState(self.optimizer.init(params), sums, jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))

    def update(self, params: PyTree, grads: PyTree, state: AccumulateState) -> tuple[PyTree, AccumulateState]:
        new_params, state = self._run("update", params, grads, state)
        return merge(params, new_params), state

    def compute_updates(self, params: PyTree, grads: PyTree, state: AccumulateState) -> tuple[PyTree, AccumulateState]:
        """The updates −η d and the new state, without applying them: zeros on all but the k-th call."""
        return self._run("compute_updates", params, grads, state)

    def _run(self, method: str, params: PyTree, grads: PyTree, state: AccumulateState) -> tuple[PyTree, AccumulateState]:
        check_state(self, grads, state, AccumulateState)
        grads = agree(params, grads)
        return _micro_step(method, self.resolve(state), trained(params), grads, state)

    def at(self, step: Any, schedules: PyTree = None) -> Self:
        return with_fields(self, optimizer=self.optimizer.at(step, schedules))

    def resolve(self, state: AccumulateState) -> Self:
        return with_fields(self, optimizer=self.optimizer.resolve(state.optimizer))

    def get_learning_rate(self, state: AccumulateState) -> Any:
        return self.optimizer.get_learning_rate(state.optimizer)

    def observe(self, state: AccumulateState, metric: Any) -> AccumulateState:
        return state._replace(optimizer=self.optimizer.observe(state.optimizer, metric))

    def drop_frozen(self, params: PyTree, grads: PyTree) -> PyTree:
        return self.optimizer.drop_frozen(params, grads)

    def window(self, state: AccumulateState) -> Window:
        return Window(closes=state.micro_step + 1 >= self.every, verdict=state.verdict)

    def skip(self, state: AccumulateState, verdict: Array) -> AccumulateState:
        """The state after a micro-step that spoils its window: the window counts on to its end and is dropped there."""
        return _advance(state, self.window(state).closes, jnp.maximum(state.verdict, verdict))


@functools.partial(jax.jit, static_argnums=0)  # so that a call outside jit compiles itself once
def _micro_step(
    method: str, optimizer: Accumulate, params: PyTree, grads: PyTree, state: AccumulateState
) -> tuple[PyTree, AccumulateState]:
    closes, verdict = optimizer.window(state)

    def apply(params: PyTree, grads: PyTree, state: AccumulateState) -> tuple[PyTree, AccumulateState]:
        mean = _map_given(lambda total, grad: _over(_plus(total, grad), state.micro_step + 1), state.sums, grads)
        output, inner = getattr(optimizer.optimizer, method)(params, mean, state.optimizer)
        sums = jax.tree.map(jnp.zeros_like, state.sums)
        return output, AccumulateState(inner, sums, jnp.zeros_like(state.micro_step), state.verdict)

    def add(params: PyTree, grads: PyTree, state: AccumulateState) -> tuple[PyTree, AccumulateState]:
        sums = merge(state.sums, _map_given(_plus, state.sums, grads))
        output = params
        if method == "compute_updates":
            output = jax.tree.map(jnp.zeros_like, jax.eval_shape(apply, params, grads, state)[0])
        return output, _advance(state._replace(sums=sums), closes, verdict)

    return jax.lax.cond(closes & (verdict == 0), apply, add, params, grads, state)


def _advance(state: AccumulateState, closes: Array, verdict: Array) -> AccumulateState:
    """One micro-step on; where the window closes, a dropped one is emptied."""
    return state._replace(
        sums=jax.tree.map(lambda total: jnp.where(closes, 0, total), state.sums),
        micro_step=jnp.where(closes, 0, state.micro_step + 1),
        verdict=jnp.where(closes, 0, verdict),
    )


def _plus(total: Array, grad: Array) -> Array:
    return total + widen(grad).astype(total.dtype)


def _over(total: Array, count: Array) -> Array:
    return total * (1 / count.astype(real_dtype(total.dtype))).astype(total.dtype)


def _map_given(fun: Callable[[Array, Array], Array], sums: PyTree, grads: PyTree) -> PyTree:
    """`fun` over the leaves that have a sum and a gradient, None elsewhere."""

    def on_leaf(total: Array | None, grad: Array | None) -> Array | None:
        return None if total is None or grad is None else fun(total, grad)

    return jax.tree.map(on_leaf, sums, grads, is_leaf=lambda leaf: leaf is None)
