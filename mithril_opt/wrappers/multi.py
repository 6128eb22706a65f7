"""One optimizer made of several: embeddings here, the body there."""

import functools
from typing import Any, Self

import jax.numpy as jnp

from mithril_opt.core.fields import shown, static
from mithril_opt.core.foreign_arguments import refuse_labels
from mithril_opt.core.numerics import saturating_increment
from mithril_opt.core.optimizer import Optimizer, check_optimizer
from mithril_opt.core.patterns import checked, matching, no_leaf, unmatched
from mithril_opt.core.pytree import pytree, set_field, with_fields
from mithril_opt.core.slots import state_bytes
from mithril_opt.core.state import OptState, Window, check_state
from mithril_opt.core.table import Table
from mithril_opt.core.tree import as_array, describe_leaf, leaves_with_paths, listed, only, overlay, trains
from mithril_opt.core.typing import Array, PyTree


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
            - a list of these, any of which may match;
            - `...`, for all that no other group takes.

    Raises:
        ValueError: names without a pattern or an optimizer; on `init` and `update`, a leaf that belongs to no group or to two,
            or a group to which nothing belongs.
        TypeError: `groups` are the labels of `optax.partition`; shows the line to write.

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
        refuse_labels(self.optimizers, self.groups)
        groups, optimizers = dict(self.groups), self.optimizers
        if set(groups) != set(optimizers) or not groups:
            raise ValueError(
                f"optimizers and groups must have the same names, got {shown(sorted(optimizers))} and {shown(sorted(groups))}"
            )
        for name, optimizer in optimizers.items():
            check_optimizer(f"MultiOptimizer: optimizers[{name!r}]", optimizer)
        set_field(self, "groups", tuple((name, checked(f"groups[{name!r}]", pattern)) for name, pattern in groups.items()))
        if len(rests := [name for name, pattern in self.groups if pattern is ...]) > 1:
            raise ValueError(f"at most one group may be '...', the rest; got {rests}")
        names = self.group_names
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"nested groups are called by the names of both, and two groups are then called {shown(twice[0])}")

    def __hash__(self) -> int:
        return hash((tuple(self.optimizers.items()), self.groups))

    def init(self, params: PyTree) -> OptState:
        parts = zip(self.optimizers.items(), self._split(params), strict=True)
        return _join(jnp.zeros((), jnp.int32), {name: optimizer.init(own) for (name, optimizer), (own,) in parts})

    def compute_updates(self, params: PyTree, grads: PyTree, state: OptState, **extra_args: Any) -> tuple[PyTree, OptState]:
        updates, states, window = [], {}, self.window(state)
        for (name, optimizer, part), (own, given) in zip(self._each(state), self._split(params, grads), strict=True):
            extra = extra_args if optimizer.takes_extra_args else {}
            try:
                update, states[name] = optimizer.compute_updates(own, given, part, **extra)
            except ValueError as error:
                raise ValueError(f"group {name!r}: {error}") from error
            updates.append(update)
        step = jnp.where(window.applies, saturating_increment(state.step), jnp.int32(state.step))
        return overlay(params, *updates), _join(step, states)

    def _split(self, params: PyTree, *trees: PyTree) -> list[list[PyTree]]:
        """For each group `params` and `trees`, shaped like them, with None at the leaves of the other groups."""
        owners = self.owners(params)
        kept = [[owner == name for owner in owners] for name in self.optimizers]
        return [[only(params, tree, keep) for tree in (params, *trees)] for keep in kept]

    def _each(self, state: OptState) -> list[tuple[str, Optimizer, Any]]:
        """Name, optimizer and state of every group."""
        check_state(self, state)
        named = self.optimizers.items()
        return [(name, optimizer, optimizer.with_step(_part(state, name), state.step)) for name, optimizer in named]

    def parts(self, params: PyTree, state: OptState) -> list[tuple[Optimizer, PyTree, Any]]:
        """Optimizer, parameters and state of every group, the state as it was left."""
        check_state(self, state)
        split = zip(self.optimizers.items(), self._split(params), strict=True)
        return [(optimizer, own, _part(state, name)) for (name, optimizer), (own,) in split]

    def with_parts(self, state: OptState, parts: list[Any]) -> OptState:
        """`state` with other states of the groups, in the order of `parts`, on its own clock."""
        return _join(state.step, dict(zip(self.optimizers, parts, strict=True)))

    def get_learning_rate(self, state: OptState) -> dict[str, Any]:
        """The rate that the next update will use in each group: float32 scalars by group name; a dictionary of them for a
        nested one. A group that has no rate, or keeps it to itself, is left out."""
        each = [pair for pair in self._each(state) if pair[1].learning_rates(pair[2])]
        return {name: optimizer.get_learning_rate(part) for name, optimizer, part in each}

    def learning_rates(self, state: OptState) -> dict[str, Array]:
        rates = {}
        for name, optimizer, part in self._each(state):
            nested = optimizer.group_names != [""]
            own = optimizer.learning_rates(part)
            rates |= {f"{name}/{inner}" if nested else name: rate for inner, rate in own.items()}
        return rates

    @property
    def group_names(self) -> list[str]:
        named = self.optimizers.items()
        return [f"{name}/{inner}".rstrip("/") for name, optimizer in named for inner in optimizer.group_names]

    def with_learning_rate(self, learning_rate: Any) -> Self:
        raise ValueError("a MultiOptimizer has a learning rate for each group, and no single one that could be replaced")

    def observe(self, state: OptState, metric: Any) -> OptState:
        return _join(state.step, {name: optimizer.observe(part, metric) for name, optimizer, part in self._each(state)})

    def at(self, step: Any, schedules: PyTree = None) -> Self:
        memories = schedules or {}
        optimizers = {name: optimizer.at(step, memories.get(name)) for name, optimizer in self.optimizers.items()}
        return with_fields(self, optimizers=optimizers)

    def resolve(self, state: OptState) -> Self:
        return with_fields(self, optimizers={name: optimizer.resolve(part) for name, optimizer, part in self._each(state)})

    def eval_params(self, params: PyTree, state: OptState) -> PyTree:
        parts = zip(self._each(state), self._split(params), strict=True)
        return overlay(params, *(optimizer.eval_params(own, part) for (_, optimizer, part), (own,) in parts), params)

    @property
    def takes_extra_args(self) -> bool:
        return any(optimizer.takes_extra_args for optimizer in self.optimizers.values())

    @property
    def owns_addition(self) -> bool:
        return any(optimizer.owns_addition for optimizer in self.optimizers.values())

    def unpack(self, state: OptState) -> OptState:
        check_state(self, state)
        return _join(state.step, {name: own.unpack(_part(state, name)) for name, own in self.optimizers.items()})

    def pack(self, state: OptState) -> OptState:
        check_state(self, state)
        return _join(state.step, {name: own.pack(_part(state, name)) for name, own in self.optimizers.items()})

    def owns_updates(self, changer: str) -> str | None:
        return next(filter(None, (optimizer.owns_updates(changer) for optimizer in self.optimizers.values())), None)

    @property
    def window_length(self) -> int | None:
        every = (optimizer.window_length for optimizer in self.optimizers.values())
        lengths = {length for length in every if length is not None}
        if len(lengths) > 1:
            raise ValueError(
                f"the groups accumulate over windows of different lengths, {sorted(lengths)}, which cannot be committed "
                "together: write Accumulate(MultiOptimizer(...), every=...), or give all groups the same"
            )
        return next(iter(lengths), None)

    def window(self, state: OptState) -> Window:
        """That of the groups, which have one in common; where they accumulate apart, it closes when any of them does."""
        windows = [optimizer.window(part) for _, optimizer, part in self._each(state) if optimizer.window_length is not None]
        if not windows:
            return super().window(state)
        closes, verdicts = zip(*windows, strict=True)
        return Window(functools.reduce(jnp.logical_or, closes), functools.reduce(jnp.maximum, verdicts))

    def skip(self, state: OptState, verdict: Array) -> OptState:
        return _join(state.step, {name: optimizer.skip(part, verdict) for name, optimizer, part in self._each(state)})

    def ready(self, state: OptState, params: PyTree) -> Array:
        each = zip(self._each(state), self._split(params), strict=True)
        verdicts = (optimizer.ready(part, own) for (_, optimizer, part), (own,) in each)
        return functools.reduce(jnp.logical_and, verdicts)

    def drop_frozen(self, params: PyTree, grads: PyTree) -> PyTree:
        parts = zip(self.optimizers.values(), self._split(params, grads), strict=True)
        return overlay(params, *(optimizer.drop_frozen(own, given) for optimizer, (own, given) in parts))

    def unmatched(self, params: PyTree) -> list[Any]:
        own, parts = (pattern for _, pattern in self.groups), zip(self.optimizers.values(), self._split(params), strict=True)
        inner = [pattern for optimizer, (part,) in parts for pattern in optimizer.unmatched(part)]
        return unmatched(own, leaves_with_paths(params)) + inner

    def around(self, params: PyTree) -> list[tuple[Any, ...]]:
        parts = zip(self.optimizers.items(), self._split(params), strict=True)
        found = {name: iter(optimizer.around(own)) for (name, optimizer), (own,) in parts}
        return [() if owner is None else next(found[owner]) for owner in self.owners(params)]

    def rules(self, params: PyTree) -> list[tuple[str, Optimizer] | None]:
        parts = zip(self.optimizers.items(), self._split(params), strict=True)
        found = {name: iter(optimizer.rules(own)) for (name, optimizer), (own,) in parts}

        def rule(owner: str | None) -> tuple[str, Optimizer] | None:
            inner = None if owner is None else next(found[owner])
            return inner and (f"{owner}/{inner[0]}".rstrip("/"), inner[1])

        return [rule(owner) for owner in self.owners(params)]

    def describe(self, params: PyTree) -> Table:
        """A table of what happens to each leaf: path, shape, dtype, group, optimizer and bytes of state.

        Args:
            params: tree of arrays or `jax.ShapeDtypeStruct`s.
        """
        rows = []
        each = zip(leaves_with_paths(params), self.owners(params), state_bytes(self, params), strict=True)
        for (path, leaf), name, size in each:
            if name is not None:
                optimizer = type(self.optimizers[name]).__name__
                rows.append((path, jnp.shape(leaf), str(jnp.result_type(leaf)), name, optimizer, size))
        columns, notes = ("path", "shape", "dtype", "group", "optimizer", "state bytes"), no_leaf(self.unmatched(params))
        return Table(columns, tuple(rows), notes)

    def owners(self, params: PyTree) -> list[str | None]:
        """The group of every leaf, in the order of `jax.tree.leaves`; None for a passenger.

        Raises:
            ValueError: a leaf belongs to no group or to two, or nothing belongs to a group.
        """
        leaves = leaves_with_paths(params)
        owners = [self._owner(path, as_array(leaf)) if trains(leaf) else None for path, leaf in leaves]
        idle = set(self.optimizers) - set(owners)
        if idle and any(owners):
            paths = listed(path for path, _ in leaves)
            raise ValueError(f"nothing belongs to the groups {sorted(idle)} of {shown(self.groups)}; the paths are {paths}")
        return owners

    def _owner(self, path: str, leaf: Any) -> str:
        names = matching(self.groups, path, leaf)
        if len(names) != 1:
            found = f"to the groups {names}" if names else "to no group"
            raise ValueError(f"{path!r} ({describe_leaf(leaf)}) belongs {found}; each leaf needs one of {shown(self.groups)}")
        return names[0]


def _join(step: Array, states: dict[str, Any]) -> OptState:
    """One state out of the groups', on one clock. A state with a clock of its own (accumulation) stays whole in the slots."""
    on_clock = {name: state for name, state in states.items() if isinstance(state, OptState)}
    slots = {name: state.slots if name in on_clock else state for name, state in states.items()}
    shared = {name: state.shared for name, state in on_clock.items() if state.shared is not None}
    return OptState(step, slots, {name: state.schedules for name, state in on_clock.items()}, shared or None)


def _part(state: OptState, name: str) -> Any:
    """The state of the group `name`: the inverse of `_join`."""
    if not (isinstance(state.slots, dict) and name in state.slots):
        names = f"groups {sorted(state.slots)}" if isinstance(state.slots, dict) else "no groups"
        raise ValueError(f"the state does not belong to this MultiOptimizer: it has {names}, but there is a group {name!r}")
    slots = state.slots[name]
    if name not in state.schedules:
        return slots
    return OptState(state.step, slots, state.schedules[name], (state.shared or {}).get(name))
