"""A rule for one array, lifted to trees.

The base owns, once: the tree, the step count, the schedules, float32 arithmetic, gradients that are None, leaves that do not
train, the decay mask, and where slots are kept.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Self, TypeVar

import jax
import jax.numpy as jnp

from mithril_opt.core import slots as storage
from mithril_opt.core.asked import decides
from mithril_opt.core.decay_rate import DecayRate, Known
from mithril_opt.core.fields import Number, rule_of
from mithril_opt.core.foreign_arguments import refuse_mask
from mithril_opt.core.launches import if_true, truths
from mithril_opt.core.numerics import compute_dtype, real_dtype, saturating_increment
from mithril_opt.core.optimizer import Optimizer
from mithril_opt.core.pytree import check_scalars, with_fields
from mithril_opt.core.reductions import axes_at, check_axes
from mithril_opt.core.schedule import fresh_memories
from mithril_opt.core.state import OptState
from mithril_opt.core.tree import describe_leaf, leaves_with_paths, placed_like, trained, widen
from mithril_opt.core.typing import Array, PyTree

T = TypeVar("T")


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
        ...         return self.learning_rate * jnp.sign(grad), slots
        >>> params = {"w": jnp.array([1.0, 2.0])}
        >>> optimizer = SignSGD()
        >>> params, state = optimizer.update(params, {"w": jnp.array([3.0, -4.0])}, optimizer.init(params))
        >>> params["w"]
        Array([0.5, 2.5], dtype=float32)
    """

    decay_mask = None
    unit_axes = None

    def __post_init__(self) -> None:
        super().__post_init__()
        name, mask = type(self).__name__, self.decay_mask
        check_axes(f"{name}: unit_axes", self.unit_axes)
        refuse_mask(name, mask)
        if mask is not None and not _masked_fields(self):
            raise TypeError(f"{name}: decay_mask has nothing to switch off; declare the decay as number(..., masked=True)")

    @abc.abstractmethod
    def init_leaf(self, param: Array) -> PyTree:
        """The slots of one parameter: a NamedTuple, the same for every leaf, whose fields are arrays of any shape, or None for
        a slot that this leaf lacks. A single array will do for a single slot, None for none.

        Args:
            param: the parameter in its compute dtype (float32 or wider), or a `jax.ShapeDtypeStruct` of it.
        """

    @abc.abstractmethod
    def update_leaf(self, param: Array, grad: Array, slots: PyTree, t: Array) -> tuple[Array, PyTree]:
        """The step s of `p ← p − s`, the learning rate included, and the new slots.

        The schedules of `self` are numbers here, its decay rates `DecayRate`s, and what is switched off, the weight decay of a
        masked leaf included, is None.

        Args:
            param: the parameter before the update, in its compute dtype (float32 or wider).
            grad: its gradient, in the same dtype and shape.
            slots: its slots.
            t: number of this update, 1, 2, …: a real scalar in the precision of the arithmetic.
        """

    def for_leaf(self, path: str, param: Any) -> Self:
        """This rule as the leaf at `path` sees it: without its weight decay where the mask says so, and with the leaf's own
        `unit_axes`. What else depends on the leaf, a factor or an axis, a rule may set here, too.

        Args:
            path: the path of the leaf, "decoder/0/w".
            param: the leaf, an array or a `jax.ShapeDtypeStruct`.
        """
        mask = self.decay_mask
        decays = mask is None or decides(f"{type(self).__name__}: decay_mask", mask, path, param)
        own = {} if decays else dict.fromkeys(_masked_fields(self))
        if self.unit_axes is not None:
            own["unit_axes"] = axes_at(f"{type(self).__name__}.unit_axes", self.unit_axes, path, param)
        return with_fields(self, **own) if own else self

    def decays(self, path: str, leaf: Any) -> list[Any]:
        own = self.for_leaf(path, leaf)
        return [value for name in _masked_fields(own) if (value := getattr(own, name)) is not None]

    def init_shared(self, params: PyTree) -> PyTree:
        """What the rule keeps for the whole tree; None for a rule without sums over it."""
        return None

    def share(
        self, rules: list[Any], params: list[Array], grads: list[Array], slots: list[PyTree], shared: PyTree, t: Array
    ) -> tuple[PyTree, list[PyTree]]:
        """What is computed for all leaves at once, before they are updated: the new `shared`, which the state keeps, and for
        each leaf what `update_leaf` is given as a fifth argument.

        Args:
            rules: this rule as each leaf that has a gradient sees it.
            params: these leaves, in their compute dtypes.
            grads: their gradients.
            slots: their slots.
            shared: what `init_shared` or the last call returned.
            t: number of this update, as for `update_leaf`.
        """
        return shared, [None] * len(rules)

    def init(self, params: PyTree) -> OptState:
        params = trained(params)
        rule, structure = self.at(0), jax.tree.structure(params)
        slots = [storage.fresh(rule.for_leaf(path, leaf).init_leaf, leaf) for path, leaf in leaves_with_paths(params)]
        return OptState(
            step=jnp.zeros((), jnp.int32),
            slots=storage.gather(structure, slots) if slots else storage.empty(rule, structure),
            schedules=fresh_memories(self),
            shared=storage.own("init_shared", rule.init_shared(params), params),
        )

    def compute_updates(self, params: PyTree, grads: PyTree, state: OptState) -> tuple[PyTree, OptState]:
        structure, step = jax.tree.structure(params), saturating_increment(state.step)
        rule = self.at(state.step, state.schedules)
        named, known = leaves_with_paths(params), _known(rule, step)
        rules = [rule.for_leaf(path, param) for path, param in named]
        columns = named, rules, structure.flatten_up_to(grads), storage.scatter(rules, params, state.slots)
        leaves = [Leaf(path, own, param, *row) for (path, param), own, *row in zip(*columns, strict=True)]
        shares = type(rule).share is not LeafOptimizer.share
        shared, given = _shared(rule, leaves, state.shared, step) if shares else (state.shared, [None] * len(leaves))
        told = zip(leaves, given, truths([None if leaf.grad is None else leaf.param for leaf in leaves]), strict=True)
        results = [_updated(leaf, rule, step, known, *row) for leaf, *row in told]
        slots = storage.gather(structure, [slots for _, slots in results]) if leaves else state.slots
        return structure.unflatten([update for update, _ in results]), OptState(step, slots, state.schedules, shared)


class Leaf(NamedTuple):
    """What an update knows of one leaf."""

    path: str
    rule: LeafOptimizer
    param: Array
    grad: Array | None
    slots: PyTree


def _known(rule: LeafOptimizer, step: Array) -> dict[str, Known]:
    """What is computed of the decay rates of `rule` once for all leaves, in the widest real dtype there is."""
    check_scalars(rule)
    t = step.astype(jax.dtypes.canonicalize_dtype(float))
    rates = {name: rate for name, rate in vars(rule).items() if isinstance(rate, DecayRate)}
    return {name: Known(rate.complement, rate.one_minus_power(t)) for name, rate in rates.items()}


def _updated(
    leaf: Leaf, rule: LeafOptimizer, step: Array, known: dict[str, Known], given: PyTree, truth: Array | None
) -> tuple[Array | None, PyTree]:
    """The update of a leaf, and its new slots. Its own rule may have other decay rates than those of which this is known."""
    if leaf.grad is None:
        return None, leaf.slots
    own = {name: numbers for name, numbers in known.items() if getattr(leaf.rule, name) is getattr(rule, name)}
    return _at(leaf.path, _update_leaf, *leaf[1:], step, own, given, truth)


def _at(path: str, function: Callable[..., T], *args: Any) -> T:
    """`function(*args)`, with `path` in front of its errors."""
    try:
        return function(*args)
    except ValueError as error:
        raise ValueError(f"at {path!r}: {error}") from error


@jax.jit  # so that leaves of equal shape are traced once
def _update_leaf(
    rule: Any,
    param: Array,
    grad: Any,
    slots: PyTree,
    step: Array,
    known: dict[str, Known],
    given: PyTree,
    truth: Array | None,
) -> tuple[Array, PyTree]:
    """The update −s, and the new slots."""
    storage.check(rule, param, slots)
    dtype, where = compute_dtype(jnp.result_type(param)), f"{type(rule).__name__}.update_leaf"
    t = step.astype(real_dtype(dtype))
    rates = {name: dataclasses.replace(getattr(rule, name), known=own._replace(t=t)) for name, own in known.items()}
    arguments = [widen(param), _direction(param, grad), storage.read(slots), t, *([] if given is None else [given])]
    # Under strict promotion a float32 number times a complex64 or float64 leaf would be an error; wider leaves need neither.
    with jax.numpy_dtype_promotion("standard"):
        s, new_slots = with_fields(rule, **rates).update_leaf(*arguments)
    if jnp.shape(s) != jnp.shape(param) or (jnp.iscomplexobj(s) and not jnp.iscomplexobj(param)):
        raise ValueError(f"{where} returned the step {describe_leaf(s)} for a parameter {describe_leaf(param)}")
    update = if_true(truth, placed_like(-jnp.asarray(s, dtype), param))
    return update, storage.write(where, new_slots, slots)


def _shared(rule: LeafOptimizer, leaves: list[Leaf], shared: PyTree, step: Array) -> tuple[PyTree, list[PyTree]]:
    """What the rule keeps for the whole tree after this update, and what it gives to each of `leaves`."""
    live = [leaf for leaf in leaves if leaf.grad is not None]
    for leaf in live:
        _at(leaf.path, storage.check, leaf.rule, leaf.param, leaf.slots)
    params, grads = [widen(leaf.param) for leaf in live], [_direction(leaf.param, leaf.grad) for leaf in live]
    rules, slots = [leaf.rule for leaf in live], [storage.read(leaf.slots) for leaf in live]
    with jax.numpy_dtype_promotion("standard"):
        new, given = rule.share(rules, params, grads, slots, shared, step.astype(jnp.float32))
    values = iter([value for _, value in zip(live, given, strict=True)])
    given = [None if leaf.grad is None else next(values) for leaf in leaves]
    return storage.write(f"{type(rule).__name__}.share", new, shared), given


def _direction(param: Array, grad: Any) -> Array:
    """The direction of steepest ascent in the compute dtype; `jax.grad` returns its conjugate."""
    grad = widen(grad).astype(compute_dtype(jnp.result_type(param)))
    return jnp.conj(grad) if jnp.iscomplexobj(grad) else grad


def _masked_fields(rule: LeafOptimizer) -> list[str]:
    rules = {field.name: rule_of(field) for field in dataclasses.fields(rule)}
    return [name for name, kind in rules.items() if isinstance(kind, Number) and kind.masked]
