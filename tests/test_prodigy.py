"""Prodigy against its definition in float64, against optax, and where its estimate stands still elsewhere."""

import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from zoo import bits

from mithril_opt import Frozen, MixedPrecisionTrainer, MultiOptimizer, Prodigy

STEPS = 30
SHAPES = {"w": (4, 3), "v": (5,), "s": ()}
SIZE = sum(int(np.prod(shape)) for shape in SHAPES.values())


def problem():
    """Start and gradients as vectors of all parameters; the gradients have a direction in common, so that d grows."""
    generator = np.random.default_rng(3)
    start, mean, noise = generator.normal(size=SIZE), generator.normal(size=SIZE), generator.normal(size=(STEPS, SIZE))
    return start, np.array([1, 0.05, 3])[np.arange(STEPS) % 3][:, None] * (mean + noise)


def tree(vector):
    ends = np.cumsum([int(np.prod(shape)) for shape in SHAPES.values()])
    parts = zip(SHAPES.items(), np.split(np.asarray(vector), ends[:-1]), strict=True)
    return {name: jnp.asarray(part.reshape(shape)) for (name, shape), part in parts}


def flat(params):
    return np.concatenate([np.ravel(params[name]) for name in SHAPES])


def prodigy(
    p0, grads, eta=lambda k: 1, betas=(0.9, 0.999), beta3=None, epsilon=1e-8, decay=0.0, d0=1e-6, coef=1.0, growth=np.inf,
    corrected=False, guarded=False,
):  # fmt: skip
    """p and d after every step, one vector for all parameters, all averages and sums written out."""
    (beta1, beta2), beta3 = betas, np.sqrt(betas[1]) if beta3 is None else beta3
    p, d, d_max, ds, for_r, for_s = p0, d0, d0, [], [], []
    summed = lambda terms, beta: sum(beta ** (len(terms) - 1 - i) * term for i, term in enumerate(terms))  # noqa: E731
    for k, g in enumerate(grads):
        b = np.sqrt(1 - beta2 ** (k + 1)) / (1 - beta1 ** (k + 1)) if corrected else 1
        gamma = d * eta(k) * b
        ds.append(d)
        for_r.append(d / d0 * gamma * np.sum(g * (p0 - p)))
        for_s.append(d / d0 * (d if guarded else gamma) * g)
        size = np.sum(np.abs(summed(for_s, beta3)))
        if size > 0:
            estimate = coef * summed(for_r, beta3) / size
            d = max(d, estimate) if d == d0 else d
            d_max = max(d_max, estimate)
            d = min(d_max, d * growth)
        m = (1 - beta1) * summed([e * h for e, h in zip(ds, grads, strict=False)], beta1)
        v = (1 - beta2) * summed([(e * h) ** 2 for e, h in zip(ds, grads, strict=False)], beta2)
        p = p - gamma * (m / (np.sqrt(v) + d * epsilon) + decay * p)
        yield p, d


PAPERS = {Prodigy: prodigy}


def train(optimizer, start, grads, convert=tree):
    """Parameters and d after every step."""
    params, update, trajectory = convert(start), jax.jit(optimizer.update), []
    state = optimizer.init(params)
    for row in grads:
        params, state = update(params, convert(row), state)
        trajectory.append((params, float(state.shared.d)))
    return trajectory


def warmup(k):
    return min(1, (k + 1) / 8)


def traced(function):
    table = jnp.asarray([function(k) for k in range(STEPS)], jnp.float32)
    return lambda step: table[step]


CASES = {
    "defaults": ({}, {}),
    "corrected": (dict(bias_correction=True, weight_decay=0.1, d0=1e-3), dict(corrected=True, decay=0.1, d0=1e-3)),
    "guarded": (
        dict(learning_rate=traced(warmup), safeguard_warmup=True, d0=1e-2, d_coef=2.0),
        dict(eta=warmup, guarded=True, d0=1e-2, coef=2.0),
    ),
    "warmup": (dict(learning_rate=traced(warmup), d0=1e-2), dict(eta=warmup, d0=1e-2)),
    "growth": (dict(growth_rate=1.25, d0=1e-4, epsilon=0.1), dict(growth=1.25, d0=1e-4, epsilon=0.1)),
    "betas": (dict(beta1=0.5, beta2=0.9, beta3=0.75, d0=1e-2), dict(betas=(0.5, 0.9), beta3=0.75, d0=1e-2)),
    "no-memory": (dict(beta1=0.0, d0=1e-2), dict(betas=(0.0, 0.999), d0=1e-2)),
}


@pytest.mark.parametrize("case", CASES)
def test_definition_in_float64(case):
    """After a step of 1e-6 the p₀ − p of the definition has lost six digits."""
    ours, theirs = CASES[case]
    with jax.enable_x64(True):
        actual = train(Prodigy(**ours), *problem())
    expected = [*prodigy(*problem(), **theirs)]
    np.testing.assert_allclose([d for _, d in actual], [d for _, d in expected], rtol=1e-9)
    np.testing.assert_allclose([flat(p) for p, _ in actual], [p for p, _ in expected], rtol=1e-9, atol=1e-9)
    assert expected[-1][1] > 10 * theirs.get("d0", 1e-6)


@pytest.mark.parametrize("case", CASES)
def test_definition_in_float32(case):
    """An estimate that grows tenfold and tenfold again multiplies errors as well."""
    ours, theirs = CASES[case]
    actual, expected = train(Prodigy(**ours), *problem()), [*prodigy(*problem(), **theirs)]
    np.testing.assert_allclose([d for _, d in actual], [d for _, d in expected], rtol=1e-4)
    np.testing.assert_allclose([flat(p) for p, _ in actual], [p for p, _ in expected], rtol=1e-4, atol=1e-4)


def test_optax():
    """It always corrects the bias, and starts at d₀ = 1e-6."""
    start, grads = problem()
    theirs = optax.contrib.prodigy(1.0, betas=(0.9, 0.999), eps=1e-8, estim_lr0=1e-3, weight_decay=0.1)
    ours = train(Prodigy(bias_correction=True, d0=1e-3, weight_decay=0.1), start, grads)
    with jax.numpy_dtype_promotion("standard"):
        params, update = tree(start), jax.jit(theirs.update)
        state = theirs.init(params)
        for row, (actual, d) in zip(grads, ours, strict=True):
            updates, state = update(tree(row), state, params)
            params = optax.apply_updates(params, updates)
            np.testing.assert_allclose(d, state.estim_lr, rtol=1e-3)
            np.testing.assert_allclose(flat(actual), flat(params), rtol=1e-3, atol=1e-4)


def test_zero_gradients_before_the_first():
    """In optax the estimate is NaN from then on."""
    start, grads = problem()
    zeros = np.zeros((4, SIZE))
    late, early = train(Prodigy(), start, [*zeros, *grads]), train(Prodigy(), start, grads)
    assert [d for _, d in late[:4]] == [float(np.float32(1e-6))] * 4
    for (late_params, late_d), (params, d) in zip(late[4:], early, strict=True):
        assert late_d == d
        assert bits(late_params) == bits(params)


def test_the_displacement_keeps_its_digits():
    """At a parameter of 1 a step of 1e-6 has lost two of them in p₀ − p."""
    start = np.ones(SIZE)
    grads = np.ones((40, SIZE))
    expected, actual = [*prodigy(start, grads)][-1][1], train(Prodigy(), start, grads)[-1][1]
    assert actual == pytest.approx(expected, rel=1e-5)


def test_the_learning_rate_is_the_size_of_the_steps():
    start, grads = problem()
    optimizer = Prodigy(learning_rate=traced(warmup), d0=1e-2)
    state, params = optimizer.init(tree(start)), tree(start)
    for k, row in enumerate(grads):
        assert float(optimizer.get_learning_rate(state)) == pytest.approx(float(state.shared.d) * warmup(k), rel=1e-6)
        params, state = optimizer.update(params, tree(row), state)
    corrected = Prodigy(bias_correction=True, d0=1e-2)
    first = corrected.get_learning_rate(corrected.init(params))
    assert float(first) == pytest.approx(1e-2 * np.sqrt(1 - 0.999) / (1 - 0.9), rel=1e-6)
    assert (first.dtype, first.shape) == (jnp.float32, ())


def test_what_has_no_gradient_or_does_not_train_is_outside_both_sums():
    start, grads = problem()
    alone = train(Prodigy(d0=1e-2), start, grads, convert=lambda row: {"w": tree(row)["w"]})
    without = train(Prodigy(d0=1e-2), start, grads, convert=lambda row: {**tree(row), "v": None, "s": None})
    optimizer = MultiOptimizer({"fixed": Frozen(), "free": Prodigy(d0=1e-2)}, {"fixed": lambda p, _: p != "w", "free": "w"})
    params, state = tree(start), optimizer.init(tree(start))
    for row in grads:
        params, state = optimizer.update(params, tree(row), state)
    assert [d for _, d in alone] == [d for _, d in without]
    assert float(state.shared["free"].d) == pytest.approx(alone[-1][1], rel=1e-6)
    assert alone[-1][1] > 1e-1


def test_every_group_has_an_estimate_of_its_own():
    start, grads = problem()
    optimizer = MultiOptimizer({"a": Prodigy(d0=1e-2), "b": Prodigy(d0=1e-2)}, groups={"a": "w", "b": ...})
    params, state = tree(start), optimizer.init(tree(start))
    for row in grads:
        params, state = optimizer.update(params, tree(row), state)
    rates = {name: float(rate) for name, rate in optimizer.learning_rates(state).items()}
    assert rates == {name: float(state.shared[name].d) for name in ("a", "b")}
    assert rates["a"] != rates["b"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_16_bits_would_not_move(dtype):
    with pytest.raises(
        ValueError, match=rf"at 'a/w': Prodigy needs real parameters of 32 bits or more; one of {dtype} would not"
    ):
        Prodigy().init({"a": {"w": jnp.ones(2, dtype)}})


def test_complex_parameters():
    with pytest.raises(ValueError, match=r"at 'w': Prodigy needs real parameters .*; one of complex64 has no such estimate"):
        Prodigy().init({"w": jnp.ones(2, jnp.complex64)})


@pytest.mark.parametrize(("size", "epsilon", "moves"), [(1e-13, 0.0, False), (1e-10, 0.0, True), (1e26, 1e-8, False)])
def test_squares_that_float32_does_not_hold(size, epsilon, moves):
    """As the docstring says; with d at 1e-6."""
    optimizer, params = Prodigy(epsilon=epsilon), jnp.ones(2) * 1e-3
    new, _ = optimizer.update(params, jnp.full(2, size), optimizer.init(params))
    assert bool(jnp.all(new != params)) is moves


def test_no_bound_on_the_growth():
    assert Prodigy(growth_rate=float("inf")) == Prodigy()
    with pytest.raises(ValueError, match=r"Prodigy: growth_rate must be a number in \(1, inf\) or a schedule, got 1.0"):
        Prodigy(growth_rate=1.0)


def test_in_a_trainer():
    """An infinite number among those of the optimizer would make every step a bad one."""
    start, grads = problem()
    trainer = MixedPrecisionTrainer(None, Prodigy(d0=1e-2), policy="bfloat16")
    params, state = tree(start), trainer.init(tree(start))
    for row in grads:
        params, state, success = trainer.update(params, tree(row), state)
        assert success
    assert float(state.optimizer.shared.d) == pytest.approx(train(Prodigy(d0=1e-2), start, grads)[-1][1], rel=1e-5)


def test_bytes_for_a_parameter():
    state = Prodigy().init(jnp.ones(100))
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(state.slots)) == 16 * 100
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(state.shared)) == 12


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def test_four_devices_compute_what_one_does_with_one_all_reduce(axis_type):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(axis_type,), devices=jax.devices()[:4])
    generator = np.random.default_rng(0)
    rows = [{"a": np.float32(generator.normal(size=(8, 3))), "b": np.float32(generator.normal(size=(4,)))} for _ in range(4)]
    optimizer = Prodigy(d0=1e-2)
    expected = train(optimizer, rows[0], rows[1:], convert=lambda row: jax.tree.map(jnp.asarray, row))
    with jax.set_mesh(mesh):
        place = lambda row: jax.device_put(row, NamedSharding(mesh, P("data")))  # noqa: E731
        params = place(rows[0])
        text = jax.jit(optimizer.update).lower(params, params, optimizer.init(params)).compile().as_text()
        actual = train(optimizer, rows[0], rows[1:], convert=place)
    found = Counter(re.findall(r" (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)\(", text))
    assert found == {"all-reduce": 1}
    for (params, d), (one, one_d) in zip(actual, expected, strict=True):
        assert d == pytest.approx(one_d, rel=1e-5)
        np.testing.assert_allclose(params["a"], one["a"], rtol=1e-5)
