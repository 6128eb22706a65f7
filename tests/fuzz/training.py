"""What a step of the mixed-precision trainer must do, and how the loss scale must move, in float64.

Dictionaries and arrays are those of `oracle`.
"""

import functools
from typing import NamedTuple

import numpy as np

from . import oracle
from .bounded import ROUNDING, Bounded, exact, kept, norm, where
from .oracle import at, by_norm, nodes, skip, trains, update, window
from .papers import PAPERS, Settings

BAD_INPUT, OVERFLOW = 1, 2


def rates_are_finite(optimizer, params, state, place):
    finite = np.array(True)
    for node, _, within in nodes(optimizer, params, place):
        if type(node) in PAPERS:
            finite = finite & np.isfinite(Settings(node, state[within.clock].value).learning_rate.value)
    return finite


class Trained(NamedTuple):
    """What a step of the trainer must give.

    Attributes:
        params: by path.
        state: by path.
        success: boolean.
        decided: boolean, whether float32 leaves no doubt about the verdict.
    """

    params: dict
    state: dict
    success: np.ndarray
    decided: np.ndarray


def train(trainer, params, narrow, grads, state, input_finite):
    """A step of a trainer: unscale → check → clip → update → commit, whole or not at all; then the scale moves.

    Args:
        trainer: with its numbers.
        params: by path.
        narrow: the paths of the float16 parameters.
        grads: scaled, by path.
        state: by path.
        input_finite: boolean, whether the loss was finite.
    """
    optimizer, place = trainer.optimizer, at("optimizer/")
    own = {path: unscaled(trainer, g, state) for path, g in grads.items() if path in trains(optimizer, params)}
    bad = {path: everywhere(~np.isfinite(g.value), np.any) for path, g in own.items()}
    input_finite = input_finite & rates_are_finite(optimizer, params, state, place)
    why = np.where(input_finite, np.where(conjunction(~leaf for leaf in bad.values()), 0, OVERFLOW), BAD_INPUT)
    clipped = own if trainer.clip_norm is None else by_norm(own, trainer.clip_norm)
    new_params, new_state = update(optimizer, params, clipped, state, place)
    fits, sure = fit(new_params, narrow)
    decided = conjunction(everywhere(np.isfinite(g.error), np.all) for g in own.values()) & (sure | (why > 0))
    why = np.where((why == 0) & ~fits, BAD_INPUT, why)
    skipped = skip(optimizer, params, state, place, why)
    new_params = {path: where(why == 0, new, kept(params[path])) for path, new in new_params.items()}
    new_state = {key: where(why == 0, new, skipped[key]) for key, new in new_state.items()}
    success, new_scale = scale_after(trainer, state, why, first_bad(bad, list(params)))
    new_scale["loss_scale/grad_norm"] = where(input_finite, norm(list(own.values())), kept(state["loss_scale/grad_norm"]))
    return Trained(new_params, new_state | new_scale, success, decided)


def scales(trainer):
    """Whether there is a loss scale at all: only float16 has fewer exponents than float32."""
    return trainer.policy.compute_dtype == np.float16


def unscaled(trainer, g, state):
    return g / state["loss_scale/scale"] if scales(trainer) else g


def scale_after(trainer, state, why, bad_leaf):
    """Whether the step was a success, which none is in a window that is spoiled already; and the state of the loss scale."""
    closes, before = window(trainer.optimizer, state, at("optimizer/")) or (np.array(True), np.array(0.0))
    verdict = np.maximum(before, why)
    new = moved(trainer, state, closes, verdict) | counted(state, verdict, why)
    new["last_bad_leaf"] = exact(np.where(why == 0, state["loss_scale/last_bad_leaf"].value, bad_leaf))
    return verdict == 0, {f"loss_scale/{name}": x for name, x in new.items()}


def initial(trainer, params, state):
    """The state before the first step, apart from the clocks of the optimizer."""
    scale, hysteresis = (trainer.loss_scale, trainer.hysteresis) if scales(trainer) else (1.0, 1)
    numbers = {"scale": scale, "hysteresis": hysteresis, "last_bad_leaf": -1}
    numbers |= dict.fromkeys(("good_steps", "consecutive_skips", "skipped", "bad_input", "attempts", "grad_norm"), 0)
    own = {f"loss_scale/{name}": exact(np.float32(x)) for name, x in numbers.items()}
    return own | oracle.initial(trainer.optimizer, params, state, at("optimizer/"))


def everywhere(x, reduce):
    return reduce(x, axis=(2, 3), keepdims=True)


def conjunction(conditions):
    return functools.reduce(np.logical_and, conditions, np.array(True))


def first_bad(bad, paths):
    """The position among `paths` of the first gradient that is not finite, −1 if all are."""
    first = np.array(-1)
    for path, leaf in reversed(bad.items()):
        first = np.where(leaf, paths.index(path), first)
    return first


def fit(params, narrow):
    """Whether every new float16 parameter is finite, and whether that is sure."""
    fits, sure = np.array(True), np.array(True)
    for path in narrow:
        p = params[path]
        ends = [(p.value + sign * np.maximum(p.error, 0)).astype(np.float16) for sign in (-1, 1)]
        low, high = (everywhere(np.isfinite(end), np.all) for end in ends)
        fits = fits & low & high
        sure = sure & (low == high) & everywhere(np.isfinite(p.error), np.all)
    return fits, sure


def moved(trainer, state, closes, verdict):
    """Scale, growth counter and hysteresis after a step; inside a window they stand still."""
    names = ("scale", "good_steps", "hysteresis", "consecutive_skips")
    scale, good, budget, skips = (state[f"loss_scale/{name}"] for name in names)
    applied, overflow = verdict == 0, verdict == OVERFLOW
    budget_now = np.where(overflow, np.maximum(budget.value - 1, 0), budget.value)
    good_now = np.where(applied, good.value + 1, good.value)
    interval, hysteresis = (trainer.growth_interval, trainer.hysteresis) if scales(trainer) else (2000, 1)
    grows, backs = applied & (good_now >= interval), overflow & (budget_now == 0)
    new = [
        kept(scale),
        exact(np.where(grows | overflow, 0, good_now)),
        exact(np.where(grows, hysteresis, budget_now)),
        exact(np.where(applied, 0, skips.value + 1)),
    ]
    if scales(trainer) and trainer.dynamic_loss_scaling:
        up = least(scale * trainer.growth_factor, trainer.max_loss_scale)
        down = most(scale * trainer.backoff_factor, trainer.min_loss_scale)
        new[0] = where(grows, up, where(backs, down, kept(scale)))
    return {name: where(closes, x, kept(state[f"loss_scale/{name}"])) for name, x in zip(names, new, strict=True)}


def least(x, bound):
    return Bounded(np.minimum(x.value, bound), x.error + ROUNDING * bound)


def most(x, bound):
    return Bounded(np.maximum(x.value, bound), x.error + ROUNDING * bound)


def counted(state, verdict, why):
    """The counters of all steps: skipped for whatever reason, skipped through no fault of the scale, taken."""
    more = {"skipped": verdict != 0, "bad_input": why == BAD_INPUT, "attempts": True}
    return {name: exact(state[f"loss_scale/{name}"].value + more[name]) for name in more}
