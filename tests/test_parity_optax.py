"""The optimizers against optax, live, where optax has the same rule.

Its rule is another one for AMSGrad (the largest bias-corrected second moment), for AdaGrad with an epsilon (inside the square
root) and for RMSProp's momentum under a changing rate (the rate inside the buffer; below it is chained by hand). It has no
dampening. Its LARS agrees without weight decay and at a constant rate; see test_papers_factored.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

from mithril_opt import (
    ADOPT,
    LAMB,
    LARS,
    SGD,
    AdaDelta,
    AdaGrad,
    Adam,
    Adamax,
    AdamW,
    AdEMAMix,
    CosineAnnealingLR,
    HalfLifeWarmup,
    Lion,
    RAdam,
    RMSProp,
    StepLR,
)

STEPS = 60
# Rates that float32 holds exactly, so that a schedule, which is float32, gives float64 leaves the very same rate.
RATE = 0.0625
DROP = optax.piecewise_constant_schedule(RATE, {30: 0.125})
COSINE = CosineAnnealingLR(0.5, T_max=40, eta_min=0.125)


def is_matrix(leaf):
    return jnp.ndim(leaf) > 1


def l2(weight_decay, transformation):
    return optax.chain(optax.add_decayed_weights(weight_decay), transformation)


def drop(learning_rate):
    return StepLR(learning_rate, step_size=30, gamma=0.125)


def half_life(step):
    """The authors' form of a warm-up of β₃ from 0.9 to 0.9999 in 40 updates."""
    start, end, x = jnp.log(0.9), jnp.log(0.9999), jnp.minimum(1.0, (step + 1) / 40)
    return jnp.exp(start * end / ((1 - x) * end + x * start))


def torchs_rmsprop(learning_rate, momentum):
    """Optax's parts with the rate behind the momentum buffer."""
    rms = optax.scale_by_rms(decay=0.9, eps=1e-8, eps_in_sqrt=False)
    return optax.chain(rms, optax.trace(momentum), optax.scale_by_learning_rate(learning_rate))


def rmsprop(learning_rate, **arguments):
    return optax.rmsprop(learning_rate, eps_in_sqrt=False, **arguments)


CASES = {
    "sgd": (lambda: SGD(0.1), lambda: optax.sgd(0.1)),
    "sgd-drop": (lambda: SGD(drop(RATE)), lambda: optax.sgd(DROP)),
    "sgd-decay": (lambda: SGD(0.1, weight_decay=0.05), lambda: l2(0.05, optax.sgd(0.1))),
    "sgd-momentum": (lambda: SGD(0.02, momentum=0.9), lambda: optax.sgd(0.02, momentum=0.9)),
    "sgd-momentum-drop": (
        lambda: SGD(drop(RATE), momentum=0.9, weight_decay=0.05),
        lambda: l2(0.05, optax.sgd(DROP, momentum=0.9)),
    ),
    "sgd-nesterov": (
        lambda: SGD(0.02, momentum=0.9, nesterov=True, weight_decay=0.05),
        lambda: l2(0.05, optax.sgd(0.02, momentum=0.9, nesterov=True)),
    ),
    "adam": (lambda: Adam(0.05), lambda: optax.adam(0.05)),
    "adam-short-memory": (
        lambda: Adam(0.05, beta1=0.5, beta2=0.9, epsilon=0.1),
        lambda: optax.adam(0.05, b1=0.5, b2=0.9, eps=0.1),
    ),
    "adam-decay": (lambda: Adam(drop(RATE), weight_decay=0.1), lambda: l2(0.1, optax.adam(DROP))),
    "adamw": (lambda: AdamW(0.05, weight_decay=0.1), lambda: optax.adamw(0.05, weight_decay=0.1)),
    "adamw-long-memory": (
        lambda: AdamW(0.05, beta1=0.95, beta2=0.9999, weight_decay=0.1),
        lambda: optax.adamw(0.05, b1=0.95, b2=0.9999, weight_decay=0.1),
    ),
    "adamw-masked": (
        lambda: AdamW(drop(RATE), weight_decay=0.5, decay_mask=lambda path, leaf: is_matrix(leaf)),
        lambda: optax.adamw(DROP, weight_decay=0.5, mask=lambda params: jax.tree.map(is_matrix, params)),
    ),
    "adamw-scheduled-decay": (
        lambda: AdamW(0.05, weight_decay=COSINE),
        lambda: optax.adamw(0.05, weight_decay=COSINE),
    ),
    "adamw-nesterov": (
        lambda: AdamW(drop(RATE), weight_decay=0.1, nesterov=True),
        lambda: optax.nadamw(DROP, weight_decay=0.1),
    ),
    "rmsprop": (lambda: RMSProp(0.02), lambda: rmsprop(0.02, decay=0.9)),
    "rmsprop-large-epsilon": (
        lambda: RMSProp(0.02, decay=0.99, epsilon=0.1, weight_decay=0.1),
        lambda: l2(0.1, rmsprop(0.02, decay=0.99, eps=0.1)),
    ),
    "rmsprop-momentum": (lambda: RMSProp(0.01, momentum=0.8), lambda: rmsprop(0.01, momentum=0.8)),
    "rmsprop-momentum-drop": (lambda: RMSProp(drop(RATE), momentum=0.5), lambda: torchs_rmsprop(DROP, 0.5)),
    "rmsprop-centered": (
        lambda: RMSProp(0.01, centered=True, momentum=0.8, weight_decay=0.1),
        lambda: l2(0.1, rmsprop(0.01, centered=True, momentum=0.8)),
    ),
    "adagrad": (
        lambda: AdaGrad(0.2, epsilon=0.0, initial_accumulator_value=0.1, weight_decay=0.1),
        lambda: l2(0.1, optax.adagrad(0.2, initial_accumulator_value=0.1, eps=0.0)),
    ),
    "adagrad-from-zero": (
        lambda: AdaGrad(drop(4 * RATE), epsilon=0.0),
        lambda: optax.adagrad(lambda step: 4 * DROP(step), initial_accumulator_value=0.0, eps=0.0),
    ),
    "lion": (
        lambda: Lion(drop(RATE), beta1=0.95, beta2=0.98, weight_decay=0.5),
        lambda: optax.lion(DROP, b1=0.95, b2=0.98, weight_decay=0.5),
    ),
    "radam": (lambda: RAdam(0.05, beta1=0.8, beta2=0.99), lambda: optax.radam(0.05, b1=0.8, b2=0.99)),
    "radam-decay": (lambda: RAdam(drop(RATE), epsilon=0.1, weight_decay=0.1), lambda: l2(0.1, optax.radam(DROP, eps=0.1))),
    "adamax": (lambda: Adamax(0.05), lambda: optax.adamax(0.05)),
    "adamax-decay": (lambda: Adamax(drop(RATE), weight_decay=0.1), lambda: l2(0.1, optax.adamax(DROP))),
    "adamax-decoupled": (
        lambda: Adamax(0.05, beta2=0.9, epsilon=0.1, weight_decay=0.5, decoupled_weight_decay=True),
        lambda: optax.adamaxw(0.05, b2=0.9, eps=0.1, weight_decay=0.5),
    ),
    "adadelta": (lambda: AdaDelta(), lambda: optax.adadelta(1.0)),
    "adadelta-decay": (
        lambda: AdaDelta(drop(16 * RATE), rho=0.95, epsilon=0.01, weight_decay=0.1),
        lambda: l2(0.1, optax.adadelta(lambda step: 16 * DROP(step), rho=0.95, eps=0.01)),
    ),
    "ademamix": (
        lambda: AdEMAMix(drop(RATE), beta3=0.99, weight_decay=0.1),
        lambda: contrib.ademamix(DROP, b3=0.99, alpha=5.0, weight_decay=0.1),
    ),
    "ademamix-warm": (
        lambda: AdEMAMix(0.05, alpha=lambda step: 0.25 * (step + 1), beta3=HalfLifeWarmup(0.9, 0.9999, 40)),
        lambda: contrib.ademamix(0.05, b3=half_life, alpha=lambda step: 0.25 * (step + 1)),
    ),
    "adopt": (lambda: ADOPT(drop(RATE), beta2=0.99), lambda: contrib.adopt(DROP, b2=0.99)),
    "lion-signum": (lambda: Lion(0.05, beta1=0.9, beta2=0.9), lambda: optax.signum(0.05, beta=0.9)),
    "lamb": (
        lambda: LAMB(drop(RATE), weight_decay=0.1, decay_mask=lambda path, leaf: is_matrix(leaf)),
        lambda: optax.lamb(DROP, weight_decay=0.1, mask=lambda params: jax.tree.map(is_matrix, params)),
    ),
    "lamb-short-memory": (
        lambda: LAMB(0.05, beta1=0.5, beta2=0.9, epsilon=0.1),
        lambda: optax.lamb(0.05, b1=0.5, b2=0.9, eps=0.1),
    ),
    "lars": (
        lambda: LARS(1.0, trust_coefficient=0.01, epsilon=0.1),
        lambda: optax.lars(1.0, trust_coefficient=0.01, eps=0.1),
    ),
    "lars-nesterov": (
        lambda: LARS(0.1, trust_coefficient=0.01, nesterov=True, trust_mask=lambda path, leaf: is_matrix(leaf)),
        lambda: optax.lars(0.1, trust_ratio_mask=lambda p: jax.tree.map(is_matrix, p), trust_coefficient=0.01, nesterov=True),
    ),
}
# One case per optimizer, with most of its features.
RICHEST = [
    "sgd-nesterov",
    "adam-decay",
    "adamw-masked",
    "adamw-nesterov",
    "rmsprop-centered",
    "adagrad",
    "lion",
    "adamax-decay",
    "lamb",
    "lars-nesterov",
]
# Optax squares complex gradients as if they were real, or refuses them.
REAL_ONLY = ["adadelta", "adadelta-decay", "adopt"]
# The values of our schedule are float32.
FLOAT32_ONLY = ["ademamix-warm"]

SHAPES = {"matrix": (4, 3), "vector": (5,), "cube": (2, 2, 2)}


def random_tree(rng, dtypes, scale):
    """A matrix, a vector and a 3-d array, each of a dtype of its own."""
    parts = {name: rng.normal(scale=scale, size=(2, *shape)) for name, shape in SHAPES.items()}
    is_complex = {name: jnp.issubdtype(dtype, jnp.complexfloating) for name, dtype in dtypes.items()}
    values = {name: part[0] + 1j * part[1] if is_complex[name] else part[0] for name, part in parts.items()}
    return {name: jnp.asarray(values[name], dtype) for name, dtype in dtypes.items()}


def random_problem(dtypes):
    """Parameters and the gradients of every step."""
    rng = np.random.default_rng(7)
    return random_tree(rng, dtypes, 1.0), [random_tree(rng, dtypes, 0.5) for _ in range(STEPS)]


def ours(name, params, gradients):
    """The parameters after every step."""
    optimizer = CASES[name][0]()
    state, update, trajectory = optimizer.init(params), jax.jit(optimizer.update), []
    for grads in gradients:
        params, state = update(params, grads, state)
        trajectory.append(params)
    return trajectory


def optaxs(name, params, gradients, store=lambda params: params):
    """The same by optax; `store` is what happens to the parameters after every step."""
    transformation = CASES[name][1]()

    @jax.jit
    def step(params, grads, state):
        # jax.grad's gradient of a complex parameter points along the conjugate: users of optax conjugate, ours do not.
        updates, state = transformation.update(jax.tree.map(jnp.conj, grads), state, params)
        return store(optax.apply_updates(params, updates)), state

    trajectory = []
    with jax.numpy_dtype_promotion("standard"):
        state = transformation.init(params)
        for grads in gradients:
            params, state = step(params, grads, state)
            trajectory.append(params)
    return trajectory


def assert_close(actual, expected, tolerances):
    """Parameters are of the order of 1, and one that is small has been large: errors are relative to 1 there."""
    for name, tolerance in tolerances.items():
        mine, theirs = (np.stack([params[name] for params in trajectory]) for trajectory in (actual, expected))
        assert mine.dtype == theirs.dtype
        np.testing.assert_allclose(mine, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", CASES)
def test_every_precision_and_complex_leaves(name):
    """Measured: 9e-15 with β₂ = 0.9999, where 1 − β₂ᵗ cancels in optax's float64, and 1e-15 elsewhere; 2e-7 in float32."""
    dtypes = {"matrix": jnp.float64, "vector": jnp.float32, "cube": jnp.float32 if name in REAL_ONLY else jnp.complex64}
    with jax.enable_x64(True):
        problem = random_problem(dtypes)
        actual, expected = ours(name, *problem), optaxs(name, *problem)
    tolerances = {"matrix": 1e-13, "vector": 1e-6, "cube": 1e-6}
    assert_close(actual, expected, dict.fromkeys(tolerances, 1e-5) if name in FLOAT32_ONLY else tolerances)


@pytest.mark.parametrize("name", RICHEST)
def test_float32(name):
    """Measured: 5e-6, because optax computes 1 − βᵗ in float32; without bias correction 2e-7."""
    problem = random_problem(dict.fromkeys(SHAPES, jnp.float32))
    assert_close(ours(name, *problem), optaxs(name, *problem), dict.fromkeys(SHAPES, 1e-5))


def rounded_to_bfloat16(params):
    return jax.tree.map(lambda leaf: jax.lax.reduce_precision(leaf, exponent_bits=8, mantissa_bits=7), params)


def flat(params):
    return np.concatenate([np.ravel(params[name]).astype(np.float32) for name in SHAPES])


@pytest.mark.parametrize("name", RICHEST)
def test_bfloat16_parameters_follow_float32_arithmetic_rounded_at_storage(name):
    params, gradients = random_problem(dict.fromkeys(SHAPES, jnp.bfloat16))
    wide_params, wide_gradients = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (params, gradients))
    expected = optaxs(name, wide_params, wide_gradients, store=rounded_to_bfloat16)
    optimizer = CASES[name][0]()
    state, update, differing = optimizer.init(params), jax.jit(optimizer.update), []
    for grads, theirs in zip(gradients, expected, strict=True):
        params, state = update(params, grads, state)
        differing.append(flat(params) != flat(theirs))
        np.testing.assert_allclose(flat(params), flat(theirs), rtol=0.01)  # one unit in the last place
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), theirs)  # or a flipped rounding would stay
    # Float32 errors of 1e-6 flip one rounding in a thousand; arithmetic in bfloat16 flips one in eight.
    assert np.mean(differing) < 0.005


@pytest.mark.parametrize("name", RICHEST)
def test_complex_parameters_descend(name):
    """Optax without the conjugation would go the wrong way in the imaginary direction."""
    target = jnp.asarray([1 + 2j, -1 - 1j], jnp.complex64)

    def loss(z):
        return jnp.sum(jnp.abs(z - target) ** 2)

    optimizer = CASES[name][0]()
    z = jnp.zeros(2, jnp.complex64)
    state = optimizer.init(z)
    for _ in range(5):
        z, state = optimizer.update(z, jax.grad(loss)(z), state)
        assert np.all(np.imag(z) * np.imag(target) > 0)
    assert loss(z) < loss(jnp.zeros(2, jnp.complex64))
