"""One optimizer made of several: embeddings here, the body there."""

import fnmatch
import inspect
import math
import re
from collections.abc import Callable
from types import EllipsisType
from typing import Any, Self, TypeAlias

import jax
import jax.numpy as jnp

from mithril_opt._numerics import saturating_increment
from mithril_opt._pytree import pytree, set_field, static, with_fields
from mithril_opt._slots import parameter_of_each_leaf
from mithril_opt._state import OptState, check_state
from mithril_opt._table import Table
from mithril_opt._tree import agree, describe_leaf, leaves_with_paths, merge, overlay, trained, trains
from mithril_opt._typing import Array, PyTree
from mithril_opt.optimizer import Optimizer, check_optimizer

Pattern: TypeAlias = str | re.Pattern[str] | Callable[[str, Any], bool] | EllipsisType


@pytree
class Frozen(Optimizer):
    """An optimizer for parameters that do not train: they stay as they are, have no slots and do not count in a norm.

    Example:
        >>> from mithril_opt import AdamW, Frozen, MultiOptimizer
        >>> optimizer = MultiOptimizer({"base": Frozen(), "head": AdamW()}, groups={"base": "backbone/*", "head": ...})
    """

    def init(self, params: PyTree) -> OptState:
        return OptState(step=jnp.zeros((), jnp.int32), slots=None, schedules={})

    def update(self, params: PyTree, grads: PyTree, state: OptState) -> tuple[PyTree, OptState]:
        check_state(self, grads, state)
        return params, state._replace(step=saturating_increment(state.step))

    def compute_updates(self, params: PyTree, grads: PyTree, state: OptState) -> tuple[PyTree, OptState]:
        """No updates: None everywhere."""
        return self.drop_frozen(params, grads), self.update(params, grads, state)[1]

    def get_learning_rate(self, state: OptState) -> Array:
        """0.0."""
        return jnp.float32(0)

    def drop_frozen(self, params: PyTree, grads: PyTree) -> PyTree:
        return jax.tree.map(lambda _: None, params)


@pytree
class MultiOptimizer(Optimizer):
    """Several optimizers, each for its own group of parameters, on one clock.

    Equal, to the bit, to training the groups apart. The state is one `OptState` whose slots and schedules are dictionaries by
    group name; a leaf of another group is None in a group's slots.

    Args:
        optimizers: the optimizers by group name.
        groups: for each name, the pattern of the paths that belong to it. Paths read `decoder/layers/0/w`. A pattern is

            - a glob on the whole path, in which `*` also crosses slashes: `"decoder/*"`, `"*/bias"`;
            - a compiled regular expression, searched for in the path: `re.compile(r"layers/[0-3]/")`;
            - a predicate `(path, leaf) -> bool`: `lambda path, leaf: leaf.ndim == 1`;
            - `...`, for all that no other group takes.

    Raises:
        ValueError: names without a pattern or an optimizer; on `init` and `update`, a leaf that belongs to no group or to two,
            or a group to which nothing belongs.

    Example:
        >>> import jax.numpy as jnp
        >>> from mithril_opt import SGD, Adam, MultiOptimizer
        >>> params = {"embed": jnp.ones((4, 2)), "body": {"w": jnp.ones((2, 2))}}
        >>> optimizer = MultiOptimizer(
        ...     {"embedding": Adam(learning_rate=0.1), "body": SGD(learning_rate=0.01)},
        ...     groups={"embedding": "embed", "body": ...},
        ... )
        >>> optimizer.describe(params)
        path    shape   dtype    group      optimizer  state bytes
        body/w  (2, 2)  float32  body       SGD                  0
        embed   (4, 2)  float32  embedding  Adam                64
        >>> optimizer.get_learning_rate(optimizer.init(params))
        {'embedding': Array(0.1, dtype=float32), 'body': Array(0.01, dtype=float32)}
    """

    optimizers: dict[str, Optimizer]
    groups: Any = static()

    def __post_init__(self) -> None:
        groups, optimizers = dict(self.groups), self.optimizers
        if set(groups) != set(optimizers) or not groups:
            raise ValueError(f"optimizers and groups must have the same names, got {sorted(optimizers)} and {sorted(groups)}")
        for name, optimizer in optimizers.items():
            check_optimizer(f"MultiOptimizer: optimizers[{name!r}]", optimizer)
        for name, pattern in groups.items():
            if not (isinstance(pattern, str | re.Pattern) or pattern is ... or callable(pattern)):
                raise TypeError(
                    f"groups[{name!r}] must be a glob, a compiled regular expression, a predicate (path, leaf) -> bool or ..., "
                    f"got {pattern!r}"
                )
        if [*groups.values()].count(...) > 1:
            raise ValueError(f"at most one group may be '...', the rest; got {[n for n, p in groups.items() if p is ...]}")
        set_field(self, "groups", tuple(groups.items()))

    def __hash__(self) -> int:
        return hash((tuple(self.optimizers.items()), self.groups))

    def init(self, params: PyTree) -> OptState:
        owners = self.owners(params)
        states = {name: optimizer.init(_select(params, params, owners, name)) for name, optimizer in self.optimizers.items()}
        return _join(jnp.zeros((), jnp.int32), states)

    def update(self, params: PyTree, grads: PyTree, state: OptState, **extra_args: Any) -> tuple[PyTree, OptState]:
        new_params, state = self._each("update", params, grads, state, extra_args)
        return merge(params, new_params), state

    def compute_updates(self, params: PyTree, grads: PyTree, state: OptState, **extra_args: Any) -> tuple[PyTree, OptState]:
        """The updates −η d of every group and the new state, without applying them; None where nothing is to be done."""
        return self._each("compute_updates", params, grads, state, extra_args)

    def _each(
        self, method: str, params: PyTree, grads: PyTree, state: OptState, extra_args: dict[str, Any]
    ) -> tuple[PyTree, OptState]:
        check_state(self, grads, state)
        if extra_args and not takes_extra_args(self):
            raise TypeError(f"no group of this MultiOptimizer takes the arguments {sorted(extra_args)}")
        grads, owners = agree(params, grads), self.owners(params)
        outputs, states = [], {}
        for name, optimizer in self.optimizers.items():
            own_params, own_grads = _select(params, params, owners, name), _select(params, grads, owners, name)
            given = extra_args if takes_extra_args(optimizer) else {}
            output, states[name] = getattr(optimizer, method)(own_params, own_grads, _part(state, name), **given)
            outputs.append(output)
        return overlay(params, *outputs), _join(saturating_increment(state.step), states)

    def get_learning_rate(self, state: OptState) -> dict[str, Array]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The rate that the next update will use in each group: float32 scalars by group name."""
        return {name: optimizer.get_learning_rate(_part(state, name)) for name, optimizer in self.optimizers.items()}

    def observe(self, state: OptState, metric: Any) -> OptState:
        states = {name: optimizer.observe(_part(state, name), metric) for name, optimizer in self.optimizers.items()}
        return _join(state.step, states)

    def at(self, step: Any, schedules: PyTree = None) -> Self:
        memories = schedules or {}
        optimizers = {name: optimizer.at(step, memories.get(name)) for name, optimizer in self.optimizers.items()}
        return with_fields(self, optimizers=optimizers)

    def resolve(self, state: OptState) -> Self:
        resolved = {name: optimizer.resolve(_part(state, name)) for name, optimizer in self.optimizers.items()}
        return with_fields(self, optimizers=resolved)

    def drop_frozen(self, params: PyTree, grads: PyTree) -> PyTree:
        owners = self.owners(params)
        kept = [
            optimizer.drop_frozen(_select(params, params, owners, name), _select(params, grads, owners, name))
            for name, optimizer in self.optimizers.items()
        ]
        return overlay(params, *kept)

    def describe(self, params: PyTree) -> Table:
        """A table of what happens to each leaf: path, shape, dtype, group, optimizer and bytes of state.

        Args:
            params: tree of arrays or `jax.ShapeDtypeStruct`s.
        """
        rows = []
        columns = zip(leaves_with_paths(params), self.owners(params), state_bytes(self, params), strict=True)
        for (path, leaf), name, size in columns:
            if name is not None:
                optimizer = type(self.optimizers[name]).__name__
                rows.append((path, jnp.shape(leaf), str(jnp.result_type(leaf)), name, optimizer, size))
        return Table(("path", "shape", "dtype", "group", "optimizer", "state bytes"), tuple(rows))

    def owners(self, params: PyTree) -> list[str | None]:
        """The group of every leaf, in the order of `jax.tree.leaves`; None for a passenger.

        Raises:
            ValueError: a leaf belongs to no group or to two, or nothing belongs to a group.
        """
        leaves = leaves_with_paths(params)
        owners = [self._owner(path, leaf) if trains(leaf) else None for path, leaf in leaves]
        idle = set(self.optimizers) - set(owners)
        if idle and any(owners):
            paths = ", ".join(path for path, _ in leaves)
            raise ValueError(f"nothing belongs to the groups {sorted(idle)} of {self.groups}; the paths are {paths}")
        return owners

    def _owner(self, path: str, leaf: Any) -> str:
        names = [name for name, pattern in self.groups if pattern is not ... and _matches(pattern, path, leaf)]
        names = names or [name for name, pattern in self.groups if pattern is ...]
        if len(names) != 1:
            found = f"to the groups {names}" if names else "to no group"
            raise ValueError(f"{path!r} ({describe_leaf(leaf)}) belongs {found}; each leaf needs one of {self.groups}")
        return names[0]


def _matches(pattern: Any, path: str, leaf: Any) -> bool:
    if isinstance(pattern, str):
        return fnmatch.fnmatchcase(path, pattern)
    return bool(pattern.search(path)) if isinstance(pattern, re.Pattern) else bool(pattern(path, leaf))


def _select(params: PyTree, tree: PyTree, owners: list[str | None], name: str) -> PyTree:
    """`tree`, shaped like `params`, with None at the leaves that do not belong to the group `name`."""
    structure = jax.tree.structure(params)
    leaves = zip(structure.flatten_up_to(tree), owners, strict=True)
    return structure.unflatten([leaf if owner == name else None for leaf, owner in leaves])


def _join(step: Array, states: dict[str, Any]) -> OptState:
    """One state out of the groups', on one clock. A state with a clock of its own (accumulation) stays whole in the slots."""
    on_clock = {name: state for name, state in states.items() if isinstance(state, OptState)}
    slots = {name: state.slots if name in on_clock else state for name, state in states.items()}
    return OptState(step, slots, {name: state.schedules for name, state in on_clock.items()})


def _part(state: OptState, name: str) -> Any:
    """The state of the group `name`: the inverse of `_join`."""
    if not (isinstance(state, OptState) and isinstance(state.slots, dict) and name in state.slots):
        names = f"groups {sorted(state.slots)}" if isinstance(getattr(state, "slots", None), dict) else "no groups"
        raise ValueError(f"the state does not belong to this MultiOptimizer: it has {names}, but there is a group {name!r}")
    slots = state.slots[name]
    return OptState(state.step, slots, state.schedules[name]) if name in state.schedules else slots


def takes_extra_args(optimizer: Optimizer) -> bool:
    """Whether `update` takes further arguments by keyword (`value`, say), as the optimizers made by `from_optax` do."""
    if isinstance(optimizer, MultiOptimizer):
        return any(takes_extra_args(inner) for inner in optimizer.optimizers.values())
    parameters = inspect.signature(optimizer.update).parameters.values()
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)


def state_bytes(optimizer: Optimizer, params: PyTree) -> list[int]:
    """Bytes of state that `optimizer` keeps for each leaf of `params`; its counters belong to none."""
    positions = [i for i, leaf in enumerate(jax.tree.leaves(params)) if trains(leaf)]
    sizes = [0] * len(jax.tree.leaves(params))
    state = jax.eval_shape(optimizer.init, trained(params))
    for leaf, index in zip(jax.tree.leaves(state), parameter_of_each_leaf(state, trained(params)), strict=True):
        if index is not None:
            sizes[positions[index]] += math.prod(leaf.shape) * leaf.dtype.itemsize
    return sizes
