"""The newer rules against their papers, transcribed in float64 NumPy as in test_papers.py: averages are sums."""

import dataclasses
import functools
from decimal import Decimal, localcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from transcriptions import STEPS, abs_sq, average, early, is_matrix, problem, widened

from mithril_opt import ADOPT, AdaDelta, Adamax, Adan, AdEMAMix, HalfLifeWarmup, Lion, NAdam, RAdam

# The papers: p after each of the steps t = 1, 2, … of one array, given its gradients and for each step its hyperparameters.


def sign(z):
    """z / |z|, 0 at 0."""
    return z / np.where(z == 0, 1, np.abs(z))


def lion(p, gradients, settings):
    """Chen et al. 2023, Algorithm 2: an average over the past whose last rate is another one."""
    for t, h in enumerate(settings, start=1):
        mixed = average(gradients[:t], [h["beta2"] for h in settings[: t - 1]] + [h["beta1"]])
        p = p - h["learning_rate"] * (sign(mixed) + h["weight_decay"] * p)
        yield p


def corrected(values, rates):
    """The average so far over 1 − βᵗ, with the last β."""
    return average(values, rates) / (1 - rates[-1] ** len(rates))


def rates(settings, t, *names):
    """The decay rates of the updates up to t."""
    return ([h[name] for h in settings[:t]] for name in names)


def coupled(g, p, h):
    return g if h["decoupled_weight_decay"] else g + h["weight_decay"] * p


def decoupled(p, h):
    return h["weight_decay"] * p if h["decoupled_weight_decay"] else 0.0


def nadam(p, gradients, settings):
    """Dozat 2016 with the momentum schedule of its section 4, as torch has it."""
    past = []
    for t, h in enumerate(settings, start=1):
        past.append(coupled(gradients[t - 1], p, h))
        beta1, beta2 = rates(settings, t, "beta1", "beta2")
        mu = [s["beta1"] * (1 - 0.96 ** (i * s["momentum_decay"]) / 2) for i, s in enumerate([*settings[:t], h], start=1)]
        m_bar = mu[t] * average(past, beta1) / (1 - np.prod(mu)) + (1 - mu[t - 1]) * past[-1] / (1 - np.prod(mu[:t]))
        v_hat = corrected(abs_sq(np.array(past)), beta2)
        p = p - h["learning_rate"] * (m_bar / (np.sqrt(v_hat) + h["epsilon"]) + decoupled(p, h))
        yield p


def average_length(beta2, t):
    """ρ and ρ∞ of RAdam."""
    with localcontext(prec=40):
        limit, power = 2 / (1 - Decimal(beta2)) - 1, Decimal(beta2) ** t
        return float(limit - 2 * t * power / (1 - power)), float(limit)


def radam(p, gradients, settings):
    """Liu et al. 2020, Algorithm 2, rectified from ρ > 5 on as all code has it; ρ as it is printed, in 40 digits."""
    past = []
    for t, h in enumerate(settings, start=1):
        past.append(coupled(gradients[t - 1], p, h))
        beta1, beta2 = rates(settings, t, "beta1", "beta2")
        direction, (rho, limit) = corrected(past, beta1), average_length(beta2[-1], t)
        if rho > 5:
            r = np.sqrt((rho - 4) * (rho - 2) * limit / ((limit - 4) * (limit - 2) * rho))
            direction = r * direction / (np.sqrt(corrected(abs_sq(np.array(past)), beta2)) + h["epsilon"])
        p = p - h["learning_rate"] * (direction + decoupled(p, h))
        yield p


def adamax(p, gradients, settings):
    """Kingma & Ba 2015, section 7.1: the norm is the largest of all past gradients, each as far as it is not forgotten."""
    past = []
    for t, h in enumerate(settings, start=1):
        past.append(coupled(gradients[t - 1], p, h))
        beta1, beta2 = rates(settings, t, "beta1", "beta2")
        u = np.max([(np.abs(past[i]) + settings[i]["epsilon"]) * np.prod(beta2[i + 1 :]) for i in range(t)], axis=0)
        p = p - h["learning_rate"] * (corrected(past, beta1) / u + decoupled(p, h))
        yield p


def adadelta(p, gradients, settings):
    """Zeiler 2012, Algorithm 1: RMS[Δx] of the steps before this one, RMS[g] with this gradient."""
    past, deltas = [], []
    for t, h in enumerate(settings, start=1):
        past.append(coupled(gradients[t - 1], p, h))
        (rho,) = rates(settings, t, "rho")
        v = average(abs_sq(np.array(past)), rho)
        a = average(abs_sq(np.array(deltas)), rho[:-1]) if deltas else 0.0
        deltas.append(np.sqrt((a + h["epsilon"]) / (v + h["epsilon"])) * past[-1])
        p = p - h["learning_rate"] * (deltas[-1] + decoupled(p, h))
        yield p


def ademamix(p, gradients, settings):
    """Pagliardini, Ablin & Grangier 2024, Algorithm 1."""
    for t, h in enumerate(settings, start=1):
        beta1, beta2, beta3 = rates(settings, t, "beta1", "beta2", "beta3")
        slow, v_hat = average(gradients[:t], beta3), corrected(abs_sq(np.array(gradients[:t])), beta2)
        direction = (corrected(gradients[:t], beta1) + h["alpha"] * slow) / (np.sqrt(v_hat) + h["epsilon"])
        p = p - h["learning_rate"] * (direction + h["weight_decay"] * p)
        yield p


def adopt(p, gradients, settings):
    """Taniguchi et al. 2024, Algorithm 2, whose v₀ is g₀² and whose first step is the second gradient's."""
    clipped = []
    for t, (g, h) in enumerate(zip(gradients, settings, strict=True)):
        if t > 0:
            beta1, beta2 = [s["beta1"] for s in settings[1 : t + 1]], [0.0] + [s["beta2"] for s in settings[1:t]]
            u = g / np.maximum(np.sqrt(average(abs_sq(np.array(gradients[:t])), beta2)), h["epsilon"])
            clipped.append(sign(u) * np.minimum(np.abs(u), t**0.25))
            p = p - h["learning_rate"] * (average(clipped, beta1) + h["weight_decay"] * p)
        yield p


def adan(p, gradients, settings):
    """Xie et al. 2022, Algorithm 1, whose β are one minus those of the code; bias corrections as in the code."""
    differences = np.diff(gradients, axis=0, prepend=gradients[:1])
    for t, h in enumerate(settings, start=1):
        beta1, beta2, beta3 = rates(settings, t, "beta1", "beta2", "beta3")
        looked = [g + (1 - (1 - b)) * d for g, d, b in zip(gradients, differences, beta2, strict=False)]
        m, v = corrected(gradients[:t], beta1), corrected(differences[:t], beta2)
        eta = h["learning_rate"] / (np.sqrt(corrected(abs_sq(np.array(looked)), beta3)) + h["epsilon"])
        decay, moved = h["learning_rate"] * h["weight_decay"], p - eta * (m + beta2[-1] * v)
        p = moved / (1 + decay) if h["proximal"] else moved - decay * p
        yield p


PAPERS = {
    Lion: lion,
    NAdam: nadam,
    RAdam: radam,
    Adamax: adamax,
    AdaDelta: adadelta,
    AdEMAMix: ademamix,
    ADOPT: adopt,
    Adan: adan,
}

COUPLED = dict(weight_decay=0.0, decoupled_weight_decay=False)
DEFAULTS = {
    Lion: dict(learning_rate=1e-4, beta1=0.9, beta2=0.99, weight_decay=0.0),
    NAdam: dict(learning_rate=2e-3, beta1=0.9, beta2=0.999, epsilon=1e-8, momentum_decay=4e-3, **COUPLED),
    RAdam: dict(learning_rate=1e-3, beta1=0.9, beta2=0.999, epsilon=1e-8, **COUPLED),
    Adamax: dict(learning_rate=2e-3, beta1=0.9, beta2=0.999, epsilon=1e-8, **COUPLED),
    AdaDelta: dict(learning_rate=1.0, rho=0.9, epsilon=1e-6, **COUPLED),
    AdEMAMix: dict(learning_rate=1e-3, beta1=0.9, beta2=0.999, beta3=0.9999, alpha=5.0, epsilon=1e-8, weight_decay=0.0),
    ADOPT: dict(learning_rate=1e-3, beta1=0.9, beta2=0.9999, epsilon=1e-6, weight_decay=0.0),
    Adan: dict(learning_rate=1e-3, beta1=0.98, beta2=0.92, beta3=0.99, epsilon=1e-8, weight_decay=0.0, proximal=True),
}


@pytest.mark.parametrize("kind", DEFAULTS, ids=lambda kind: kind.__name__)
def test_the_defaults_are_the_authors(kind):
    """Or PyTorch's; the decay is off."""
    assert {field.name: field.default for field in dataclasses.fields(kind)} == DEFAULTS[kind] | {"decay_mask": None}


DROP = early(0.0625, 0.0078125)
DECOUPLED = dict(weight_decay=0.5, decay_mask=is_matrix, decoupled_weight_decay=True)
SCHEDULED = dict(beta1=early(0.5, 0.75), beta2=early(0.75, 0.9375), epsilon=early(0.125, 0.5), weight_decay=early(0.125, 0.5))
CASES = {
    "lion-defaults": (Lion, {}),
    "lion": (Lion, dict(learning_rate=DROP, weight_decay=0.5, decay_mask=is_matrix)),
    "lion-rates": (Lion, dict(learning_rate=0.01, beta1=0.5, beta2=0.75, weight_decay=0.1)),
    "lion-signum": (Lion, dict(learning_rate=0.01, beta1=0.9, beta2=0.9)),
    "lion-sign": (Lion, dict(learning_rate=0.01, beta1=0.0, beta2=0.0)),
    "lion-scheduled": (Lion, dict(learning_rate=0.01, beta1=early(0.5, 0.75), beta2=early(0.75, 0.9375))),
    "nadam-defaults": (NAdam, {}),
    "nadam-rates": (NAdam, dict(learning_rate=0.05, beta1=0.5, beta2=0.9, epsilon=0.1, momentum_decay=1.0, weight_decay=0.1)),
    "nadam-decoupled": (NAdam, dict(learning_rate=DROP, momentum_decay=0.0, **DECOUPLED)),
    "nadam-no-memory": (NAdam, dict(learning_rate=0.05, beta1=0.0, beta2=0.0, epsilon=0.1, weight_decay=0.5)),
    "nadam-scheduled": (NAdam, dict(learning_rate=0.05, momentum_decay=early(0.25, 0.5), **SCHEDULED)),
    "radam-defaults": (RAdam, {}),
    "radam-rates": (RAdam, dict(learning_rate=0.05, beta1=0.5, beta2=0.9, epsilon=0.1, weight_decay=0.1)),
    "radam-decoupled": (RAdam, dict(learning_rate=DROP, beta2=0.99999, **DECOUPLED)),
    "radam-late": (RAdam, dict(learning_rate=0.05, beta2=0.67, weight_decay=0.5, decay_mask=is_matrix)),
    "radam-scheduled": (RAdam, dict(learning_rate=0.05, **SCHEDULED) | dict(beta2=early(0.5, 0.9375))),
    "adamax-defaults": (Adamax, {}),
    "adamax-rates": (Adamax, dict(learning_rate=0.05, beta1=0.5, beta2=0.9, epsilon=0.1, weight_decay=0.1)),
    "adamax-decoupled": (Adamax, dict(learning_rate=DROP, beta1=0.0, **DECOUPLED)),
    "adamax-scheduled": (Adamax, dict(learning_rate=0.05, **SCHEDULED)),
    "adadelta-defaults": (AdaDelta, {}),
    "adadelta-rates": (AdaDelta, dict(learning_rate=0.5, rho=0.5, epsilon=0.01, weight_decay=0.1)),
    "adadelta-decoupled": (AdaDelta, dict(learning_rate=DROP, epsilon=0.1, **DECOUPLED)),
    "adadelta-scheduled": (AdaDelta, dict(rho=early(0.5, 0.75), epsilon=early(0.125, 0.0625), weight_decay=early(0.125, 0.5))),
    "ademamix-defaults": (AdEMAMix, {}),
    "ademamix-rates": (AdEMAMix, dict(learning_rate=0.05, beta1=0.5, beta2=0.9, beta3=0.99, alpha=8.0, epsilon=0.1)),
    "ademamix-fast": (AdEMAMix, dict(learning_rate=DROP, beta1=0.0, weight_decay=0.5, decay_mask=is_matrix)),
    "ademamix-scheduled": (AdEMAMix, dict(learning_rate=0.05, beta3=early(0.875, 0.9375), alpha=early(2.0, 4.0), **SCHEDULED)),
    "ademamix-half-life": (AdEMAMix, dict(learning_rate=0.05, beta3=HalfLifeWarmup(0.9, 0.9999, 40), alpha=20.0)),
    "ademamix-half-life-end": (AdEMAMix, dict(learning_rate=0.05, beta3=HalfLifeWarmup(0.0, 0.999, 9), alpha=20.0)),
    "adopt-defaults": (ADOPT, {}),
    "adopt-rates": (ADOPT, dict(learning_rate=0.05, beta1=0.5, beta2=0.9, epsilon=0.5, weight_decay=0.1)),
    "adopt-memory": (ADOPT, dict(learning_rate=DROP, beta1=0.0, beta2=0.0, weight_decay=0.5, decay_mask=is_matrix)),
    "adopt-scheduled": (ADOPT, dict(learning_rate=0.05, **SCHEDULED)),
    "adan-defaults": (Adan, {}),
    "adan-rates": (Adan, dict(learning_rate=0.05, beta1=0.5, beta2=0.75, beta3=0.9, epsilon=0.1, weight_decay=0.5)),
    "adan-masked": (Adan, dict(learning_rate=DROP, weight_decay=0.5, decay_mask=is_matrix)),
    "adan-not-proximal": (Adan, dict(learning_rate=0.05, weight_decay=0.5, proximal=False)),
    "adan-scheduled": (Adan, dict(learning_rate=0.0625, beta3=early(0.75, 0.875), **SCHEDULED)),
}


def half_life_warmup(schedule, step):
    """The authors' β₃(t) = exp(ln β₁ ln β₃ / ((1 − x) ln β₃ + x ln β₁)), for β₁ = 0 its limit; in float64."""
    start, end = (float(np.log(float(rate))) if float(rate) else -np.inf for rate in (schedule.start, schedule.end))
    x = min(1.0, (step + 1) / schedule.steps)
    return np.exp(end / x) if start == -np.inf else np.exp(start * end / ((1 - x) * end + x * start))


def number(value, step):
    if isinstance(value, HalfLifeWarmup):
        return half_life_warmup(value, step)
    return float(value(step)) if callable(value) else value


def settings(kind, arguments, leaf):
    """The hyperparameters of every step as numbers."""
    fields = DEFAULTS[kind] | arguments
    mask = fields.pop("decay_mask", None)
    if mask is not None and not mask("", leaf):
        fields["weight_decay"] = 0.0
    return [{field: number(value, step) for field, value in fields.items()} for step in range(STEPS)]


@functools.cache
def by_the_paper(name):
    """Per leaf the parameters after every step, in float64."""
    kind, arguments = CASES[name]
    params, gradients = problem()

    def trajectory(path):
        # The direction of ascent is the conjugate of what jax.grad returns.
        ascents = [widened(np.conj(grads[path])) for grads in gradients]
        return np.stack(list(PAPERS[kind](widened(params[path]), ascents, settings(kind, arguments, params[path]))))

    return {path: trajectory(path) for path in params}


def by_us(name, precision):
    kind, arguments = CASES[name]
    optimizer = kind(**arguments)
    params, gradients = jax.tree.map(lambda leaf: jnp.asarray(widened(leaf, precision)), problem())
    state, trajectory = optimizer.init(params), []
    for grads in gradients:
        params, state = optimizer.update(params, grads, state)
        trajectory.append(params)
    return {path: np.stack([params[path] for params in trajectory]) for path in params}


def largest_error(name, precision):
    """Parameters are of the order of 1, and one that is small has been large: errors are relative to 1 there."""
    actual = by_us(name, precision)
    for path, expected in by_the_paper(name).items():
        assert np.finfo(actual[path].dtype).dtype == precision
        assert np.abs(expected - problem()[0][path]).max(axis=0).min() > 1e-4  # every element has moved
        yield np.max(np.abs(actual[path] - expected) / np.maximum(1, np.abs(expected)))


@pytest.mark.parametrize("name", CASES)
def test_float64_follows_the_paper(name):
    """Measured: 3e-15. A schedule is float32, and of a half-life its values are not exact there."""
    with jax.enable_x64(True):
        assert max(largest_error(name, np.float64)) < (1e-6 if "half-life" in name else 1e-14)


@pytest.mark.parametrize("name", CASES)
def test_float32_follows_the_paper(name):
    """Measured: 7e-7 for a decay rate that jumps, 5e-7 elsewhere."""
    assert max(largest_error(name, np.float32)) < 1e-6
