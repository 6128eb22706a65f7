"""The rules in float64, from the papers: p and the slots of one leaf after one update. `PAPERS` is the table of them.

Where a formula can be written in two ways it is written in another one than in the library: averages as m − (1 − β) (m − g),
decoupled decay as p (1 − η λ), Nesterov's look-ahead with the old buffer.
"""

from typing import NamedTuple

import numpy as np

from mithril_opt import (
    SGD,
    AdaDelta,
    AdaGrad,
    Adam,
    Adamax,
    AdamW,
    Adan,
    AdEMAMix,
    CosineAnnealingLR,
    DecayRate,
    ExponentialLR,
    LinearWarmupScheduler,
    Lion,
    RMSProp,
    Schedule,
    StepLR,
)

from .bounded import ROUNDING, Bounded, abs_sq, exact, maximum, rounded, sign, sqrt, where
from .draws import RATES


class Rate:
    """A decay rate β."""

    def __init__(self, beta):
        self.beta = beta

    def average(self, old, x):
        return old - (1 - self.beta.value + self.unknown) * (old - x)

    @property
    def unknown(self):
        """0, with the bound of β: of a number it is exact, of a schedule float32."""
        return Bounded(np.zeros_like(self.beta.value), self.beta.error)

    def correct(self, x, t):
        """x / (1 − βᵗ); SEMANTICS leaves 3e-7 to the denominator."""
        beta = self.beta.value
        power = np.where(beta == 0, 0.0, np.exp(t * np.log(np.where(beta == 0, 0.5, beta))))
        complement = np.where(beta == 0, 1.0, -np.expm1(t * np.log1p(-np.where(beta == 0, 0.5, 1 - beta))))
        lost = np.where(beta == 0, 0.0, t * power / np.where(beta == 0, 1, beta)) * self.beta.error
        return x / Bounded(complement, 3e-7 * complement + lost)


class Settings:
    """The numbers of a rule in the update that follows `k` others: the fields of the optimizer, under their names."""

    def __init__(self, optimizer, k, decays=True):
        self._optimizer, self._k, self._decays = optimizer, k, decays

    def __getattr__(self, name):
        value = getattr(self._optimizer, name)
        if value is None or isinstance(value, bool):
            return value
        if name == "weight_decay" and not self._decays:
            return None
        if isinstance(value, DecayRate):
            return Rate(exact(value.value))
        if isinstance(value, Schedule):
            value = scheduled(value, self._k)
            return Rate(value) if name in RATES else value
        return rounded(value, 0.0)

    def coupled(self, p, g):
        return g if self.weight_decay is None else g + self.weight_decay * p


def sgd(h, p, g, slots, t):
    """Sutskever, Martens, Dahl & Hinton 2013 as PyTorch has it: the rate outside the buffer, the first gradient undampened."""
    g = h.coupled(p, g)
    if h.momentum is None:
        return p - h.learning_rate * g, {}
    b = h.momentum * slots["trace"]
    none = exact(np.zeros_like(g.value))
    share = g if h.dampening is None else where(slots["started"].value == 0, g, h.dampening.average(none, g))
    step = b + share
    started = {"started": exact(np.ones_like(slots["started"].value))} if "started" in slots else {}
    if h.nesterov:
        return p - h.learning_rate * ((1 + h.momentum) * g + h.momentum * b), {"trace": step}
    return p - h.learning_rate * step, {"trace": step} | started


def adam_moments(h, g, slots, t):
    """m̂ / (√v̂ + ε) of Kingma & Ba 2015, Algorithm 1; v̂ by Reddi, Kale & Kumar 2018 for AMSGrad. And the slots."""
    m, v = h.beta1.average(slots["mu"], g), h.beta2.average(slots["nu"], abs_sq(g))
    largest = maximum(slots["nu_max"], v) if h.amsgrad else v
    direction = h.beta1.correct(m, t) / (sqrt(h.beta2.correct(largest, t)) + h.epsilon)
    return direction, {"mu": m, "nu": v} | ({"nu_max": largest} if h.amsgrad else {})


def adam(h, p, g, slots, t):
    """Kingma & Ba 2015 with L2 regularization: the decay is part of the gradient."""
    direction, slots = adam_moments(h, h.coupled(p, g), slots, t)
    return p - h.learning_rate * direction, slots


def adamw(h, p, g, slots, t):
    """Loshchilov & Hutter 2019, Algorithm 2: the parameter shrinks first, the moments do not see it."""
    direction, slots = adam_moments(h, g, slots, t)
    shrunk = p if h.weight_decay is None else p * (1 - h.learning_rate * h.weight_decay)
    return shrunk - h.learning_rate * direction, slots


def rmsprop(h, p, g, slots, t):
    """Tieleman & Hinton 2012; centered as Graves 2013, equations 38 to 41, but ε outside the root; momentum as in PyTorch."""
    g = h.coupled(p, g)
    new = {"nu": h.decay.average(slots["nu"], abs_sq(g))}
    variance = new["nu"]
    if h.centered:
        new["mu"] = h.decay.average(slots["mu"], g)
        variance = variance - abs_sq(new["mu"])
    step = g / (sqrt(variance) + h.epsilon)
    if h.momentum is not None:
        step = new["trace"] = step + h.momentum * slots["trace"]
    return p - h.learning_rate * step, new


def adagrad(h, p, g, slots, t):
    """Duchi, Hazan & Singer 2011, the diagonal matrix G = diag(δ + Σ g²)^½."""
    g = h.coupled(p, g)
    s = abs_sq(g) + slots["sum_of_squares"]
    return p - g / (sqrt(s) + h.epsilon) * h.learning_rate, {"sum_of_squares": s}


def adamax(h, p, g, slots, t):
    """Kingma & Ba 2015, Algorithm 2, with ε inside the maximum."""
    g = h.coupled(p, g)
    m, u = h.beta1.average(slots["mu"], g), maximum(h.beta2.beta * slots["u"], sqrt(abs_sq(g)) + h.epsilon)
    return p - h.learning_rate * h.beta1.correct(m, t) / u, {"mu": m, "u": u}


def lion(h, p, g, slots, t):
    """Chen et al. 2023, Algorithm 2."""
    c = h.beta1.average(slots["mu"], g)
    shrunk = p if h.weight_decay is None else p * (1 - h.learning_rate * h.weight_decay)
    return shrunk - h.learning_rate * sign(c), {"mu": h.beta2.average(slots["mu"], g)}


def adadelta(h, p, g, slots, t):
    """Zeiler 2012, Algorithm 1; the accumulator of updates holds them without the rate."""
    g = h.coupled(p, g)
    v = h.rho.average(slots["nu"], abs_sq(g))
    delta = g * sqrt(slots["delta_sq"] + h.epsilon) / sqrt(v + h.epsilon)
    return p - h.learning_rate * delta, {"nu": v, "delta_sq": h.rho.average(slots["delta_sq"], abs_sq(delta))}


def ademamix(h, p, g, slots, t):
    """Pagliardini, Ablin & Grangier 2024, equation 6."""
    m, slow, v = h.beta1.average(slots["mu"], g), h.beta3.average(slots["slow"], g), h.beta2.average(slots["nu"], abs_sq(g))
    direction = (h.beta1.correct(m, t) + h.alpha * slow) / (sqrt(h.beta2.correct(v, t)) + h.epsilon)
    shrunk = p if h.weight_decay is None else p * (1 - h.learning_rate * h.weight_decay)
    return shrunk - h.learning_rate * direction, {"mu": m, "slow": slow, "nu": v}


def adan(h, p, g, slots, t):
    """Xie et al. 2022, Algorithm 1, with the rates of the authors' code."""
    delta = where(slots["started"].value == 0, 0.0, g - slots["grad"])
    m, w = h.beta1.average(slots["mu"], g), h.beta2.average(slots["delta"], delta)
    n = h.beta3.average(slots["nu"], abs_sq(g + h.beta2.beta * delta))
    u = h.beta1.correct(m, t) + h.beta2.beta * h.beta2.correct(w, t)
    u = u / (sqrt(h.beta3.correct(n, t)) + h.epsilon)
    new = p - h.learning_rate * u
    if h.weight_decay is not None:
        new = p - (p - new / (1 + h.learning_rate * h.weight_decay))  # what moves p is an update, with the digits of p
    started = exact(np.ones_like(slots["started"].value))
    return new, {"mu": m, "delta": w, "nu": n, "grad": g, "started": started}


class Paper(NamedTuple):
    """A rule.

    Attributes:
        update: `(settings, p, g, slots, t) -> (p, slots)`, t = 1, 2, …
        variants: the switches that it is drawn with; a number that is None here is drawn, one that is absent is switched off.
        slots: what its slots are before the first update, where they are not 0: the name of the setting.
    """

    update: object
    variants: list[dict]
    slots: dict = {}  # noqa: RUF012


PAPERS = {
    SGD: Paper(sgd, [{}, {"momentum": None}, {"momentum": None, "nesterov": True}, {"momentum": None, "dampening": None}]),
    Adam: Paper(adam, [{}, {"amsgrad": True}]),
    AdamW: Paper(adamw, [{}, {"amsgrad": True}]),
    RMSProp: Paper(rmsprop, [{}, {"centered": True}, {"momentum": None}, {"momentum": None, "centered": True}]),
    Lion: Paper(lion, [{}]),
    Adamax: Paper(adamax, [{}]),
    AdaDelta: Paper(adadelta, [{}]),
    AdEMAMix: Paper(ademamix, [{}]),
    Adan: Paper(adan, [{}]),
    AdaGrad: Paper(adagrad, [{}, {"initial_accumulator_value": None}], {"sum_of_squares": "initial_accumulator_value"}),
}


# Schedules have tests of their own; these few are here for their clock.


def warmup(schedule, k):
    w, start, end = schedule.warmup_steps, schedule.start_lr, schedule.end_lr
    later = end if schedule.after_scheduler is None else value_of(schedule.after_scheduler, np.maximum(k - w, 0))
    return np.where(k < w, start + (end - start) * k / np.maximum(w, 1), later)


def cosine(schedule, k):
    return schedule.eta_min + (schedule.base_lr - schedule.eta_min) * np.cos(np.pi * k / schedule.T_max / 2) ** 2


SCHEDULES = {
    StepLR: lambda s, k: s.base_lr * s.gamma.value ** (k // s.step_size),
    ExponentialLR: lambda s, k: s.base_lr * s.gamma.value**k,
    CosineAnnealingLR: cosine,
    LinearWarmupScheduler: warmup,
}


def value_of(schedule, k):
    return SCHEDULES[type(schedule)](schedule, k) if type(schedule) in SCHEDULES else schedule.function(k)


def scheduled(schedule, k):
    """The value after `k` updates; of schedules 1e-6 of the largest rate is allowed."""
    value = np.asarray(value_of(schedule, k), np.float64)
    return Bounded(value, 8 * ROUNDING * np.maximum(np.abs(value), np.max(np.where(np.isfinite(value), np.abs(value), 0))))
