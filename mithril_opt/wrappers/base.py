"""What a wrapper is: an optimizer in, an optimizer out. Everything is forwarded; a wrapper defines what it changes."""

import dataclasses
from collections.abc import Callable
from typing import Any, Self

import jax
import jax.numpy as jnp

from mithril_opt.core.branch import update_if
from mithril_opt.core.fields import Number, rule_of
from mithril_opt.core.numerics import compute_dtype
from mithril_opt.core.optimizer import Optimizer, check_optimizer
from mithril_opt.core.pytree import check_numbers, numbers_are_sound, set_field, with_fields
from mithril_opt.core.schedule import as_schedule
from mithril_opt.core.slots import fresh
from mithril_opt.core.state import Seen, Window, check_state
from mithril_opt.core.tree import map_leaves, overlay, trained
from mithril_opt.core.typing import Array, PyTree
from mithril_opt.core.updates import apply_updates, moved, plain


class Wrapper(Optimizer):
    """An optimizer around another one, its field `optimizer`. Subclass it with `@pytree` and define what changes, as a rule
    `compute_updates`; all else is the inner optimizer's, its state included. A number of a wrapper may be a schedule of the
    updates applied so far: `self.numbers(state)` has its value.

    A wrapper with a state of its own, a NamedTuple in which the inner state is the field `optimizer`, is a `StatefulWrapper`.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from mithril_opt import SGD, Optimizer, Wrapper, pytree
        >>> @pytree
        ... class Double(Wrapper):
        ...     optimizer: Optimizer
        ...     def compute_updates(self, params, grads, state, **extra_args):
        ...         updates, state = self.inner_updates(params, grads, state, **extra_args)
        ...         return jax.tree.map(lambda update: 2 * update, updates), state
        >>> optimizer, params = Double(SGD(learning_rate=0.25)), jnp.array([1.0])
        >>> optimizer.update(params, params, optimizer.init(params))[0]
        Array([0.5], dtype=float32)
    """

    optimizer: Optimizer

    def __post_init__(self) -> None:
        check_optimizer(f"{type(self).__name__}: optimizer", self.optimizer)
        for field in dataclasses.fields(self):
            if isinstance(rule_of(field), Number):
                set_field(self, field.name, as_schedule(getattr(self, field.name)))
        check_numbers(self)
        if driven := [name for name, schedule in self.schedules.items() if schedule.init() is not None]:
            raise ValueError(f"{type(self).__name__}: {driven[0]} cannot follow a metric; only a number of a rule can")

    def numbers(self, state: Any) -> Self:
        """This wrapper with the numbers of its own that the next update will use."""
        return super().at(self.clock(state)) if self.schedules else self

    def inner(self, state: Any) -> Any:
        """The state of the inner optimizer."""
        check_state(self, state)
        return state

    def with_inner(self, state: Any, inner: Any) -> Any:
        """`state` with `inner` as the state of the inner optimizer."""
        return inner

    def init(self, params: PyTree) -> Any:
        return self.optimizer.init(params)

    def compute_updates(self, params: PyTree, grads: PyTree, state: Any, **extra_args: Any) -> tuple[PyTree, Any]:
        updates, inner = self.optimizer.compute_updates(params, grads, self.inner(state), **extra_args)
        return updates, self.with_inner(state, inner)

    def inner_updates(self, params: PyTree, grads: PyTree, state: Any, **extra_args: Any) -> tuple[PyTree, Any]:
        """What `compute_updates` of the inner optimizer returns, the updates as arrays or None, for a wrapper to change.

        Raises:
            ValueError: the inner optimizer counts on the parameters moving by its very updates.
        """
        self.check_updates_may_change()
        updates, state = Wrapper.compute_updates(self, params, grads, state, **extra_args)
        return plain(updates), state

    def check_updates_may_change(self) -> None:
        """Raise a ValueError if the inner optimizer counts on the parameters moving by its very updates."""
        if (why := self.optimizer.owns_updates(type(self).__name__)) is not None:
            raise ValueError(f"{type(self).__name__}: {why}")

    def get_learning_rate(self, state: Any) -> Any:
        return self.optimizer.get_learning_rate(self.inner(state))

    def learning_rates(self, state: Any) -> dict[str, Array]:
        return self.optimizer.learning_rates(self.inner(state))

    @property
    def group_names(self) -> list[str]:
        return self.optimizer.group_names

    def with_learning_rate(self, learning_rate: Any) -> Self:
        return with_fields(self, optimizer=self.optimizer.with_learning_rate(learning_rate))

    def observe(self, state: Any, metric: Any) -> Any:
        return self.with_inner(state, self.optimizer.observe(self.inner(state), metric))

    def at(self, step: Any, schedules: PyTree = None) -> Self:
        return with_fields(super().at(step), optimizer=self.optimizer.at(step, schedules))

    def with_step(self, state: Any, step: Array) -> Any:
        return self.with_inner(state, self.optimizer.with_step(self.inner(state), step))

    def resolve(self, state: Any) -> Self:
        return with_fields(self.numbers(state), optimizer=self.optimizer.resolve(self.inner(state)))

    def clock(self, state: Any) -> Array:
        return self.optimizer.clock(self.inner(state))

    def eval_params(self, params: PyTree, state: Any) -> PyTree:
        return self.optimizer.eval_params(params, self.inner(state))

    @property
    def state_type(self) -> type:
        return self.optimizer.state_type

    @property
    def takes_extra_args(self) -> bool:
        return self.optimizer.takes_extra_args

    @property
    def owns_addition(self) -> bool:
        return self.optimizer.owns_addition

    @property
    def window_length(self) -> int | None:
        return self.optimizer.window_length

    def window(self, state: Any) -> Window:
        return self.optimizer.window(self.inner(state))

    def skip(self, state: Any, verdict: Array) -> Any:
        return self.with_inner(state, self.optimizer.skip(self.inner(state), verdict))

    def ready(self, state: Any, params: PyTree) -> Array:
        own = with_fields(self.numbers(state), optimizer=None)
        return numbers_are_sound(own) & self.optimizer.ready(self.inner(state), params)

    def tell(self, state: Any, seen: Seen | None) -> Any:
        return self.with_inner(state, self.optimizer.tell(self.inner(state), seen))

    def recorded(self, state: Any) -> Any:
        return self.optimizer.recorded(self.inner(state))

    @property
    def hands_on_gradients(self) -> bool:
        """Whether the inner optimizer sees the gradients as they came, so that their norm says whether a `Clip` there clips."""
        return True

    def clips(self, state: Any, seen: Seen) -> Array:
        return self.optimizer.clips(self.inner(state), seen) if self.hands_on_gradients else jnp.bool(False)

    def unpack(self, state: Any) -> Any:
        return self.with_inner(state, self.optimizer.unpack(self.inner(state)))

    def pack(self, state: Any) -> Any:
        return self.with_inner(state, self.optimizer.pack(self.inner(state)))

    def owns_updates(self, changer: str) -> str | None:
        return self.optimizer.owns_updates(changer)

    def drop_frozen(self, params: PyTree, grads: PyTree) -> PyTree:
        return self.optimizer.drop_frozen(params, grads)

    def unmatched(self, params: PyTree) -> list[Any]:
        return self.optimizer.unmatched(params)

    def around(self, params: PyTree) -> list[tuple[Any, ...]]:
        return [((self, None), *inner) for inner in self.optimizer.around(params)]

    # What `explain` asks of a wrapper.

    def says(self) -> str | None:
        """What it does, a clause without its subject; None if the rest of the table tells."""
        return None

    def idle(self, leaves: list[tuple[str, Any, Optimizer]], total_steps: int) -> str | None:
        """Why it has no effect; None if it has one.

        Args:
            leaves: path, leaf and rule of all leaves inside.
            total_steps: number of updates of the run.
        """
        return None

    def updates_in(self, updates: Any) -> Any:
        """How many updates the inner optimizer has made when this one has made `updates`, an increasing array."""
        return updates

    def rules(self, params: PyTree) -> list[tuple[str, Optimizer] | None]:
        return self.optimizer.rules(params)


class StatefulWrapper(Wrapper):
    """A `Wrapper` whose state is a NamedTuple of its own, with the state of the inner optimizer in the field `optimizer`.

    Subclasses define `init` and `state_type` as well.

    Example:
        >>> from typing import Any, NamedTuple
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from mithril_opt import SGD, Optimizer, StatefulWrapper, pytree
        >>> class CountState(NamedTuple):
        ...     optimizer: Any
        ...     updates: jax.Array
        >>> @pytree
        ... class Count(StatefulWrapper):
        ...     optimizer: Optimizer
        ...     state_type = CountState
        ...     def init(self, params):
        ...         return CountState(self.optimizer.init(params), jnp.zeros((), jnp.int32))
        ...     def compute_updates(self, params, grads, state, **extra_args):
        ...         updates, state = super().compute_updates(params, grads, state, **extra_args)
        ...         return updates, state._replace(updates=state.updates + 1)
        >>> optimizer, params = Count(SGD()), jnp.ones(2)
        >>> optimizer.update(params, params, optimizer.init(params))[1].updates
        Array(1, dtype=int32)
    """

    def inner(self, state: Any) -> Any:
        check_state(self, state)
        return state.optimizer

    def with_inner(self, state: Any, inner: Any) -> Any:
        return state._replace(optimizer=inner)


def check_no_window(wrapper: Wrapper) -> None:
    """Raise a ValueError if the optimizer in `wrapper` accumulates."""
    if wrapper.optimizer.window_length not in (None, 1):
        name = type(wrapper).__name__
        raise ValueError(f"{name}: the optimizer accumulates; write Accumulate({name}(...), every=...)")


def fresh_beside(optimizer: Optimizer, params: PyTree, start: Callable[[Any], Any]) -> PyTree:
    """What `start` makes of each leaf of `params` that `optimizer` moves, in float32 or wider and in buffers of its own."""
    return jax.tree.map(lambda leaf: fresh(start, leaf), optimizer.drop_frozen(trained(params), trained(params)))


def moved_params(params: PyTree, updates: PyTree) -> PyTree:
    """The parameters that `updates` lead to, those that do not move as they are."""
    return overlay(params, apply_updates(params, updates), params)


def compute_updates_if(
    condition: Array, optimizer: Optimizer, params: PyTree, grads: PyTree, state: Any, extra_args: dict[str, Any]
) -> tuple[PyTree, Any]:
    """The updates of `optimizer` and its new state if `condition` holds; else zeros, for which nothing is computed, and
    `state`."""
    functions = {name: argument for name, argument in extra_args.items() if callable(argument)}
    arrays = {name: argument for name, argument in extra_args.items() if name not in functions}

    def update(old: Any, optimizer: Optimizer, grads: PyTree, arrays: dict[str, Any]) -> tuple[Any, PyTree]:
        updates, new = optimizer.compute_updates(old[0], grads, old[1], **functions, **arrays)
        return (moved_params(old[0], updates), new), plain(updates)

    (new, state), updates = update_if(condition, update, _no_updates, (params, state), optimizer, grads, arrays, lazily=True)
    return moved(params, updates, new), state


def _no_updates(old: tuple[PyTree, Any], optimizer: Optimizer, grads: PyTree, arrays: dict[str, Any]) -> PyTree:
    zeros = lambda _, param: jnp.zeros_like(param, dtype=compute_dtype(jnp.result_type(param)))  # noqa: E731
    return map_leaves(zeros, old[0], grads, old[0])
