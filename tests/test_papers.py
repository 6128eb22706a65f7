"""The optimizers against their papers, transcribed in float64 NumPy, and against numbers worked out by hand.

A transcription takes the public names of the hyperparameters, so that one table drives both sides. It differs from the library
in form: the moving averages are written out as the sums that they stand for.
"""

import functools
from decimal import Decimal, localcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_muon
import test_papers_factored
import test_papers_modern
import test_prodigy
import test_schedule_free
import test_soap
from transcriptions import STEPS, abs_sq, average, early, is_matrix, problem, widened
from zoo import RULES

from mithril_opt import SGD, AdaGrad, Adam, AdamW, DecayRate, Frozen, MultiOptimizer, RMSProp, StepLR

# The papers: p after each of the steps t = 1, 2, … of one array, given its gradients and for each step its hyperparameters.


def sgd(p, gradients, settings):
    """Sutskever, Martens, Dahl & Hinton 2013 as torch has it: the rate outside the buffer, the first gradient undampened."""
    b = 0.0
    for t, (g, h) in enumerate(zip(gradients, settings, strict=True), start=1):
        g = g + h["weight_decay"] * p
        b = h["momentum"] * b + (g if t == 1 else (1 - h["dampening"]) * g)
        p = p - h["learning_rate"] * (g + h["momentum"] * b if h["nesterov"] else b)
        yield p


def adam_step(g, beta1, beta2, h):
    """m̂ / (√v̂ + ε) of Kingma & Ba 2015, Algorithm 1, the moments as the sums of its section 3; v̂ by Reddi, Kale & Kumar 2018
    for AMSGrad. `g`, `beta1`, `beta2` are lists with all of the past."""
    t = len(g)
    v = [average(abs_sq(np.array(g[:i])), beta2[:i]) for i in (range(1, t + 1) if h["amsgrad"] else [t])]
    m_hat = average(g, beta1) / (1 - beta1[-1] ** t)
    v_hat = np.max(v, axis=0) / (1 - beta2[-1] ** t)
    return m_hat / (np.sqrt(v_hat) + h["epsilon"])


def adam(p, gradients, settings):
    """Kingma & Ba 2015 with L2 regularization: the decay is part of the gradient."""
    past = []
    for t, h in enumerate(settings, start=1):
        past.append(gradients[t - 1] + h["weight_decay"] * p)
        beta1, beta2 = ([h[name] for h in settings[:t]] for name in ("beta1", "beta2"))
        p = p - h["learning_rate"] * adam_step(past, beta1, beta2, h)
        yield p


def adamw(p, gradients, settings):
    """Loshchilov & Hutter 2019, Algorithm 2: the decay is outside the moments, and scaled by the rate."""
    for t, h in enumerate(settings, start=1):
        beta1, beta2 = ([h[name] for h in settings[:t]] for name in ("beta1", "beta2"))
        p = p - h["learning_rate"] * (adam_step(gradients[:t], beta1, beta2, h) + h["weight_decay"] * p)
        yield p


def rmsprop(p, gradients, settings):
    """Tieleman & Hinton 2012; centered as Graves 2013, equations 38 to 41, but ε outside the root; momentum as in torch."""
    past, b = [], 0.0
    for t, h in enumerate(settings, start=1):
        past.append(gradients[t - 1] + h["weight_decay"] * p)
        rates = [h["decay"] for h in settings[:t]]
        variance = average(abs_sq(np.array(past)), rates) - (abs_sq(average(past, rates)) if h["centered"] else 0.0)
        b = h["momentum"] * b + past[-1] / (np.sqrt(variance) + h["epsilon"])
        p = p - h["learning_rate"] * b
        yield p


def adagrad(p, gradients, settings):
    """Duchi, Hazan & Singer 2011, the diagonal matrix G = diag(δ + Σ g²)^½."""
    past = []
    for g, h in zip(gradients, settings, strict=True):
        past.append(g + h["weight_decay"] * p)
        total = h["initial_accumulator_value"] + np.sum(abs_sq(np.array(past)), axis=0)
        p = p - h["learning_rate"] * past[-1] / (np.sqrt(total) + h["epsilon"])
        yield p


PAPERS = {SGD: sgd, Adam: adam, AdamW: adamw, RMSProp: rmsprop, AdaGrad: adagrad}


# The cases. Schedules are float32: their values are exact there, or a float64 trajectory would part at 1e-8.


DEFAULTS = {
    SGD: dict(learning_rate=0.01, momentum=0.0, nesterov=False, dampening=0.0, weight_decay=0.0),
    Adam: dict(learning_rate=0.001, beta1=0.9, beta2=0.999, epsilon=1e-8, weight_decay=0.0, amsgrad=False),
    AdamW: dict(learning_rate=0.001, beta1=0.9, beta2=0.999, epsilon=1e-8, weight_decay=0.01, amsgrad=False),
    RMSProp: dict(learning_rate=0.001, decay=0.9, epsilon=1e-8, momentum=0.0, centered=False, weight_decay=0.0),
    AdaGrad: dict(learning_rate=0.01, epsilon=1e-8, initial_accumulator_value=0.0, weight_decay=0.0),
}

CASES = {
    "sgd-defaults": (SGD, {}),
    "sgd-decay": (SGD, dict(learning_rate=early(0.125, 0.0625), weight_decay=0.1)),
    "sgd-momentum": (SGD, dict(learning_rate=early(0.0625, 0.0078125), momentum=0.9)),
    "sgd-dampening": (SGD, dict(learning_rate=0.05, momentum=0.9, dampening=0.4, weight_decay=0.1)),
    "sgd-nesterov": (SGD, dict(learning_rate=0.02, momentum=0.9, nesterov=True, weight_decay=0.1, decay_mask=is_matrix)),
    "sgd-scheduled": (
        SGD,
        dict(learning_rate=0.02, momentum=early(0.5, 0.75), dampening=early(0.5, 0.25), weight_decay=early(0.125, 0.0625)),
    ),
    "adam-defaults": (Adam, {}),
    "adam": (Adam, dict(learning_rate=0.05)),
    "adam-rates": (Adam, dict(learning_rate=0.05, beta1=0.5, beta2=0.9, epsilon=0.1)),
    "adam-no-memory": (Adam, dict(learning_rate=0.05, beta1=0.0, beta2=0.0, epsilon=0.1)),
    "adam-l2": (Adam, dict(learning_rate=early(0.0625, 0.0078125), weight_decay=0.1, decay_mask=is_matrix)),
    "adam-amsgrad": (Adam, dict(learning_rate=0.05, beta2=0.9, amsgrad=True, weight_decay=0.1)),
    "adam-scheduled": (
        Adam,
        dict(learning_rate=0.05, beta1=early(0.5, 0.75), beta2=early(0.75, 0.9375), epsilon=early(0.125, 0.5)),
    ),
    "adamw-defaults": (AdamW, {}),
    "adamw": (AdamW, dict(learning_rate=0.05)),
    "adamw-rates": (AdamW, dict(learning_rate=early(0.0625, 0.0078125), beta1=0.95, beta2=0.99, epsilon=0.1, weight_decay=0.5)),
    "adamw-off": (AdamW, dict(learning_rate=0.05, weight_decay=0.0)),
    "adamw-amsgrad": (AdamW, dict(learning_rate=0.05, beta2=0.9, amsgrad=True, weight_decay=0.1, decay_mask=is_matrix)),
    "adamw-scheduled": (AdamW, dict(learning_rate=0.05, weight_decay=early(0.125, 0.5))),
    "rmsprop-defaults": (RMSProp, {}),
    "rmsprop-rates": (RMSProp, dict(learning_rate=0.02, decay=0.99, epsilon=0.1, weight_decay=0.1)),
    "rmsprop-momentum": (RMSProp, dict(learning_rate=early(0.0078125, 0.0009765625), momentum=0.9)),
    "rmsprop-centered": (RMSProp, dict(learning_rate=0.01, centered=True, decay_mask=is_matrix, weight_decay=0.5)),
    "rmsprop-scheduled": (
        RMSProp,
        dict(learning_rate=0.01, centered=True, decay=early(0.75, 0.9375), momentum=early(0.5, 0.75), epsilon=0.01),
    ),
    "adagrad-defaults": (AdaGrad, {}),
    "adagrad": (AdaGrad, dict(learning_rate=0.2)),
    "adagrad-rates": (AdaGrad, dict(learning_rate=0.2, epsilon=0.1, initial_accumulator_value=0.5, weight_decay=0.1)),
    "adagrad-scheduled": (AdaGrad, dict(learning_rate=early(0.25, 0.0625), weight_decay=0.5, decay_mask=is_matrix)),
}


def settings(kind, arguments, leaf):
    """The hyperparameters of every step as numbers."""
    fields = DEFAULTS[kind] | arguments
    mask = fields.pop("decay_mask", None)
    if mask is not None and not mask("", leaf):
        fields["weight_decay"] = 0.0
    return [{field: float(x(step)) if callable(x) else x for field, x in fields.items()} for step in range(STEPS)]


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


def assert_follows_the_paper(name, precision, tolerance):
    """Parameters are of the order of 1, and one that is small has been large: errors are relative to 1 there."""
    actual = by_us(name, precision)
    for path, expected in by_the_paper(name).items():
        assert np.finfo(actual[path].dtype).dtype == precision
        np.testing.assert_allclose(actual[path], expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", CASES)
def test_float64_follows_the_paper(name):
    """Measured: 8e-16."""
    with jax.enable_x64(True):
        assert_follows_the_paper(name, np.float64, 1e-14)


@pytest.mark.parametrize("name", CASES)
def test_float32_follows_the_paper(name):
    """Measured: 7e-7 for momentum, which adds up ten roundings, and 4e-7 elsewhere."""
    assert_follows_the_paper(name, np.float32, 1e-6)


# The bias correction and the decay rates near 1, where 1 − β in float32 would have lost its digits.

BETAS = [0.0, 0.5, 0.9, 0.95, 0.99, 0.999, 0.9999, 0.99999, 1 - 1e-6, 1 - 1e-8]
RATES = [DecayRate(beta) for beta in BETAS]
UPDATES = [1, 2, 3, 6, 10, 31, 140, 342, 1000, 1635, 3157, 11565, 10**5, 2**31 - 1]


def exact_one_minus_power(betas):
    with localcontext(prec=60):
        return [[float(1 - Decimal(float(beta)) ** t) for t in UPDATES] for beta in betas]


def corrections(rates, t):
    return [rate.one_minus_power(t) for rate in rates]


ROUTES = {
    "eager": functools.partial(corrections, RATES),
    "closed-over": jax.jit(functools.partial(corrections, RATES)),
    "argument": functools.partial(jax.jit(corrections), RATES),
}


@pytest.mark.parametrize("route", ROUTES)
def test_one_minus_power(route):
    actual = ROUTES[route](jnp.asarray(UPDATES, jnp.float32))
    np.testing.assert_allclose(actual, exact_one_minus_power(BETAS), rtol=3e-7)


def test_one_minus_power_of_a_traced_float32_rate():
    """The rate that counts is the float32 one: nothing brings back what rounding it took."""
    rates = np.float32(BETAS)
    actual = jax.jit(corrections)([DecayRate(rate) for rate in rates], jnp.asarray(UPDATES, jnp.float32))
    np.testing.assert_allclose(actual, exact_one_minus_power(rates), rtol=3e-7)


@pytest.mark.parametrize("jitted", [False, True], ids=["eager", "closed-over"])
@pytest.mark.parametrize("beta", [0.9, 0.999, 0.9999, 0.99999])
@pytest.mark.parametrize(
    "make", [lambda b: Adam(beta1=b, beta2=b), lambda b: RMSProp(decay=b, centered=True)], ids=["adam", "rmsprop"]
)
def test_moments_after_one_update(make, beta, jitted):
    optimizer, params, grads = make(beta), jnp.zeros(5), jnp.asarray([1e-3, 0.3, 1.0, 7.7, 300.0])
    update = jax.jit(optimizer.update) if jitted else optimizer.update
    slots = update(params, grads, optimizer.init(params))[1].slots
    np.testing.assert_allclose(slots.nu, (1 - beta) * np.float64(grads) ** 2, rtol=3e-7)
    np.testing.assert_allclose(slots.mu, (1 - beta) * np.float64(grads), rtol=3e-7)


# Numbers worked out by hand or measured with the peers, and inputs that break some of them.


def repeat(optimizer, gradients, param):
    """One parameter after each of the gradients, and the last state."""

    def body(carry, grad):
        param, state = optimizer.update(carry[0], grad, carry[1])
        return (param, state), param

    (_, state), trajectory = jax.lax.scan(body, (param, optimizer.init(param)), gradients)
    return trajectory, state


def test_amsgrad_corrects_the_largest_second_moment():
    """Torch's steps. Optax takes the largest corrected one: 1, 0.526, 0.369."""
    params, _ = repeat(Adam(1.0, amsgrad=True), jnp.asarray([1.0, 0.1, 0.1]), jnp.float32(0))
    np.testing.assert_allclose(-np.diff(params, prepend=0), [1, 0.741, 0.633], atol=5e-4)


def test_epsilon_is_added_after_the_bias_correction():
    """Keras adds it before: 0.240."""
    params, _ = repeat(Adam(1.0, epsilon=1e-7), jnp.asarray([1e-6]), jnp.float32(0))
    np.testing.assert_allclose(params, [-1 / 1.1], rtol=1e-6)


def test_rate_acts_on_the_whole_momentum_buffer_at_once():
    """Torch's number. Optax, with the rate inside the buffer: −5.521."""
    optimizer = RMSProp(StepLR(0.1, step_size=2), decay=0.99, momentum=0.9)
    params, _ = repeat(optimizer, jnp.ones(4), jnp.float32(0))
    np.testing.assert_allclose(params[-1], -3.045, atol=5e-4)


def test_second_moment_of_bfloat16_parameters_forgets_and_remembers():
    """In bfloat16 it would stop at 0.5, and stay there."""
    gradients = jnp.repeat(jnp.asarray([1, 0], jnp.bfloat16), 3000)
    for count, expected in ((1500, 0.777), (3000, 0.950), (6000, 0.047)):
        _, state = repeat(Adam(1e-3), gradients[:count], jnp.bfloat16(1))
        assert state.slots.nu.dtype == jnp.float32
        np.testing.assert_allclose(state.slots.nu, expected, atol=5e-4)


def test_300_steps_of_adam():
    """With g = 1 every step is η; a bfloat16 parameter, stored with eight bits, follows where η is more than half a unit."""
    params, _ = repeat(Adam(1e-3), jnp.ones(300), jnp.float32(1))
    np.testing.assert_allclose(params[-1], 0.7, atol=1e-4)
    narrow, _ = repeat(Adam(1e-2), jnp.ones(50, jnp.bfloat16), jnp.bfloat16(1))
    assert narrow.dtype == jnp.bfloat16
    assert abs(float(narrow[-1]) - 0.5) < 0.1


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("grad", [1e-3, 6e-8, 0.0])
def test_small_gradients_of_narrow_parameters_stay_finite(grad, dtype):
    """In float16 ε is 0 and g² is 0 for g = 1e-3: −∞ in the first step, NaN for g = 0."""
    grads = jnp.full(3, grad, dtype)
    params, _ = repeat(Adam(0.1), grads, jnp.zeros((), dtype))
    wide, _ = repeat(Adam(0.1), grads.astype(jnp.float32), jnp.float32(0))
    assert np.all(np.isfinite(params))
    np.testing.assert_allclose(params.astype(jnp.float32), wide, rtol=0.01)
    assert np.all((params == 0) == (grad == 0))


def test_hyperparameters_as_arguments_of_jit_leave_bfloat16_parameters_finite():
    """An injected β₂ = 0.999 in the parameters' dtype is 1, and 0 / 0 follows."""
    params, grads = jnp.linspace(-2, 2, 9, dtype=jnp.bfloat16), jnp.linspace(1, -3, 9, dtype=jnp.bfloat16)
    update = jax.jit(lambda optimizer, params, grads: optimizer.update(params, grads, optimizer.init(params))[0])
    narrow, wide = (update(Adam(0.1), params.astype(dtype), grads.astype(dtype)) for dtype in (jnp.bfloat16, jnp.float32))
    np.testing.assert_array_equal(narrow, wide.astype(jnp.bfloat16))
    np.testing.assert_allclose(wide, params.astype(jnp.float32) - 0.1 * np.sign(np.float32(grads)), atol=1e-6)


@pytest.mark.parametrize("rate", [1e-2, np.float32(1e-2), np.float64(1e-2), jnp.float32(1e-2), lambda step: 1e-2])
def test_parameters_keep_their_dtype_whatever_the_rate_is(rate):
    params, _ = repeat(AdamW(rate), jnp.ones(3, jnp.bfloat16), jnp.bfloat16(1))
    assert params.dtype == jnp.bfloat16
    np.testing.assert_array_equal(params, repeat(AdamW(0.01), jnp.ones(3, jnp.bfloat16), jnp.bfloat16(1))[0])


def test_a_rate_set_in_place_of_a_schedule_is_honoured():
    _, state = repeat(SGD(StepLR(1.0, step_size=2), momentum=0.5), jnp.ones(3), jnp.float32(0))
    assert state.step == 3
    param, _ = SGD(0.25, momentum=0.5).update(jnp.float32(0), jnp.float32(0), state)
    assert param == -0.25 * 0.5 * (1 + 0.5 + 0.25)


@pytest.mark.parametrize("passenger", [np.int32(100), np.bool_(True), "name"], ids=["int", "bool", "str"])
@pytest.mark.parametrize("grad", [None, 1.0, np.zeros((), jax.dtypes.float0)], ids=["none", "float", "float0"])
def test_adam_hands_passengers_back(passenger, grad):
    """Optax moves the integer from 100 to 99, and raises for the others."""
    params = {"passenger": passenger, "w": jnp.ones(2)}
    params, state = Adam(1.0).update(params, {"passenger": grad, "w": jnp.ones(2)}, Adam(1.0).init(params))
    assert params["passenger"] is passenger
    np.testing.assert_allclose(params["w"], 0, atol=1e-6)
    assert len(jax.tree.leaves(state.slots)) == 2


def test_leaves_outside_a_group_do_not_move():
    """`optax.masked` hands their gradient through, uphill."""
    optimizer = MultiOptimizer({"adam": Adam(1.0), "rest": Frozen()}, groups={"adam": "w", "rest": ...})
    params = {"w": jnp.ones(()), "frozen": jnp.ones(())}
    params, _ = optimizer.update(params, {"w": jnp.ones(()), "frozen": jnp.ones(())}, optimizer.init(params))
    np.testing.assert_allclose([params["w"], params["frozen"]], [0, 1], atol=1e-6)


def test_every_rule_has_a_transcription_of_its_paper():
    others = (test_papers_modern, test_papers_factored, test_muon, test_prodigy, test_schedule_free, test_soap)
    assert set(RULES) == {*PAPERS, *(rule for module in others for rule in module.PAPERS)}
