"""Gradient accumulation."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mithril_opt.core.fields import count, static
from mithril_opt.core.launches import if_true, truths
from mithril_opt.core.numerics import compute_dtype, real_dtype
from mithril_opt.core.optimizer import Optimizer
from mithril_opt.core.pytree import pytree, set_field
from mithril_opt.core.slots import check_tree
from mithril_opt.core.state import Seen, Window, exported
from mithril_opt.core.tree import trained, widen
from mithril_opt.core.typing import Array, PyTree
from mithril_opt.wrappers.base import StatefulWrapper, compute_updates_if


@exported
class AccumulateState(NamedTuple):
    """What the next micro-step needs.

    Attributes:
        optimizer: the state of the inner optimizer; its clock counts applied updates.
        mean: of the gradients of this window so far (before its first, of the last window), float32, a tree shaped like the
            parameters; None where nothing trains.
        micro_step: int32 scalar, the number of gradients in this window.
        verdict: int32 scalar, why this window will be dropped; 0 if it will not.

    Example:
        >>> import jax.numpy as jnp
        >>> from mithril_opt import SGD, Accumulate
        >>> optimizer, params = Accumulate(SGD(), every=4), jnp.ones(2)
        >>> params, state = optimizer.update(params, params, optimizer.init(params))
        >>> state.micro_step, state.optimizer.step
        (Array(1, dtype=int32), Array(0, dtype=int32))
    """

    optimizer: Any
    mean: PyTree
    micro_step: Array
    verdict: Array


@pytree
class Accumulate(StatefulWrapper):
    """Gradient accumulation: one update of the inner optimizer on the mean of `every` gradients.

    The n-th gradient of a window enters a running mean, m ← (1 − 1/n) m + g/n in float32, which finite gradients cannot
    overflow. The inner optimizer runs on every k-th call only, so the other calls touch nothing but the mean,
    and its schedules and bias corrections count applied updates. A gradient that is None counts as zero; a leaf whose gradient
    is None on the k-th call is not updated. When k has shrunk in mid-window, the window closes on the next call, with the mean
    of what is in it. To clip the mean, wrap what is inside: `Accumulate(Clip(AdamW(), clip_norm=1.0), every=8)`.

    Args:
        optimizer: the inner optimizer.
        every: k ≥ 1, the number of gradients in a window.

    Raises:
        ValueError: `every` is no integer of at least 1, or `optimizer` accumulates itself.
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
        super().__post_init__()
        set_field(self, "every", count(self.every, "Accumulate: every"))
        if self.optimizer.window_length not in (None, 1):
            raise ValueError("Accumulate: the optimizer accumulates already; give the product of both lengths as every")

    @property
    def state_type(self) -> type:
        return AccumulateState

    @property
    def window_length(self) -> int:
        return self.every

    def init(self, params: PyTree) -> AccumulateState:
        leaves = self.drop_frozen(trained(params), trained(params))
        mean = jax.tree.map(lambda leaf: jnp.zeros_like(leaf, dtype=compute_dtype(jnp.result_type(leaf))), leaves)
        return AccumulateState(self.optimizer.init(params), mean, jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))

    def compute_updates(
        self, params: PyTree, grads: PyTree, state: AccumulateState, **extra_args: Any
    ) -> tuple[PyTree, AccumulateState]:
        check_tree(params, state.mean, "mean of its gradients")
        window, mean = self.window(state), _mean(state, grads)
        given = jax.tree.map(lambda mean, grad: None if grad is None else mean, mean, grads, is_leaf=_is_none)

        updates, inner = compute_updates_if(window.applies, self.optimizer, params, given, state.optimizer, extra_args)
        return updates, _advance(state._replace(optimizer=inner, mean=mean), *window)

    def window(self, state: AccumulateState) -> Window:
        return Window(closes=state.micro_step + 1 >= self.every, verdict=state.verdict)

    def with_step(self, state: AccumulateState, step: Array) -> AccumulateState:
        # Beside groups that make an update in each call this one keeps time by its windows.
        return super().with_step(state, step) if self.every == 1 else state

    def tell(self, state: AccumulateState, seen: Seen | None) -> AccumulateState:
        """The same: what was seen of one gradient says nothing of the mean."""
        return state

    @property
    def hands_on_gradients(self) -> bool:
        return False

    def skip(self, state: AccumulateState, verdict: Array) -> AccumulateState:
        """The state after a micro-step that spoils its window: the window counts on to its end and is dropped there."""
        return _advance(state, self.window(state).closes, jnp.maximum(state.verdict, verdict))

    def says(self) -> str:
        return f"one update for every {self.every} gradients, with their mean"

    def idle(self, leaves: list[tuple[str, Any, Optimizer]], total_steps: int) -> str | None:
        return "its every is 1" if self.every == 1 else None


def _advance(state: AccumulateState, closes: Array, verdict: Array) -> AccumulateState:
    """One micro-step on. The mean of a window that has closed stays where it is until the next one begins: to clear it would
    cost a pass over it."""
    return state._replace(micro_step=jnp.where(closes, 0, state.micro_step + 1), verdict=jnp.where(closes, 0, verdict))


def _mean(state: AccumulateState, grads: PyTree) -> PyTree:
    """The mean of the gradients of the window, with one more in it."""
    leaves, structure = jax.tree.flatten(state.mean, is_leaf=_is_none)
    each = zip(leaves, structure.flatten_up_to(grads), truths(leaves), strict=True)
    return structure.unflatten([None if mean is None else _mean_of_leaf(mean, *rest, state.micro_step) for mean, *rest in each])


@jax.jit  # so that leaves of equal shape are traced once
def _mean_of_leaf(mean: Array, grad: Array | None, truth: Array | None, micro_step: Array) -> Array:
    share = 1 / (micro_step + 1).astype(real_dtype(mean.dtype))
    kept = jnp.where(micro_step == 0, 0, if_true(truth, mean) * (1 - share).astype(mean.dtype))
    return kept if grad is None else kept + widen(grad).astype(mean.dtype) * share.astype(mean.dtype)


def _is_none(leaf: Any) -> bool:
    return leaf is None
