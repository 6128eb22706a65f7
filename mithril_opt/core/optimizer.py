"""What an optimizer is.

An optimizer is a value with two pure methods, `init(params) -> state` and `update(params, grads, state) -> (params, state)`.
The second is the same for all: it checks its arguments, asks for the updates, and adds them. What differs is one verb,
`compute_updates`. A `LeafOptimizer` has it from a rule for one array, a `Wrapper` from the optimizer inside it.
"""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self, final

import jax
import jax.numpy as jnp

from mithril_opt.core.fields import is_static, rule_of, shown
from mithril_opt.core.foreign_calls import refuse_other_names
from mithril_opt.core.foreign_methods import OF_OPTIMIZER, Elsewhere
from mithril_opt.core.hooks import Hooks
from mithril_opt.core.numerics import scalar_f32
from mithril_opt.core.pytree import check_decorated, check_numbers, numbers_are_sound, set_field, with_fields
from mithril_opt.core.schedule import Schedule, as_schedule, as_step, fresh_memories, known_memories
from mithril_opt.core.state import Counterpart, OptState, Window, check_state, misuse
from mithril_opt.core.tree import agree, is_staged, overlay, trained, trains
from mithril_opt.core.typing import Array, PyTree
from mithril_opt.core.updates import apply_updates


@dataclasses.dataclass(frozen=True)
class Optimizer(Hooks, Elsewhere, abc.ABC):
    """A rule that turns parameters, gradients and a state into new parameters and a new state.

    Subclass it, with `@pytree`, for a rule that looks at the whole tree at once, and define `init` and `compute_updates`;
    subclass `LeafOptimizer` for a rule that treats every array alike, `Wrapper` for what changes another optimizer. Every
    number among the fields may also be a schedule or a plain function of the step.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from mithril_opt import Optimizer, OptState, global_norm, pytree
        >>> @pytree
        ... class NormalizedSGD(Optimizer):
        ...     learning_rate: float = 0.1
        ...     def init(self, params):
        ...         return OptState(step=jnp.zeros((), jnp.int32), slots=None, schedules={})
        ...     def compute_updates(self, params, grads, state):
        ...         rate = self.get_learning_rate(state) / global_norm(grads)
        ...         return jax.tree.map(lambda grad: -rate * grad, grads), state._replace(step=state.step + 1)
        >>> optimizer = NormalizedSGD(learning_rate=1.0)
        >>> params = jnp.array([3.0, 4.0])
        >>> optimizer.update(params, params, optimizer.init(params))[0]
        Array([2.4, 3.2], dtype=float32)
    """

    elsewhere: ClassVar[Mapping[str, str]] = OF_OPTIMIZER
    # Whether a step moves every element by about the learning rate, and whether it is the same for larger gradients.
    unit_steps: ClassVar[bool] = False
    scale_free: ClassVar[bool] = False

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        check_decorated(cls)
        refuse_other_names(cls, args, kwargs)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if not is_static(field):
                set_field(self, field.name, as_schedule(getattr(self, field.name)))
        try:
            check_numbers(self)
        except ValueError as error:
            rate = self.rate
            if isinstance(rate, int | float) and rate < 0:
                error.add_note("To maximise, negate the loss.")
            raise

    @abc.abstractmethod
    def init(self, params: PyTree) -> Any:
        """The state before the first update.

        Args:
            params: tree of arrays, `jax.ShapeDtypeStruct`s or placeholders; each slot inherits its parameter's sharding.
        """

    @abc.abstractmethod
    def compute_updates(self, params: PyTree, grads: PyTree, state: Any) -> tuple[PyTree, Any]:
        """The updates u of p ← p + u and the new state, without applying them.

        Args:
            params: tree of floating or complex arrays of any dtype; None at the leaves that do not train.
            grads: tree shaped like `params`, as `jax.grad` returns it; None where there is no gradient.
            state: what `init` or the last call returned.

        Returns:
            Updates in float32 or wider, or `Moved`, which has the new parameter as well; None where nothing is to be done. And
            a state of the structure and dtypes of `state`.
        """

    @final
    def update(self, params: PyTree, grads: PyTree, state: Any, **extra_args: Any) -> tuple[PyTree, Any]:
        """One update: the new parameters and the new state.

        Args:
            params: tree of arrays of any dtype. Floating and complex leaves train; other leaves are handed back as they came.
            grads: tree shaped like `params`, as `jax.grad` returns it (for a complex leaf: the conjugate of the direction of
                ascent). None at a leaf means no gradient: the parameter and its slots stay as they are.
            state: what `init` or the last `update` returned.
            extra_args: what a transformation of optax takes besides (`value`, say).

        Returns:
            Parameters of the dtypes and shapes of `params`, and a state of the structure and dtypes of `state`.

        Raises:
            ValueError: the trees do not fit; names the path of the first difference and both shapes.
        """
        known, states = self.takes_extra_args or not extra_args, (isinstance(x, self.state_type) for x in (grads, state))
        if not known or [*states] != [False, True]:
            raise misuse(self, grads, state, extra_args)
        step = _step if extra_args or is_staged(params) else _compiled_step
        new, state = step(self, trained(params), agree(params, grads), state, extra_args)
        return overlay(params, new, params), state

    def get_learning_rate(self, state: Any) -> Any:
        """The rate that the next update will use: a float32 scalar, without the factors of `ScaleRate`, which `explain` has."""
        rate = self.resolve(state).rate
        if rate is None:
            raise UnknownRateError(f"{type(self).__name__} has no learning_rate")
        return scalar_f32(rate)

    def learning_rates(self, state: Any) -> dict[str, Array]:
        """The rates that the next update will use, float32 scalars: one for each group of a `MultiOptimizer`, by its name, or
        one called "learning_rate"; without those that an optimizer keeps to itself."""
        try:
            return {"learning_rate": self.get_learning_rate(state)}
        except UnknownRateError:
            return {}

    def with_learning_rate(self, learning_rate: Any) -> Self:
        """This optimizer with another learning rate, which is not checked.

        Raises:
            ValueError: it has none, or one for each group.
        """
        if self.rate is None:
            raise ValueError(f"{type(self).__name__} has no learning_rate that could be replaced")
        return with_fields(self, learning_rate=learning_rate)

    def observe(self, state: Any, metric: Any) -> Any:
        """The state after the schedules that follow a metric have seen `metric`, a scalar; `state` itself if there are none."""
        check_state(self, state)
        memories = known_memories(self, state.schedules)
        own = {name: memory for name, memory in memories.items() if name in self.schedules}
        seen = {name: self.schedules[name].observe(memory, scalar_f32(metric), state.step) for name, memory in own.items()}
        return state._replace(schedules=seen) if seen else state

    def at(self, step: Any, schedules: PyTree = None) -> Self:
        """This optimizer with every schedule replaced by its value.

        Args:
            step: number of updates applied so far.
            schedules: `state.schedules`, the memories of metric-driven schedules; without it they have observed nothing.

        Example:
            >>> from mithril_opt import SGD, StepLR
            >>> SGD(learning_rate=StepLR(0.5, step_size=10, gamma=0.5)).at(10).learning_rate
            Array(0.25, dtype=float32)
        """
        if not self.schedules:
            return self
        memories = fresh_memories(self) if schedules is None else known_memories(self, schedules)
        return with_fields(self, **_values(self, as_step(step), memories))

    def resolve(self, state: Any) -> Self:
        """This optimizer with the numbers that the next update will use."""
        check_state(self, state)
        return self.at(state.step, state.schedules)

    def with_step(self, state: Any, step: Array) -> Any:
        """`state` on the clock of a `MultiOptimizer`: after `step` applied updates."""
        return state._replace(step=step)

    def eval_params(self, params: PyTree, state: Any) -> PyTree:
        """The parameters to evaluate and to export: `params` themselves, unless the optimizer keeps better ones."""
        check_state(self, state)
        return params

    def reads(self) -> str | None:
        """What its `eval_params` are, in words for `explain`; None if it adds nothing of its own."""
        return None

    # What wrappers and the trainer ask.

    @property
    def schedules(self) -> dict[str, Schedule]:
        """The schedules among the fields, by field name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Schedule)}

    @property
    def torch(self) -> Counterpart | None:
        """The same rule in PyTorch; None if there is none."""
        return None

    @property
    def optax(self) -> Counterpart | None:
        """The same rule in optax; None if its state means something else, or there is none."""
        return None

    @property
    def state_type(self) -> type:
        """The type of the state that `init` returns."""
        return OptState

    @property
    def takes_extra_args(self) -> bool:
        """Whether `update` takes further arguments by keyword (`value`, say), as the optimizers made by `from_optax` do."""
        return False

    @property
    def owns_addition(self) -> bool:
        """Whether `update` keeps more digits of a parameter than its dtype, so that nobody else can add the updates."""
        return False

    @property
    def window_length(self) -> int | None:
        """How many updates are committed together: 1, but for accumulation; None where nothing is ever updated."""
        return 1

    def window(self, state: Any) -> Window:
        """Where the next update stands among those that are committed together."""
        return Window(closes=jnp.bool(True), verdict=jnp.int32(0))

    def skip(self, state: Any, verdict: Array) -> Any:
        """The state after an update that must not be applied: `state` itself, unless a window of updates is spoiled by it.

        Args:
            verdict: int32 scalar > 0, why; a window remembers the largest.
        """
        return state

    def ready(self, state: Any, params: PyTree) -> Array:
        """Whether the numbers of the next update of `params` are finite, the learning rate among them: boolean scalar."""
        return numbers_are_sound(self.resolve(state) if isinstance(state, OptState) else self)

    def drop_frozen(self, params: PyTree, grads: PyTree) -> PyTree:
        """`grads`, shaped like `params`, with None at the leaves that do not train, so that they do not count in a norm."""
        return grads

    @property
    def rate(self) -> Any:
        """The learning rate, a number or a schedule; None if there is none."""
        return getattr(self, "learning_rate", None)

    def decays(self, path: str, leaf: Any) -> list[Any] | None:
        """The weight decays that act on the leaf at `path`, numbers or schedules; None if the optimizer does not tell."""
        return None

    def lints(self, learning_rate: float) -> list[str]:
        """What is probably a mistake in a run whose largest learning rate is `learning_rate`, in a few words each."""
        return []

    def rules(self, params: PyTree) -> "list[tuple[str, Optimizer] | None]":
        """For each leaf of `params` the name of its group, "a/b" for a nested one, and the innermost optimizer that it belongs
        to; None for a leaf that does not train."""
        return [("", self) if trains(leaf) else None for leaf in jax.tree.leaves(params)]


def _values(optimizer: Optimizer, step: Array, memories: PyTree) -> dict[str, Any]:
    """What the schedules of `optimizer` say at `step`, by field; for a decay rate, with what float32 does not hold of it."""
    exact = {field.name for field in dataclasses.fields(optimizer) if getattr(rule_of(field), "exact", False)}

    def value(name: str, schedule: Schedule) -> Any:
        read = schedule.read_decay_rate if name in exact else schedule.read
        return read(memories.get(name), step)

    return {name: value(name, schedule) for name, schedule in optimizer.schedules.items()}


class UnknownRateError(ValueError):
    """An optimizer has no learning rate, or keeps it to itself."""


def check_optimizer(where: str, value: Any) -> None:
    """Raise a TypeError unless `value` is an optimizer."""
    if not isinstance(value, Optimizer):
        hint = ""
        if hasattr(value, "init") and hasattr(value, "update") and not isinstance(value, type):
            hint = "; from_optax(...) turns an optax transformation into one"
        if hasattr(value, "backward_and_update"):
            hint = "; a trainer is around everything: MixedPrecisionTrainer(None, optimizer)"
        raise TypeError(f"{where} must be an Optimizer, got {shown(value)}{hint}")


def _step(optimizer: Optimizer, params: PyTree, grads: PyTree, state: Any, extra_args: dict[str, Any]) -> tuple[PyTree, Any]:
    compute: Any = optimizer.compute_updates
    updates, state = compute(params, grads, state, **extra_args)
    return apply_updates(params, updates), state


_compiled_step = jax.jit(_step)  # so that a call outside jit compiles itself once
