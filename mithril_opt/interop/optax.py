"""optax, both ways. optax is imported inside the functions."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mithril_opt.core.fields import static
from mithril_opt.core.numerics import compute_dtype, saturating_increment, scalar_f32
from mithril_opt.core.optimizer import Optimizer, UnknownRateError
from mithril_opt.core.pytree import pytree
from mithril_opt.core.state import OptState
from mithril_opt.core.tree import agree, leaves_with_paths, overlay, trained, trains, widen
from mithril_opt.core.typing import Array, PyTree
from mithril_opt.core.updates import plain


@pytree
class FromOptax(Optimizer):
    """An optax transformation as an `Optimizer`; made by `from_optax`."""

    transformation: Any = static()

    def init(self, params: PyTree) -> OptState:
        wide = jax.tree.map(widen, trained(params))
        slots = apart(self.transformation.init(wide), (params, wide))
        return OptState(step=jnp.zeros((), jnp.int32), slots=slots, schedules={})

    @property
    def takes_extra_args(self) -> bool:
        return True

    def ready(self, state: Any, params: PyTree) -> Array:
        return jnp.bool(True)

    def compute_updates(self, params: PyTree, grads: PyTree, state: OptState, **extra_args: Any) -> tuple[PyTree, OptState]:
        """The transformation's updates in float32 or wider and the new state, without applying them."""
        _check_given(params, grads)
        wide = jax.tree.map(widen, params)
        self._check_slots(wide, state.slots)
        # jax.grad returns the conjugate of the direction that optax expects.
        directions = jax.tree.map(lambda grad, param: jnp.conj(widen(grad).astype(param.dtype)), grads, wide)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes integers and floats
            updates, slots = self.transformation.update(directions, state.slots, wide, **extra_args)
        updates = jax.tree.map(lambda update: update.astype(compute_dtype(update.dtype)), updates)
        return updates, OptState(saturating_increment(state.step), _in_dtypes_of(state.slots, slots), {})

    def _check_slots(self, params: PyTree, slots: PyTree) -> None:
        expected = jax.eval_shape(self.transformation.init, params)
        try:
            agree(expected, slots, ("expected state", "given one"))
        except ValueError as error:
            raise ValueError(f"the state does not belong to this transformation and these parameters: {error}") from None

    def get_learning_rate(self, state: OptState) -> Array:
        """The rate that `optax.inject_hyperparams` will use in the next update: float32 scalar.

        Raises:
            ValueError: the transformation keeps no rate in its state, or several.
        """
        rates = _injected(state.slots, "learning_rate")
        if not rates:
            raise UnknownRateError(
                "this transformation keeps no learning rate in its state; wrap it as "
                "optax.inject_hyperparams(optax.adam)(learning_rate=...)"
            )
        if len(rates) > 1:
            several = f"this transformation keeps {len(rates)} learning rates in its state"
            raise UnknownRateError(f"{several}; read them from state.slots")
        return scalar_f32(_next_rate(self.transformation, state.slots) if rates[0].scheduled else rates[0].value)


def from_optax(transformation: Any) -> Optimizer:
    """An optax `GradientTransformation` as an `Optimizer`.

    It may be used wherever an optimizer may: in `MultiOptimizer`, `Accumulate` and the mixed-precision trainer. Parameters and
    gradients are handed to it in float32 or wider, and its state is in `state.slots`. `get_learning_rate` works where the rate
    is injected with `optax.inject_hyperparams`.

    Args:
        transformation: what an optax function returned. Extra arguments (`value`, `grad`, `value_fn`) given to `update` by
            keyword are forwarded, also by a `MultiOptimizer`.

    Returns:
        An optimizer whose `update` raises a ValueError if a trained parameter has no gradient, which optax cannot express, or
        if the state is that of another transformation or of other parameters.

    Raises:
        TypeError: `transformation` has no `init` and `update`, or is an `Optimizer` already.

    Example:
        >>> import jax.numpy as jnp
        >>> import optax
        >>> from mithril_opt import from_optax
        >>> optimizer = from_optax(optax.sgd(0.5))
        >>> params = {"w": jnp.array([1.0, 2.0])}
        >>> params, state = optimizer.update(params, {"w": jnp.array([1.0, 1.0])}, optimizer.init(params))
        >>> params["w"]
        Array([0.5, 1.5], dtype=float32)
    """
    import optax

    if not isinstance(transformation, optax.GradientTransformation):
        raise TypeError(
            f"from_optax takes an optax.GradientTransformation, such as optax.adam(1e-3), got {type(transformation).__name__}"
        )
    return FromOptax(optax.with_extra_args_support(transformation))


def to_optax(optimizer: Optimizer) -> Any:
    """An `Optimizer` as an `optax.GradientTransformationExtraArgs`.

    The updates are computed in float32 or wider and handed over in the dtype of the gradients; they are never recovered
    as new minus old parameters. As everywhere in optax, the caller conjugates complex gradients. Extra arguments reach the
    optimizers that take them, those made by `from_optax`.

    Args:
        optimizer: any optimizer.

    Returns:
        A transformation `init(params)`, `update(updates, state, params, **extra_args)`, which needs the parameters. Leaves that
        do not train get zero updates.

    Raises:
        TypeError: `optimizer` is none, or adds its updates itself, as `Round` does.

    Example:
        >>> import jax.numpy as jnp
        >>> import optax
        >>> from mithril_opt import SGD, to_optax
        >>> transformation = optax.chain(optax.clip(1.0), to_optax(SGD(learning_rate=0.5)))
        >>> params = jnp.array([1.0])
        >>> updates, state = transformation.update(jnp.array([3.0]), transformation.init(params), params)
        >>> updates
        Array([-0.5], dtype=float32)
    """
    import optax

    name = type(optimizer).__name__
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"to_optax takes an Optimizer, got {name}; for an optax transformation there is from_optax")

    if optimizer.owns_addition:
        raise TypeError(
            f"{name} adds its updates itself, to more bits than the parameters have; optax would add them in theirs"
        )

    # Functions with the optimizer in their closure, not its methods: tools that look into closures find its numbers there.
    def init(params: PyTree) -> Any:
        return optimizer.init(params)

    def update(updates: PyTree, state: Any, params: PyTree = None, **extra_args: Any) -> tuple[PyTree, Any]:
        if params is None:
            raise ValueError(f"to_optax({name}) needs the parameters: call update(updates, state, params)")
        _check_own_state(optimizer, state)
        gradients = overlay(updates, jax.tree.map(jnp.conj, trained(updates)), updates)
        given = extra_args if optimizer.takes_extra_args else {}
        compute = _compute if given else _compiled
        new_updates, state = compute(optimizer, trained(params), agree(params, gradients), state, given)
        return _like(updates, new_updates, params), state

    return optax.GradientTransformationExtraArgs(init, update)


def _compute(optimizer: Any, params: PyTree, grads: PyTree, state: Any, extra_args: Any) -> tuple[PyTree, Any]:
    updates, state = optimizer.compute_updates(params, grads, state, **extra_args)
    return plain(updates), state


_compiled = jax.jit(_compute)  # so that a call outside jit compiles itself once


def apart(slots: PyTree, params: PyTree = None) -> PyTree:
    """`slots`, strongly typed, without a buffer of `params` and without one buffer twice (donation would fail)."""
    seen = {id(leaf) for leaf in jax.tree.leaves(params)}

    def separate(slot: Any) -> Any:
        if isinstance(slot, jax.Array):
            slot = jnp.copy(slot) if id(slot) in seen else _strong(slot, slot.dtype)
        seen.add(id(slot))
        return slot

    return jax.tree.map(separate, slots)


def _check_given(params: PyTree, grads: PyTree) -> None:
    structure = jax.tree.structure(params)
    for (path, _), grad in zip(leaves_with_paths(params), structure.flatten_up_to(grads), strict=True):
        if grad is None:
            raise ValueError(
                f"{path!r} has no gradient, which an optax transformation cannot express; give zeros, or let Frozen() have the "
                "leaf in a MultiOptimizer"
            )


def _in_dtypes_of(old: PyTree, new: PyTree) -> PyTree:
    """`new`, strongly typed in the dtypes of `old`: some of optax's rules drift, and would be traced anew."""
    return jax.tree.map(lambda old, new: _strong(new, old.dtype) if isinstance(old, jax.Array) else new, old, new)


def _strong(leaf: Any, dtype: Any) -> Any:
    return jnp.asarray(leaf, dtype) if jnp.issubdtype(dtype, jnp.number) else leaf  # not so a PRNG key


class _Rate:
    """A learning rate in the state of `optax.inject_hyperparams`, and whether a schedule overwrites it."""

    def __init__(self, value: Any, scheduled: bool) -> None:
        self.value, self.scheduled = value, scheduled


def _injected(slots: PyTree, name: str) -> list[_Rate]:
    is_injection = lambda node: hasattr(node, "hyperparams")  # noqa: E731
    states = [node for node in jax.tree.leaves(slots, is_leaf=is_injection) if is_injection(node)]
    inner = [rate for state in states for rate in _injected(state.inner_state, name)]
    own = [
        _Rate(state.hyperparams[name], name in getattr(state, "hyperparams_states", {}))
        for state in states
        if name in state.hyperparams
    ]
    return own + inner


@functools.partial(jax.jit, static_argnums=0)
def _next_rate(transformation: Any, slots: PyTree) -> Any:
    """The scheduled rate of the next update. The state holds that of the last one, and only an update reads the schedule; so
    an update with zeros is made, of which the compiler keeps the rate alone."""
    zeros = _zero_params(transformation, slots)
    _, slots = transformation.update(zeros, slots, zeros)
    return _injected(slots, "learning_rate")[0].value


def _zero_params(transformation: Any, slots: PyTree) -> PyTree:
    """Zeros in a tree that `slots` may belong to: a copy of the parameters in it, found as `optax.tree_map_params` does."""
    import optax

    copies: list[Any] = []
    optax.tree_map_params(transformation, copies.append, slots, is_leaf=lambda node: True)
    return jax.tree.map(jnp.zeros_like, copies[0]) if copies else jnp.zeros(())


def _check_own_state(optimizer: Optimizer, state: Any) -> None:
    if not isinstance(state, optimizer.state_type):
        raise ValueError(
            f"to_optax({type(optimizer).__name__}).update takes (updates, state, params) with the "
            f"{optimizer.state_type.__name__} that init returned as the state, got {type(state).__name__}; state_from_optax "
            "turns a state of optax into one"
        )


def _like(updates: PyTree, new: PyTree, params: PyTree) -> PyTree:
    """`new` in the dtypes of `updates`, with zeros where there is nothing to do."""
    leaves, structure = jax.tree.flatten(updates)
    columns = zip(leaves, structure.flatten_up_to(new), structure.flatten_up_to(params), strict=True)
    return structure.unflatten([_like_leaf(*column) for column in columns])


def _like_leaf(update: Any, new: Any, param: Any) -> Any:
    if trains(update):
        return jnp.zeros_like(update) if new is None else new.astype(jnp.result_type(update))
    # An integer parameter comes with a gradient of dtype float0, to which nothing can be added.
    dtype = jnp.result_type(param) if isinstance(param, int | np.ndarray | jax.Array) else None
    countable = dtype is not None and (jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(dtype, jnp.bool_))
    return jnp.zeros(np.shape(param), dtype) if countable else update
