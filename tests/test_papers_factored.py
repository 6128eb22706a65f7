"""The rules that reduce over a leaf against their papers, transcribed in float64 NumPy.

A transcription is of one layer: what a stack of layers should do is what each of them does alone. It differs from the library
in form: moving averages are the sums that they stand for, and norms come from NumPy.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from trajectories import trajectory_of
from transcriptions import STEPS, abs_sq, average, early, is_matrix, widened

from mithril_opt import LAMB, LARS, Adafactor, AdamW

# The papers: p after each of the steps t = 1, 2, … of one layer, given its gradients and for each step its hyperparameters.


def corrected(values, rates):
    """The same with weights that sum to 1, for constant rates."""
    return average(values, rates) / (1 - rates[-1] ** len(rates))


def norm(x):
    return np.linalg.norm(np.ravel(x))


def past(settings, name, t):
    return [h[name] for h in settings[:t]]


def lamb(p, gradients, settings):
    """You et al. 2020, Algorithm 2, with φ the identity."""
    for t, h in enumerate(settings, start=1):
        m = corrected(gradients[:t], past(settings, "beta1", t))
        v = corrected(abs_sq(gradients[:t]), past(settings, "beta2", t))
        u = m / (np.sqrt(v) + h["epsilon"]) + h["weight_decay"] * p
        ratio = norm(p) / norm(u) if norm(p) * norm(u) > 0 else 1.0
        p = p - h["learning_rate"] * min(ratio, h["trust_max"] or np.inf) * u
        yield p


def lars(p, gradients, settings, norm_of_sum=False):
    """You, Gitman & Ginsburg 2017, Algorithm 1, the rate outside the buffer, which is Σ μ^(t−i) of the local steps;
    `norm_of_sum` is optax's form."""
    local, momenta = [], []
    for g, h in zip(gradients, settings, strict=True):
        decayed = g + h["weight_decay"] * p
        total = norm(decayed) if norm_of_sum else norm(g) + h["weight_decay"] * norm(p)
        trust = h["trust_coefficient"] * norm(p) / (total + h["epsilon"]) if norm(p) * norm(g) > 0 else 1.0
        local.append((trust if h["trusted"] else 1.0) * decayed)
        momenta.append(h["momentum"])
        weights = np.append(np.cumprod(momenta[:0:-1])[::-1], 1.0)
        b = np.tensordot(weights, np.array(local), axes=1)
        p = p - h["learning_rate"] * (local[-1] + h["momentum"] * b if h["nesterov"] else b)
        yield p


def adafactor(p, gradients, settings):
    """Shazeer & Stern 2018, Algorithms 4 and 5 with η for their constant, V as the outer product that it stands for."""
    scaled = []
    for t, h in enumerate(settings, start=1):
        rates = [1 - i ** -h["decay"] for i, h in enumerate(settings[:t], start=1)]
        v = average(abs_sq(gradients[:t]) + h["epsilon1"], rates)
        if h["axes"] is not None:
            slices = np.moveaxis(v, h["axes"], (-2, -1))
            outer = [np.outer(m.mean(1), m.mean(0)) / m.mean() for m in slices.reshape(-1, *slices.shape[-2:])]
            v = np.moveaxis(np.reshape(outer, slices.shape), (-2, -1), h["axes"])
        u = gradients[t - 1] / np.sqrt(v)
        u = u / max(1.0, rms(u) / (h["update_clip"] or np.inf))
        scaled.append(u * max(h["epsilon2"], rms(p)) if h["scale_parameter"] else u)
        rho = min(h["learning_rate"], 1 / np.sqrt(t)) if h["relative_step"] else h["learning_rate"]
        m = average(np.array(scaled), past(settings, "beta1", t)) if h["beta1"] else scaled[-1]
        p = p - rho * m - h["learning_rate"] * h["weight_decay"] * p
        yield p


def adamw(p, gradients, settings):
    """Loshchilov & Hutter 2019 with the variants of Dozat 2016, Liang et al. 2024, Chen et al. 2025, Wortsman et al. 2023 and
    Defazio 2025."""
    for t, h in enumerate(settings, start=1):
        g, beta1 = gradients[t - 1], h["beta1"]
        m, v = average(gradients[:t], past(settings, "beta1", t)), corrected(abs_sq(gradients[:t]), past(settings, "beta2", t))
        m_hat = m / (1 - beta1**t)
        if h["nesterov"]:
            m_hat = beta1 * m / (1 - beta1 ** (t + 1)) + (1 - beta1) * g / (1 - beta1**t)
        u = m_hat / (np.sqrt(v) + h["epsilon"])
        if h["cautious"]:
            mask = u.real * g.real + u.imag * g.imag > 0
            u = u * mask / max(mask.mean(), 1e-3)
        rho = np.sqrt(np.mean(abs_sq(g) / np.maximum(v, h["epsilon"] ** 2)))
        rate, factor = h["learning_rate"], 1 / max(1.0, rho / (h["update_clip"] or np.inf))
        power = 2 if h["decay"] == "corrected" else 1
        top = 1.0 if h["decay"] == "rate" else h["max_learning_rate"]
        decaying = p * (u.real * p.real + u.imag * p.imag >= 0) if h["cautious_decay"] else p
        p = p - factor * (rate * u + rate**power / top * h["weight_decay"] * decaying)
        yield p


def rms(x):
    return np.sqrt(np.mean(abs_sq(x)))


PAPERS = {LAMB: lamb, LARS: lars, Adafactor: adafactor, AdamW: adamw}


# The cases. Schedules are float32: their values are exact there, or a float64 trajectory would part at 1e-8.


def stacked(path, leaf):
    return {"stack": 0, "experts": (0, 1)}.get(path)


DEFAULTS = {
    LAMB: dict(learning_rate=0.001, beta1=0.9, beta2=0.999, epsilon=1e-6, weight_decay=0.0, trust_max=None),
    LARS: dict(
        learning_rate=1.0,
        momentum=0.9,
        nesterov=False,
        trust_coefficient=0.001,
        epsilon=0.0,
        weight_decay=0.0,
        trusted=True,
    ),
}

DEFAULTS[Adafactor] = dict(
    learning_rate=0.01,
    beta1=None,
    decay=0.8,
    epsilon1=1e-30,
    epsilon2=1e-3,
    update_clip=1.0,
    scale_parameter=True,
    relative_step=True,
    weight_decay=0.0,
    min_dim_size_to_factor=128,
)
DEFAULTS[AdamW] = dict(
    learning_rate=0.001,
    beta1=0.9,
    beta2=0.999,
    epsilon=1e-8,
    weight_decay=0.01,
    nesterov=False,
    cautious=False,
    cautious_decay=False,
    update_clip=None,
    decay="rate",
    max_learning_rate=None,
)
# The axes that Adafactor should factor, of whole leaves and of layers, where two axes of any length will do.
WHOLE = {"matrix": (0, 1), "complex": None, "stack": (0, 2), "experts": (1, 2), "zero": (0, 1)}
LAYERS = {"matrix": (0, 1), "complex": None, "stack": (0, 1), "experts": None, "zero": (0, 1)}


def first_and_last(path, leaf):
    return (0, -1) if path in ("matrix", "experts") else ()


CASES = {
    "lamb-defaults": (LAMB, {}),
    "lamb": (LAMB, dict(learning_rate=early(0.0625, 0.0078125), weight_decay=0.1, decay_mask=is_matrix)),
    "lamb-rates": (LAMB, dict(learning_rate=0.05, beta1=0.5, beta2=0.9, epsilon=0.1, unit_axes=stacked)),
    "lamb-bounded-without-decay": (LAMB, dict(learning_rate=0.05, trust_max=0.75)),
    "lamb-bounded": (LAMB, dict(learning_rate=0.05, weight_decay=0.5, trust_max=1.25, unit_axes=stacked)),
    "lars-defaults": (LARS, {}),
    "lars": (LARS, dict(learning_rate=early(0.5, 1.0), trust_coefficient=0.01, weight_decay=0.1, unit_axes=stacked)),
    "lars-nesterov": (LARS, dict(learning_rate=2.0, nesterov=True, epsilon=0.5, weight_decay=0.1, decay_mask=is_matrix)),
    "lars-plain": (LARS, dict(learning_rate=20.0, momentum=0.0, weight_decay=0.1, unit_axes=stacked)),
    "lars-untrusted": (LARS, dict(learning_rate=0.02, trust_coefficient=0.5, trust_mask=is_matrix, unit_axes=stacked)),
    "adafactor-defaults": (Adafactor, {}),
    "adafactor-relative": (Adafactor, dict(learning_rate=0.5, weight_decay=0.125, decay_mask=is_matrix, update_clip=0.5)),
    "adafactor-factored": (Adafactor, dict(learning_rate=early(0.0625, 0.0078125), min_dim_size_to_factor=1, axes=WHOLE)),
    "adafactor-plain": (
        Adafactor,
        dict(relative_step=False, scale_parameter=False, update_clip=None, min_dim_size_to_factor=2, decay=0.5, axes=WHOLE),
    ),
    "adafactor-momentum": (
        Adafactor,
        dict(learning_rate=early(0.25, 0.0625), beta1=0.9, epsilon2=0.5, min_dim_size_to_factor=2, axes=WHOLE),
    ),
    "adafactor-stacked": (
        Adafactor,
        dict(learning_rate=0.05, weight_decay=0.5, min_dim_size_to_factor=2, unit_axes=stacked, epsilon1=0.1, axes=LAYERS),
    ),
    "adafactor-axes": (
        Adafactor,
        dict(
            learning_rate=0.05,
            min_dim_size_to_factor=2,
            matrix_axes=first_and_last,
            axes={"matrix": (0, 1), "complex": None, "stack": None, "experts": (0, 2), "zero": None},
        ),
    ),
    "adamw-defaults": (AdamW, {}),
    "adamw-nesterov": (AdamW, dict(learning_rate=early(0.0625, 0.0078125), nesterov=True, beta1=0.5)),
    "adamw-cautious": (AdamW, dict(learning_rate=0.05, cautious=True, weight_decay=0.5, decay_mask=is_matrix)),
    "adamw-cautious-stacked": (AdamW, dict(learning_rate=0.05, cautious=True, nesterov=True, unit_axes=stacked)),
    "adamw-cautious-decay": (AdamW, dict(learning_rate=0.05, cautious_decay=True, weight_decay=2.0, decay_mask=is_matrix)),
    "adamw-bounded": (AdamW, dict(learning_rate=0.05, beta2=0.9, update_clip=0.75, weight_decay=0.5)),
    "adamw-bounded-stacked": (AdamW, dict(learning_rate=0.05, beta2=0.9, epsilon=0.5, update_clip=0.5, unit_axes=stacked)),
    "adamw-full": (
        AdamW,
        dict(learning_rate=early(0.0625, 0.0078125), decay="full", max_learning_rate=0.0625, weight_decay=0.03125),
    ),
    "adamw-corrected": (
        AdamW,
        dict(learning_rate=early(0.0625, 0.03125), decay="corrected", max_learning_rate=0.125, weight_decay=1.5),
    ),
    "adamw-everything": (
        AdamW,
        dict(
            learning_rate=early(0.0625, 0.03125),
            nesterov=True,
            cautious=True,
            cautious_decay=True,
            update_clip=early(1.0, 0.75),
            decay="corrected",
            max_learning_rate=0.125,
            weight_decay=0.5,
            decay_mask=is_matrix,
            unit_axes=stacked,
        ),
    ),
}

SHAPES = {"matrix": (4, 3), "complex": (5,), "stack": (3, 2, 4), "experts": (2, 2, 3), "zero": (3, 2)}


@functools.cache
def problem():
    """Parameters and a list of gradients, as jax.grad would return them; exact in float32. One leaf starts at 0, and the first
    gradient of one layer of the stack is 0."""
    rng = np.random.default_rng(5)

    def tree():
        parts = {name: rng.normal(size=(2, *shape)).astype(np.float32) for name, shape in SHAPES.items()}
        return {name: part[0] + 1j * part[1] if name == "complex" else part[0] for name, part in parts.items()}

    params, gradients = tree(), [tree() for _ in range(STEPS)]
    params["zero"][:] = 0
    gradients[0]["stack"][1] = 0
    return params, gradients


def settings(kind, arguments, path, leaf):
    """The hyperparameters of every step as numbers."""
    fields = DEFAULTS[kind] | arguments
    fields = {name: value for name, value in fields.items() if name not in ("unit_axes", "matrix_axes")}
    fields["axes"] = arguments.get("axes", {}).get(path)
    for mask, field, off in (("decay_mask", "weight_decay", 0.0), ("trust_mask", "trusted", False)):
        mask = fields.pop(mask, None)
        if mask is not None and not mask(path, leaf):
            fields[field] = off
    return [{field: float(x(step)) if callable(x) else x for field, x in fields.items()} for step in range(STEPS)]


def layers(path, leaf, arguments):
    """The index of each layer in `leaf`."""
    axes = arguments["unit_axes"](path, leaf) if "unit_axes" in arguments else None
    axes = () if axes is None else axes if isinstance(axes, tuple) else (axes,)
    return np.ndindex(leaf.shape[: len(axes)])


@functools.cache
def by_the_paper(name):
    """Per leaf the parameters after every step, in float64: each layer trained alone."""
    kind, arguments = CASES[name]
    params, gradients = problem()
    result = {}
    for path, leaf in params.items():
        result[path] = np.empty((STEPS, *leaf.shape), widened(leaf).dtype)
        for i in layers(path, leaf, arguments):
            # The direction of ascent is the conjugate of what jax.grad returns.
            ascents = np.array([widened(np.conj(grads[path][i])) for grads in gradients])
            trajectory = PAPERS[kind](widened(leaf[i]), ascents, settings(kind, arguments, path, leaf))
            result[path][(slice(None), *i)] = np.stack(list(trajectory))
    return result


def assert_follows_the_paper(name, precision, tolerance):
    """Parameters are of the order of 1, and one that is small has been large: errors are relative to 1 there."""
    kind, arguments = CASES[name]
    optimizer = kind(**{field: value for field, value in arguments.items() if field != "axes"})
    actual = trajectory_of(optimizer, *jax.tree.map(lambda leaf: jnp.asarray(widened(leaf, precision)), problem()))
    for path, expected in by_the_paper(name).items():
        assert np.finfo(actual[path].dtype).dtype == precision
        np.testing.assert_allclose(actual[path], expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", CASES)
def test_float64_follows_the_paper(name):
    """Measured: 6e-16."""
    with jax.enable_x64(True):
        assert_follows_the_paper(name, np.float64, 1e-14)


@pytest.mark.parametrize("name", CASES)
def test_float32_follows_the_paper(name):
    """Measured: 4e-7."""
    assert_follows_the_paper(name, np.float32, 1e-6)


# What optax does otherwise.


def test_lars_of_optax_divides_by_the_norm_of_the_sum():
    """Its rate is inside the buffer as well, which a constant rate does not show."""
    arguments = dict(learning_rate=0.5, trust_coefficient=0.01, epsilon=0.1, weight_decay=0.5)
    params, gradients = problem()
    p, grads = widened(params["matrix"]), [widened(grads["matrix"]) for grads in gradients]
    steps = [DEFAULTS[LARS] | arguments] * STEPS
    expected = np.stack(list(lars(p, np.array(grads), steps, norm_of_sum=True)))
    with jax.enable_x64(True):
        theirs = optax.lars(0.5, weight_decay=0.5, trust_coefficient=0.01, eps=0.1)
        actual = by_optax(theirs, jnp.asarray(p), grads)
        ours = trajectory_of(LARS(**arguments), jnp.asarray(p), grads)
    np.testing.assert_allclose(actual, expected, rtol=1e-13, atol=1e-13)
    assert np.max(np.abs(ours - expected)) > 1e-3


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (dict(), dict()),
        (dict(beta1=0.9, decay=0.5), dict(momentum=0.9, decay_rate=0.5)),
        (dict(scale_parameter=False, weight_decay=0.5), dict(multiply_by_parameter_scale=False, weight_decay_rate=0.025)),
        (dict(update_clip=None, epsilon1=0.1), dict(clipping_threshold=None, eps=0.1)),
    ],
    ids=["defaults", "momentum", "decay", "unbounded"],
)
def test_adafactor_agrees_with_optax(ours, theirs):
    """Where the rate is not relative. Their decay rate is float32, and their decay is not scaled by the learning rate."""
    shapes = {"b": (5,), "w": (6, 4), "k": (4, 3, 2, 2)}
    rng = np.random.default_rng(2)
    params, *gradients = ({name: rng.normal(size=shape) for name, shape in shapes.items()} for _ in range(STEPS + 1))
    optimizer = Adafactor(0.05, relative_step=False, min_dim_size_to_factor=3, **ours)
    with jax.enable_x64(True):
        params = jax.tree.map(jnp.asarray, params)
        expected = by_optax(optax.adafactor(0.05, min_dim_size_to_factor=3, **theirs), params, gradients)
        actual = trajectory_of(optimizer, params, gradients)
    for name in shapes:
        np.testing.assert_allclose(actual[name], expected[name], rtol=1e-6, atol=1e-6)


def by_optax(transformation, params, gradients):
    """The parameters after every step."""
    state, trajectory = transformation.init(params), []
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for grads in gradients:
            updates, state = transformation.update(grads, state, params)
            params = optax.apply_updates(params, updates)
            trajectory.append(params)
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trajectory)
