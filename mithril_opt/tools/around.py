"""What the wrappers around the leaves do, in words, and which of them do nothing."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from mithril_opt.core.schedule import Schedule
from mithril_opt.core.tree import listed
from mithril_opt.tools.plan import Leaf, once, values
from mithril_opt.wrappers.base import Wrapper
from mithril_opt.wrappers.words import counted


def sentences(leaves: list[Leaf]) -> Iterator[str]:
    """What the wrappers do, and what `eval_params` are."""
    for wrapper, inside in _wrappers(leaves):
        if (text := wrapper.says()) is not None:
            yield f"{_whose(inside, leaves)}: {text}"
        yield from _when(wrapper, inside, leaves)
    readers = {id(reader): reader for leaf in leaves if (reader := _evaluated(leaf)) is not None}
    for reader in readers.values():
        read = [leaf for leaf in leaves if _evaluated(leaf) is reader]
        yield f"{_whose(read, leaves)}: eval_params are {reader.reads()}"


def _when(wrapper: Any, inside: list[Leaf], leaves: list[Leaf]) -> Iterator[str]:
    """When the leaves `inside` of `wrapper` are updated, and with what it multiplies their rates, if that changes."""
    steps, (outer, inner) = inside[0].plan.clocks[0], inside[0].clocks_of(wrapper)
    if inner[-1] < outer[-1]:
        yield f"{_whose(inside, leaves)}: " + ("on " + spans(inner, steps) if inner[-1] else "off throughout")
    scaled: dict[str, list[Leaf]] = {}
    course = once(lambda factor: _course(factor, outer, steps))
    for leaf in inside:
        for factor in (own for one, own in leaf.around if one is wrapper and isinstance(own, Schedule)):
            scaled.setdefault(course(factor), []).append(leaf)
    yield from (f"{_whose(own, leaves)}: rate times a schedule, {text}" for text, own in scaled.items())


def _course(factor: Schedule, clock: np.ndarray, steps: np.ndarray) -> str:
    """What is to be known of `factor`, which goes by `clock`: when it is 0, else its ends."""
    zeros = counted(lambda own: values(factor, own) == 0, clock)
    if zeros[-1]:
        return "0 " + spans(zeros, steps)
    start, end = values(factor, clock[[0, -2]])
    return f"{start:.4g} at the start and {end:.4g} at the end"


def spans(count: np.ndarray, steps: np.ndarray) -> str:
    """At which of the updates before `steps`, counted from 0, `count` grows: "from update 40", "in updates 40 to 99"."""
    edges = np.flatnonzero(np.diff(np.diff(count) > 0, prepend=False, append=False))
    first = int(steps[edges[0] + 1] - (count[edges[0] + 1] - count[edges[0]]))
    if len(edges) > 2:
        return f"in {count[-1]:,} of {steps[-1]:,} updates, first in update {first:,}"
    last = int(steps[edges[1] - 1] + count[edges[1]] - count[edges[1] - 1]) - 1
    if last == steps[-1] - 1:
        return f"from update {first:,}" if first else "throughout"
    if first == last:
        return f"in update {first:,}"
    return f"in updates {first:,} to {last:,}" if first else f"until update {last + 1:,}"


def wrappers_without_effect(leaves: list[Leaf]) -> Iterator[str]:
    """Warnings of wrappers that change nothing, though they make updates."""
    for wrapper, inside in _wrappers(leaves):
        updates = max(int(leaf.clocks_of(wrapper)[0][-1]) for leaf in inside)
        why = wrapper.idle([(leaf.path, leaf.array, leaf.plan.owner) for leaf in inside], updates) if updates else None
        name = f"{type(wrapper).__name__} of {_whose(inside, leaves)}"
        name = name if isinstance(wrapper, Wrapper) else "clip_norm of the trainer"
        if why is not None:
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
