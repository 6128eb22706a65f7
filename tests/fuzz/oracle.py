"""What a step must do, in float64: wrappers, groups and the mixed-precision trainer, from the formulas of the documentation.

Parameters, gradients and states are dictionaries from paths to `Bounded` arrays of four axes: entries of the batch, steps,
elements, and components (2 of a complex number, 1 of any other). A function takes what was before a step and gives what must
be after it. Settings are read from the fields of the optimizer; nothing of the library is called but decay masks and the
predicates of groups, which are the cases' own.
"""

import functools
import re
from typing import NamedTuple

import numpy as np

from mithril_opt import Accumulate, Clip, Frozen, MultiOptimizer

from .bounded import ROUNDING, SMALLEST, Bounded, clamp, exact, kept, norm, rounded, where
from .papers import PAPERS, Settings

MOST = 2**31 - 1  # where the clock stops


class Place(NamedTuple):
    """Where the state of an optimizer is: the paths of its root, of its clock and of its slots."""

    root: str
    clock: str
    slots: str


def at(root):
    return Place(root, root + "step", root + "slots/")


def group(place, name):
    """A group has its slots among those of all, and the clock of all; what accumulates has its whole state there."""
    root = f"{place.slots}{name}/"
    return Place(root, place.clock, root)


def update(optimizer, params, grads, state, place):
    """New parameters and new state, each a dictionary; a gradient that is None is absent."""
    return UPDATES.get(type(optimizer), rule)(optimizer, params, grads, state, place)


def rule(optimizer, params, grads, state, place):
    k = state[place.clock].value
    paper, t = PAPERS[type(optimizer)], np.minimum(k + 1, MOST)
    new_params, new_state = {}, {place.clock: exact(t)}
    for path, p in params.items():
        keys = {name: f"{place.slots}{name}/{path}" for name in slot_names(state, place, path)}
        slots = {name: state[key] for name, key in keys.items()}
        if path in grads:
            h = Settings(optimizer, k, optimizer.decay_mask is None or optimizer.decay_mask(path, None))
            new_params[path], slots = paper.update(h, p, steepest(p, grads[path]), slots, t)
        else:
            new_params[path], slots = kept(p), {name: kept(slot) for name, slot in slots.items()}
        new_state |= {key: slots[name] for name, key in keys.items()}
    return new_params, new_state


def slot_names(state, place, path):
    rests = (key.removeprefix(place.slots).partition("/") for key in state if key.startswith(place.slots))
    return [name for name, _, rest in rests if rest == path]


def steepest(p, g):
    """The direction of ascent: of a complex parameter `jax.grad` gives the conjugate of it."""
    if p.value.shape[-1] == 1:
        return g
    return g * np.array([1.0, -1.0])


def frozen(optimizer, params, grads, state, place):
    return {path: kept(p) for path, p in params.items()}, {}


def clip(optimizer, params, grads, state, place):
    own = {path: g for path, g in grads.items() if path in trains(optimizer, params)}
    bound = optimizer.clip_value if optimizer.clip_norm is None else optimizer.clip_norm
    clipped = by_value(own, bound) if optimizer.clip_norm is None else by_norm(own, bound)
    return update(optimizer.optimizer, params, clipped, state, place)


def by_value(grads, bound):
    return {path: clamp(g, rounded(bound, 0.0)) for path, g in grads.items()}


def by_norm(grads, bound):
    """g · min(1, c / ‖g‖); gradients of a norm that is not finite stay as they are, and those within the bound."""
    total, c = norm(list(grads.values())), rounded(bound, 0.0)
    scaled = {path: shrunk(g, c, total) for path, g in grads.items()}
    inside = ~np.isfinite(total.value) | (total.value + total.error <= c.value - c.error)
    unclear = ~inside & (total.value <= c.value)
    return {path: where(inside, g, where(unclear, wider(g, scaled[path]), scaled[path])) for path, g in grads.items()}


def shrunk(g, c, total):
    """g · c / ‖g‖; the factor may be smaller than any float32, and so is taken in two. Between them a number may be flushed."""
    norm_ = np.where(total.value > 0, total.value, 1.0)
    flushed = np.where(norm_ > 2.0**63, SMALLEST * c.value, 0.0)
    lost = total.error / norm_ + 4 * ROUNDING
    value = g.value * (c.value / norm_)
    return rounded(value, flushed + np.abs(value) * lost + (g.error * c.value + np.abs(g.value) * c.error) / norm_)


def wider(g, other):
    """`g` with a bound that holds `other`, too."""
    return Bounded(g.value, g.error + np.abs(g.value - other.value) + other.error)


def accumulate(optimizer, params, grads, state, place):
    root, inner_place = place.root, at(place.root + "optimizer/")
    n = state[root + "micro_step"].value + 1
    means = {}
    for path in params:
        if (key := f"{root}mean/{path}") in state:
            before = where(n == 1, 0.0, state[key] * ((n - 1) / n))
            means[path] = before + grads[path] * (1 / n) if path in grads else before
    given = {path: mean for path, mean in means.items() if path in grads}
    new_params, new_inner = update(optimizer.optimizer, params, given, state, inner_place)
    closes, verdict = window(optimizer, state, place)
    applies = closes & (verdict == 0)
    new_params = {path: where(applies, new, kept(params[path])) for path, new in new_params.items()}
    new_state = {key: where(applies, new, kept(state[key])) for key, new in new_inner.items()}
    new_state |= {f"{root}mean/{path}": mean for path, mean in means.items()}
    return new_params, new_state | advanced(root, closes, n, verdict)


def advanced(root, closes, n, verdict):
    """The counters of a window after one micro-step."""
    return {root + "micro_step": exact(np.where(closes, 0, n)), root + "verdict": exact(np.where(closes, 0, verdict))}


def multi(optimizer, params, grads, state, place):
    closes, verdict = window(optimizer, state, place)
    k = state[place.clock].value
    new_params, new_state = {}, {}
    for name, own in optimizer.optimizers.items():
        mine = {path: p for path, p in params.items() if owner(optimizer, path) == name}
        given = {path: grads[path] for path in mine if path in grads}
        theirs, part = update(own, mine, given, state, group(place, name))
        new_params, new_state = new_params | theirs, new_state | part
    new_state[place.clock] = exact(np.where(closes & (verdict == 0), np.minimum(k + 1, MOST), k))
    return new_params, new_state


UPDATES = {Frozen: frozen, Clip: clip, Accumulate: accumulate, MultiOptimizer: multi}


def owner(optimizer, path):
    """The group of the leaf at `path`."""

    def matches(pattern):
        return pattern.search(path) if isinstance(pattern, re.Pattern) else pattern is not ... and pattern(path, None)

    rest = next((name for name, pattern in optimizer.groups if pattern is ...), None)
    return next((name for name, pattern in optimizer.groups if matches(pattern)), rest)


def parts(optimizer, params, place):
    """The optimizers inside a group or a wrapper, with what is theirs."""
    if isinstance(optimizer, MultiOptimizer):
        for name, own in optimizer.optimizers.items():
            yield own, [path for path in params if owner(optimizer, path) == name], group(place, name)
    elif isinstance(optimizer, Accumulate):
        yield optimizer.optimizer, params, at(place.root + "optimizer/")
    elif isinstance(optimizer, Clip):
        yield optimizer.optimizer, params, place


def nodes(optimizer, params, place):
    """Every optimizer, from the outermost in, with the paths of its parameters and the place of its state."""
    yield optimizer, list(params), place
    for part in parts(optimizer, params, place):
        yield from nodes(*part)


def trains(optimizer, params):
    """The paths of the parameters that are not frozen."""
    idle = {path for node, paths, _ in nodes(optimizer, params, at("")) if isinstance(node, Frozen) for path in paths}
    return [path for path in params if path not in idle]


def window(optimizer, state, place):
    """Whether this step is the last of those that are committed together, and why they will be dropped, 0 if they will not.

    None for what has nothing to commit.
    """
    if isinstance(optimizer, Accumulate):
        return state[place.root + "micro_step"].value + 1 >= optimizer.every, state[place.root + "verdict"].value
    if isinstance(optimizer, Frozen):
        return None
    windows = [window(own, state, within) for own, _, within in parts(optimizer, {}, place)]
    windows = [found for found in windows if found is not None]
    if not windows:
        return np.array(True), np.array(0.0)
    closes, verdicts = zip(*windows, strict=True)
    return functools.reduce(np.logical_or, closes), functools.reduce(np.maximum, verdicts)


def skip(optimizer, params, state, place, why):
    """The state after a step that is not applied: what it was, but for the counters of the windows that it spoils."""
    new = {key: kept(old) for key, old in state.items() if key.startswith(place.root)}
    for node, _, within in nodes(optimizer, params, place):
        if isinstance(node, Accumulate):
            (closes, verdict), n = window(node, state, within), state[within.root + "micro_step"].value + 1
            new |= advanced(within.root, closes, n, np.maximum(verdict, why))
    return new


def initial(optimizer, params, state, place):
    """The state before the first update, apart from its clocks: zeros, but for what a rule says of its slots."""
    mine = [key for key in state if key.startswith(place.root) and key.rpartition("/")[2] != "step"]
    new = dict.fromkeys(mine, exact(0.0))
    for node, paths, within in nodes(optimizer, params, place):
        starts = PAPERS[type(node)].slots if type(node) in PAPERS else {}
        new |= {
            f"{within.slots}{slot}/{path}": rounded(getattr(node, name), 0.0) for slot, name in starts.items() for path in paths
        }
    return new
