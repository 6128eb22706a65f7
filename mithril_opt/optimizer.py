"""The base that every optimizer stands on.

An optimizer is a value with two pure methods, `init(params) -> state` and `update(params, grads, state) -> (params, state)`.
A `LeafOptimizer` says what happens to one array; the base lifts that to trees. It owns, once: the tree, the step count, the
schedules, float32 arithmetic, gradients that are None, passengers, the decay mask and `p ← p − η d`.
"""

import abc
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Self

import jax
import jax.numpy as jnp

from mithril_opt._decay_rate import exact, with_powers
from mithril_opt._numerics import compute_dtype, real_dtype, saturating_increment, scalar_f32
from mithril_opt._pytree import check_numbers, set_field, with_fields
from mithril_opt._slots import check_shapes, fresh_slots, gather, scatter, slot_structure
from mithril_opt._state import OptState, Window, check_memories, check_state, fresh_memories, schedules_of
from mithril_opt._tree import agree, describe_leaf, leaves_with_paths, merge, placed_like, trained, widen
from mithril_opt._typing import Array, PyTree
from mithril_opt.schedulers.base import as_schedule, as_step


@dataclasses.dataclass(frozen=True)
class Optimizer(abc.ABC):
    """A rule that turns parameters, gradients and a state into new parameters and a new state.

    Subclass it, with `@pytree`, for a rule that looks at the whole tree at once (a line search, say), and `LeafOptimizer` for
    a rule that treats every array alike. Every number among the fields may also be a schedule or a plain function of the step.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from mithril_opt import Optimizer, OptState, global_norm, pytree
        >>> @pytree
        ... class NormalizedSGD(Optimizer):
        ...     learning_rate: float = 0.1
        ...     def init(self, params):
        ...         return OptState(step=jnp.zeros((), jnp.int32), slots=None, schedules={})
        ...     def update(self, params, grads, state):
        ...         rate = self.get_learning_rate(state) / global_norm(grads)
        ...         params = jax.tree.map(lambda param, grad: param - rate * grad, params, grads)
        ...         return params, state._replace(step=state.step + 1)
        >>> optimizer = NormalizedSGD(learning_rate=1.0)
        >>> params = jnp.array([3.0, 4.0])
        >>> optimizer.update(params, params, optimizer.init(params))[0]
        Array([2.4, 3.2], dtype=float32)
    """

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if not field.metadata.get("static"):
                set_field(self, field.name, as_schedule(getattr(self, field.name)))
        check_numbers(self)

    @abc.abstractmethod
    def init(self, params: PyTree) -> Any:
        """The state before the first update.

        Args:
            params: tree of arrays, `jax.ShapeDtypeStruct`s or placeholders; each slot inherits its parameter's sharding.
        """

    @abc.abstractmethod
    def update(self, params: PyTree, grads: PyTree, state: Any) -> tuple[PyTree, Any]:
        """One update: the new parameters and the new state.

        Args:
            params: tree of arrays of any dtype. Floating and complex leaves train; other leaves are handed back as they came.
            grads: tree shaped like `params`, as `jax.grad` returns it (for a complex leaf: the conjugate of the direction of
                ascent). None at a leaf means no gradient: the parameter and its slots stay as they are.
            state: what `init` or the last `update` returned.

        Returns:
            Parameters of the dtypes and shapes of `params`, and a state of the structure and dtypes of `state`.

        Raises:
            ValueError: the trees do not fit; names the path of the first difference and both shapes.
        """

    def get_learning_rate(self, state: Any) -> Array:
        """The rate that the next update will use: a float32 scalar."""
        return scalar_f32(self.resolve(state).learning_rate)  # pyright: ignore[reportAttributeAccessIssue]

    def observe(self, state: Any, metric: Any) -> Any:
        """The state after the schedules that follow a metric have seen `metric`, a scalar; `state` itself if there are none."""
        check_memories(self, state)
        seen = {
            name: schedule.observe(state.schedules[name], scalar_f32(metric), state.step)
            for name, schedule in schedules_of(self).items()
            if name in state.schedules
        }
        return state._replace(schedules={**state.schedules, **seen}) if seen else state

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
        memories = schedules or {}
        values = {
            name: schedule.read(memories[name] if name in memories else schedule.init(), as_step(step))
            for name, schedule in schedules_of(self).items()
        }
        return with_fields(self, **values) if values else self

    def resolve(self, state: Any) -> Self:
        """This optimizer as the next update will use it: schedules replaced by their values at the clock of `state`, decay
        rates in a form that survives a jit boundary."""
        if not isinstance(state, OptState):
            return self
        check_memories(self, state)
        return exact(self.at(state.step, state.schedules))

    def drop_frozen(self, params: PyTree, grads: PyTree) -> PyTree:
        """`grads`, shaped like `params`, with None at the leaves that do not train, so that they do not count in a norm."""
        return grads

    def window(self, state: Any) -> Window:
        """Where the next update stands among those that are committed together: it is alone, but for accumulation."""
        return Window(closes=jnp.bool(True), verdict=jnp.int32(0))

    def skip(self, state: Any, verdict: Array) -> Any:
        """The state after an update that must not be applied: `state` itself, unless a window of updates is spoiled by it.

        Args:
            verdict: int32 scalar > 0, why; a window remembers the largest.
        """
        return state


def check_optimizer(where: str, value: Any) -> None:
    """Raise a TypeError unless `value` is an optimizer."""
    if not isinstance(value, Optimizer):
        hint = "; from_optax(...) makes one of it" if hasattr(value, "init") and not isinstance(value, type) else ""
        raise TypeError(f"{where} must be an Optimizer, got {value!r}{hint}")


class LeafOptimizer(Optimizer):
    """A rule for one array, lifted to trees. Subclass it with `@pytree` and define `init_leaf` and `update_leaf`.

    Example:
        >>> import jax.numpy as jnp
        >>> from mithril_opt import LeafOptimizer, pytree
        >>> @pytree
        ... class SignSGD(LeafOptimizer):
        ...     learning_rate: float = 0.5
        ...     def init_leaf(self, param):
        ...         return None
        ...     def update_leaf(self, param, grad, slots, t):
        ...         return jnp.sign(grad), slots
        >>> params = {"w": jnp.array([1.0, 2.0])}
        >>> optimizer = SignSGD()
        >>> params, state = optimizer.update(params, {"w": jnp.array([3.0, -4.0])}, optimizer.init(params))
        >>> params["w"]
        Array([0.5, 2.5], dtype=float32)
    """

    decay_mask = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.decay_mask is None or callable(self.decay_mask)):
            raise TypeError(
                f"{type(self).__name__}: decay_mask must be a function (path, leaf) -> bool, got {self.decay_mask!r}"
            )

    @abc.abstractmethod
    def init_leaf(self, param: Array) -> PyTree:
        """The slots of one parameter: a small pytree, a NamedTuple as a rule, of the same structure for every leaf.

        Args:
            param: the parameter in its compute dtype (float32 or wider), or a `jax.ShapeDtypeStruct` of it.
        """

    @abc.abstractmethod
    def update_leaf(self, param: Array, grad: Array, slots: PyTree, t: Array) -> tuple[Array, PyTree]:
        """The direction d of `p ← p − η d`, and the new slots. The base multiplies by the learning rate and subtracts.

        The schedules of `self` are numbers here, and whatever is switched off, the weight decay of a masked leaf included, is
        None.

        Args:
            param: the parameter before the update, in its compute dtype (float32 or wider).
            grad: its gradient, in the same dtype and shape.
            slots: its slots.
            t: number of this update, 1, 2, …: a real scalar in the precision of the arithmetic.
        """

    def init(self, params: PyTree) -> OptState:
        leaves, structure = jax.tree.flatten(trained(params))
        rule = self.at(0)
        slots = [fresh_slots(rule.init_leaf, leaf) for leaf in leaves]
        return OptState(
            step=jnp.zeros((), jnp.int32),
            slots=gather(slot_structure(rule.init_leaf), structure, slots),
            schedules=fresh_memories(self),
        )

    def update(self, params: PyTree, grads: PyTree, state: OptState) -> tuple[PyTree, OptState]:
        new_params, state = _lift(_apply_leaf, self, params, grads, state)
        return merge(params, new_params), state

    def compute_updates(self, params: PyTree, grads: PyTree, state: OptState) -> tuple[PyTree, OptState]:
        """The updates −η d and the new state, without applying them.

        Returns:
            Updates in float32 (or wider, as the parameters are), None where nothing is to be done; and the new state.
        """
        return _lift(_compute_leaf, self, params, grads, state)


def _lift(
    leaf_rule: Callable[..., Any], optimizer: LeafOptimizer, params: PyTree, grads: PyTree, state: OptState
) -> tuple[PyTree, OptState]:
    check_state(optimizer, grads, state)
    grads = agree(params, grads)
    # The schedules are evaluated out here because a jit boundary would round their Python numbers to float32.
    rule: Any = optimizer.resolve(state)
    if jnp.shape(rule.learning_rate) != ():
        raise ValueError(
            f"{type(rule).__name__}: learning_rate must be a scalar, got shape {jnp.shape(rule.learning_rate)}; jax.vmap over "
            "the optimizer tries several at once"
        )
    return _map_leaves(leaf_rule, rule, trained(params), grads, state)


@functools.partial(jax.jit, static_argnums=0)  # so that a call outside jit compiles itself once
def _map_leaves(
    leaf_rule: Callable[..., Any], rule: LeafOptimizer, params: PyTree, grads: PyTree, state: OptState
) -> tuple[PyTree, OptState]:
    paths_and_leaves = leaves_with_paths(params)
    structure, layout = jax.tree.structure(params), slot_structure(rule.init_leaf)
    step = saturating_increment(state.step)
    rule, leaf_slots = with_powers(rule, step), scatter(layout, structure, state.slots)
    check_shapes(rule.init_leaf, paths_and_leaves, leaf_slots)
    results = [
        (None, slots) if grad is None else leaf_rule(_masked(rule, path, param), param, grad, slots, step)
        for (path, param), grad, slots in zip(paths_and_leaves, structure.flatten_up_to(grads), leaf_slots, strict=True)
    ]
    outputs = structure.unflatten([output for output, _ in results])
    return outputs, OptState(step, gather(layout, structure, [slots for _, slots in results]), state.schedules)


def _step_leaf(rule: LeafOptimizer, param: Array, grad: Array, slots: PyTree, step: Array) -> tuple[Array, PyTree]:
    """η d, and the new slots."""
    dtype = compute_dtype(jnp.result_type(param))
    # Under strict promotion a float32 number times a complex64 or float64 leaf would be an error; wider leaves need neither.
    with jax.numpy_dtype_promotion("standard"):
        grad = widen(grad).astype(dtype)
        # jax.grad returns the conjugate of the direction of steepest ascent.
        grad = jnp.conj(grad) if jnp.iscomplexobj(grad) else grad
        wide_slots = jax.tree.map(lambda slot: widen(slot) if jnp.issubdtype(slot.dtype, jnp.inexact) else slot, slots)
        direction, new_slots = rule.update_leaf(widen(param), grad, wide_slots, step.astype(real_dtype(dtype)))
        scaled = rule.learning_rate * direction  # pyright: ignore[reportAttributeAccessIssue]
    if jnp.shape(scaled) != jnp.shape(param):
        raise ValueError(
            f"{type(rule).__name__}.update_leaf returned a direction of shape {jnp.shape(scaled)} for a parameter "
            f"{describe_leaf(param)}"
        )
    return placed_like(scaled.astype(dtype), param), jax.tree.map(
        lambda new, old: placed_like(jnp.asarray(new, old.dtype), old), new_slots, slots
    )


@jax.jit  # so that leaves of equal shape are traced once
def _compute_leaf(rule: LeafOptimizer, param: Array, grad: Array, slots: PyTree, step: Array) -> tuple[Array, PyTree]:
    scaled, slots = _step_leaf(rule, param, grad, slots, step)
    return -scaled, slots


@jax.jit
def _apply_leaf(rule: LeafOptimizer, param: Array, grad: Array, slots: PyTree, step: Array) -> tuple[Array, PyTree]:
    scaled, slots = _step_leaf(rule, param, grad, slots, step)
    return (widen(param) - scaled).astype(jnp.result_type(param)), slots


def _masked(rule: LeafOptimizer, path: str, param: Array) -> LeafOptimizer:
    """`rule` without its weight decay where the mask says so."""
    decays = rule.decay_mask is None or rule.decay_mask(path, param)
    return rule if decays else with_fields(rule, weight_decay=None)
