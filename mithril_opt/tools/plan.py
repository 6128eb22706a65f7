"""What happens to each leaf over a run: its rule, its rates, and the wrappers around it."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from mithril_opt.core.optimizer import Optimizer
from mithril_opt.core.pytree import check_scalars
from mithril_opt.core.slots import state_bytes
from mithril_opt.core.tree import leaves_with_paths, listed
from mithril_opt.core.typing import PyTree
from mithril_opt.wrappers.base import Wrapper
from mithril_opt.wrappers.words import evenly


class Plan(NamedTuple):
    """What a rule does over the run, the same for all its leaves but for factors of their rates.

    Attributes:
        group: its name in a `MultiOptimizer`, "a/b" for a nested one; empty without one.
        owner: the rule.
        updates: how many it makes.
        rates: its learning rate at the steps of the run, of a long run at some, and at the one after; None if it keeps that to
            itself.
        largest: the largest value in the run of a number or a schedule.
    """

    group: str
    owner: Any
    updates: int
    rates: np.ndarray | None
    largest: Callable[[Any], float]


class Leaf(NamedTuple):
    """What happens to a leaf.

    Attributes:
        path: its path.
        array: the leaf itself.
        plan: that of its rule.
        around: the wrappers around that, the outermost first, each with a factor for the rate of this leaf, or None.
        rates: `plan.rates`, multiplied with those factors.
        state_bytes: bytes of state that are kept for it.
    """

    path: str
    array: Any
    plan: Plan
    around: tuple[tuple[Any, Any], ...]
    rates: np.ndarray | None
    state_bytes: int

    @property
    def trains(self) -> bool:
        """Whether it moves at some step of the run, as far as the optimizer tells."""
        moves = self.rates is None or bool(np.any(self.rates[:-1] != 0))
        return self.plan.owner.window_length is not None and self.plan.updates > 0 and moves


def the_leaves(optimizer: Any, params: PyTree, total_steps: int) -> list[Leaf]:
    """What `optimizer` does to each leaf that belongs to a rule."""
    plans: dict[Any, Plan] = {}
    columns = leaves_with_paths(params), optimizer.rules(params), optimizer.around(params), state_bytes(optimizer, params)
    _check_scalars(columns[1], columns[2])
    leaves = []
    for (path, array), rule, around, size in zip(*columns, strict=True):
        if rule is not None:
            group, owner = rule
            updates = functools.reduce(lambda count, pair: pair[0].updates_in(count), around, total_steps)
            key = group, id(owner), updates
            plans[key] = plans.get(key) or _plan(group, owner, updates)
            factors = [factor for _, factor in around if factor is not None]
            leaves.append(Leaf(path, array, plans[key], around, _scaled(plans[key], factors), size))
    return leaves


def _check_scalars(rules: list[Any], around: list[tuple[Any, ...]]) -> None:
    """Raise a ValueError if a number of a rule, a wrapper or the trainer is an array of some shape, as in a sweep."""
    wrappers = [wrapper for pairs in around for wrapper, _ in pairs]
    parts = {id(part): part for part in (*wrappers, *(rule[1] for rule in rules if rule is not None))}
    for part in parts.values():
        check_scalars(part.at(0) if isinstance(part, Optimizer) else part)


def _plan(group: str, owner: Any, updates: int) -> Plan:
    steps = evenly(max(updates, 1))
    rates = None if owner.rate is None else _values(owner.rate, np.append(steps, updates))
    return Plan(group, owner, updates, rates, _once(lambda number: float(_values(number, steps).max())))


def _once(function: Callable[[Any], float]) -> Callable[[Any], float]:
    """`function`, computed once for each argument, which may be an array or a schedule of arrays."""
    known: dict[int, tuple[Any, float]] = {}

    def remembered(number: Any) -> float:
        if id(number) not in known:
            known[id(number)] = number, function(number)  # it stays alive, so that no other gets its id
        return known[id(number)][1]

    return remembered


def _scaled(plan: Plan, factors: list[Any]) -> np.ndarray | None:
    """The rates of `plan`, multiplied with `factors`, numbers or schedules."""
    if plan.rates is None:
        return None
    steps = np.append(evenly(max(plan.updates, 1)), plan.updates)
    return functools.reduce(np.multiply, (_values(factor, steps) for factor in factors), plan.rates)


def _values(number: Any, steps: np.ndarray) -> np.ndarray:
    return np.asarray(jax.vmap(number)(steps) if callable(number) else np.full(len(steps), number))


def sentences(leaves: list[Leaf]) -> Iterator[str]:
    """What the wrappers do, and what `eval_params` are."""
    for wrapper, inside in _wrappers(leaves):
        if (text := wrapper.says()) is not None:
            yield f"{_whose(inside, leaves)}: {text}"
    readers = {id(reader): reader for leaf in leaves if (reader := _evaluated(leaf)) is not None}
    for reader in readers.values():
        read = [leaf for leaf in leaves if _evaluated(leaf) is reader]
        yield f"{_whose(read, leaves)}: eval_params are {reader.reads()}"


def wrappers_without_effect(leaves: list[Leaf], total_steps: int) -> Iterator[str]:
    """Warnings of wrappers that change nothing."""
    for wrapper, inside in _wrappers(leaves):
        name = f"{type(wrapper).__name__} of {_whose(inside, leaves)}"
        name = name if isinstance(wrapper, Wrapper) else "clip_norm of the trainer"
        if (why := wrapper.idle([(leaf.path, leaf.array, leaf.plan.owner) for leaf in inside], total_steps)) is not None:
            yield f"{name} has no effect: {why}"
        elif wrapper.reads() and not wrapper.says() and all(_evaluated(leaf) is not wrapper for leaf in inside):
            around = type(_evaluated(inside[0])).__name__
            yield f"{name} has no effect: eval_params are those of the {around} around it"


def _wrappers(leaves: list[Leaf]) -> list[tuple[Any, list[Leaf]]]:
    """All wrappers, the outer ones first, each with the leaves that it is around."""
    found: dict[int, tuple[Any, list[Leaf]]] = {}
    for leaf in leaves:
        for wrapper, _ in leaf.around:
            found.setdefault(id(wrapper), (wrapper, []))[1].append(leaf)
    return [*found.values()]


def _evaluated(leaf: Leaf) -> Any:
    """The wrapper or rule whose `eval_params` are those of `leaf`; None for the parameters themselves."""
    inwards = [*(wrapper for wrapper, _ in leaf.around), leaf.plan.owner]
    return next((reader for reader in inwards if reader.reads() is not None), None)


def _whose(inside: list[Leaf], leaves: list[Leaf]) -> str:
    """The leaves `inside`, in words."""
    if len(inside) == len(leaves):
        return "all parameters"
    groups = sorted({leaf.plan.group for leaf in inside})
    if len(inside) == sum(leaf.plan.group in groups for leaf in leaves):
        return f"group{'s' if len(groups) > 1 else ''} {listed(map(repr, groups))}"
    return listed(leaf.path for leaf in inside)
