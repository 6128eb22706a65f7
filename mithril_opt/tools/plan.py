"""What happens to each leaf over a run: its rule, and its rates by the clocks of the wrappers around it."""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from mithril_opt.core.optimizer import Optimizer
from mithril_opt.core.pytree import check_scalars
from mithril_opt.core.slots import state_bytes
from mithril_opt.core.tree import leaves_with_paths
from mithril_opt.core.typing import PyTree
from mithril_opt.wrappers.words import evenly

T = TypeVar("T")


class Plan(NamedTuple):
    """What a rule does over the run, the same for all its leaves but for factors of their rates.

    Attributes:
        group: its name in a `MultiOptimizer`, "a/b" for a nested one; empty without one.
        owner: the rule.
        clocks: for each wrapper around it, the outermost first, and for itself, how many updates it has made before each step
            of the run, of a long run before some, and at its end.
        rates: its learning rate at its updates, of a long run at some, and at the one after; None if it keeps that to itself.
        largest: the largest value at its updates of a number or a schedule.
    """

    group: str
    owner: Any
    clocks: tuple[np.ndarray, ...]
    rates: np.ndarray | None
    largest: Callable[[Any], float]

    @property
    def updates(self) -> int:
        """How many it makes."""
        return int(self.clocks[-1][-1])

    @property
    def made(self) -> np.ndarray:
        """At which of the steps that are looked at it makes an update, and the end of the run."""
        return _made(self.clocks[-1])


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

    def clocks_of(self, wrapper: Any) -> tuple[np.ndarray, np.ndarray]:
        """The clock of a wrapper around it, and the one of what is inside that."""
        place = next(i for i, (own, _) in enumerate(self.around) if own is wrapper)
        return self.plan.clocks[place], self.plan.clocks[place + 1]


def the_leaves(optimizer: Any, params: PyTree, total_steps: int) -> list[Leaf]:
    """What `optimizer` does to each leaf that belongs to a rule."""
    plans: dict[Any, Plan] = {}
    columns = leaves_with_paths(params), optimizer.rules(params), optimizer.around(params), state_bytes(optimizer, params)
    _check_scalars(columns[1], columns[2])
    leaves = []
    for (path, array), rule, around, size in zip(*columns, strict=True):
        if rule is not None:
            key = rule[0], id(rule[1]), tuple(id(wrapper) for wrapper, _ in around)
            plans[key] = plans.get(key) or _plan(rule[0], rule[1], _clocks(around, total_steps))
            leaves.append(Leaf(path, array, plans[key], around, _scaled(plans[key], around), size))
    return leaves


def _check_scalars(rules: list[Any], around: list[tuple[Any, ...]]) -> None:
    """Raise a ValueError if a number of a rule, a wrapper or the trainer is an array of some shape, as in a sweep."""
    wrappers = [wrapper for pairs in around for wrapper, _ in pairs]
    parts = {id(part): part for part in (*wrappers, *(rule[1] for rule in rules if rule is not None))}
    for part in parts.values():
        check_scalars(part.at(0) if isinstance(part, Optimizer) else part)


def _clocks(around: tuple[Any, ...], total_steps: int) -> tuple[np.ndarray, ...]:
    """The clocks of the wrappers `around` a rule, and its own."""
    steps = np.append(evenly(total_steps), total_steps)
    return tuple(itertools.accumulate((wrapper for wrapper, _ in around), lambda n, one: one.updates_in(n), initial=steps))


def _made(clock: np.ndarray) -> np.ndarray:
    return np.append(np.diff(clock) > 0, True)


def _plan(group: str, owner: Any, clocks: tuple[np.ndarray, ...]) -> Plan:
    steps = clocks[-1][_made(clocks[-1])]
    rates = None if owner.rate is None else values(owner.rate, steps)
    return Plan(group, owner, clocks, rates, once(lambda number: float(values(number, steps[:-1]).max(initial=0))))


def once(function: Callable[[Any], T]) -> Callable[[Any], T]:
    """`function`, computed once for each argument, which may be an array or a schedule of arrays."""
    known: dict[int, tuple[Any, T]] = {}

    def remembered(number: Any) -> T:
        if id(number) not in known:
            known[id(number)] = number, function(number)  # it stays alive, so that no other gets its id
        return known[id(number)][1]

    return remembered


def _scaled(plan: Plan, around: tuple[Any, ...]) -> np.ndarray | None:
    """The rates of `plan`, multiplied with the factors of the wrappers `around`, each by its own clock."""
    if plan.rates is None:
        return None
    factors = [values(own, clock[plan.made]) for (_, own), clock in zip(around, plan.clocks, strict=False) if own is not None]
    return functools.reduce(np.multiply, factors, plan.rates)


def values(number: Any, steps: np.ndarray) -> np.ndarray:
    """What a number or a schedule is at `steps`."""
    return np.asarray(jax.vmap(number)(steps) if callable(number) else np.full(len(steps), number))
