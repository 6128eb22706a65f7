"""An optimizer that is on or off."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mithril_opt.core.fields import shown
from mithril_opt.core.numerics import saturating_increment
from mithril_opt.core.optimizer import Optimizer
from mithril_opt.core.pytree import numbers_are_sound, pytree, set_field, with_fields
from mithril_opt.core.schedule import require_schedule
from mithril_opt.core.state import Seen, exported
from mithril_opt.core.tree import select
from mithril_opt.core.typing import Array, PyTree
from mithril_opt.wrappers.base import StatefulWrapper, compute_updates_if
from mithril_opt.wrappers.words import counted


@exported
class SwitchState(NamedTuple):
    """What the next update needs.

    Attributes:
        optimizer: the state of the inner optimizer, whose clock counts the updates it was on for.
        step: int32 scalar, the number of updates so far, on or off.

    Example:
        >>> import jax.numpy as jnp
        >>> from mithril_opt import SGD, Switch
        >>> optimizer, params = Switch(SGD(), on=lambda step: step >= 100), jnp.ones(2)
        >>> params, state = optimizer.update(params, params, optimizer.init(params))
        >>> state.step, state.optimizer.step
        (Array(1, dtype=int32), Array(0, dtype=int32))
    """

    optimizer: Any
    step: Array


@pytree
class Switch(StatefulWrapper):
    """An optimizer that is on at some steps and off at the others, to freeze and to thaw a group in mid-run.

    While it is off its parameters and its state stay bit for bit what they were; the inner optimizer does not run, and its
    learning rate is given as 0. Its clock counts the updates made: a schedule inside, a warm-up say, begins when it is first
    on, and the bias corrections are those of the moments it has. What is off still counts in a norm that is taken outside of
    it, and what is around it goes on: y nears z in `ScheduleFree(Switch(…))`, `Lookahead(Switch(…))` calls parameters back.

    Args:
        optimizer: the inner optimizer; it may not accumulate: `Accumulate(Switch(…))` does both.
        on: a schedule, or a function of the step: on where it is not 0.

    Raises:
        ValueError: `optimizer` accumulates, or `on` follows a metric.
        TypeError: `optimizer` is no `Optimizer`, or `on` is no schedule.

    Example:
        >>> import jax.numpy as jnp
        >>> from mithril_opt import SGD, MultiOptimizer, Switch
        >>> thawing = Switch(SGD(learning_rate=1.0), on=lambda step: step >= 2)
        >>> optimizer = MultiOptimizer({"base": thawing, "head": SGD(learning_rate=1.0)}, {"base": "base", "head": "head"})
        >>> params = {"base": jnp.float32(8.0), "head": jnp.float32(8.0)}
        >>> grads, state = {"base": jnp.float32(1.0), "head": jnp.float32(1.0)}, optimizer.init(params)
        >>> for _ in range(3):
        ...     params, state = optimizer.update(params, grads, state)
        >>> params["base"], params["head"]
        (Array(7., dtype=float32), Array(5., dtype=float32))
    """

    optimizer: Optimizer
    on: Any

    def __post_init__(self) -> None:
        super().__post_init__()
        set_field(self, "on", require_schedule(self, self.on, "on=lambda step: step >= {}"))
        if self.on.init() is not None:
            raise ValueError(f"Switch: on cannot follow a metric, got {shown(self.on)}")
        if self.optimizer.window_length not in (None, 1):
            raise ValueError(
                "Switch: the optimizer accumulates, and a window cannot stop half-way: write Accumulate(Switch(…))"
            )

    @property
    def state_type(self) -> type:
        return SwitchState

    def init(self, params: PyTree) -> SwitchState:
        return SwitchState(self.optimizer.init(params), jnp.zeros((), jnp.int32))

    def clock(self, state: SwitchState) -> Array:
        self.inner(state)
        return state.step

    def with_step(self, state: SwitchState, step: Array) -> SwitchState:
        """`state` on the clock of a `MultiOptimizer`, by which it is switched; the inner clock counts on."""
        self.inner(state)
        return state._replace(step=step)

    def is_on(self, state: SwitchState) -> Array:
        """Whether the next update is made: boolean scalar."""
        return jnp.asarray(self.numbers(state).on) != 0

    def compute_updates(
        self, params: PyTree, grads: PyTree, state: SwitchState, **extra_args: Any
    ) -> tuple[PyTree, SwitchState]:
        given = self.drop_frozen(params, grads)
        updates, inner = compute_updates_if(self.is_on(state), self.optimizer, params, given, self.inner(state), extra_args)
        return updates, SwitchState(inner, saturating_increment(state.step))

    def ready(self, state: SwitchState, params: PyTree) -> Array:
        """Whether the numbers are finite; while it is off those inside do not matter."""
        return numbers_are_sound(with_fields(self.numbers(state), optimizer=None)) & (
            ~self.is_on(state) | self.optimizer.ready(self.inner(state), params)
        )

    def clips(self, state: SwitchState, seen: Seen) -> Array:
        return self.is_on(state) & super().clips(state, seen)

    def get_learning_rate(self, state: SwitchState) -> Any:
        return jax.tree.map(lambda rate: jnp.where(self.is_on(state), rate, 0), super().get_learning_rate(state))

    def learning_rates(self, state: SwitchState) -> dict[str, Array]:
        return jax.tree.map(lambda rate: jnp.where(self.is_on(state), rate, 0), super().learning_rates(state))

    def observe(self, state: SwitchState, metric: Any) -> SwitchState:
        return select(self.is_on(state), super().observe(state, metric), state)

    def idle(self, leaves: list[tuple[str, Any, Optimizer]], total_steps: int) -> str | None:
        return "it is on throughout the run" if self.updates_in(np.array([0, total_steps]))[-1] == total_steps else None

    def updates_in(self, updates: Any) -> Any:
        return counted(lambda steps: np.asarray(jax.vmap(self.on)(steps)) != 0, updates)
