"""Wrappers that change gradients: AGC, centralization, noise."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from steps import PARAMS as SMALL
from steps import drive, gradients, trainer_of
from zoo import bits, groups, make_params

from mithril_opt import (
    AGC,
    SGD,
    Accumulate,
    Adam,
    AddNoise,
    CentralizeGradients,
    Clip,
    MultiOptimizer,
    from_state_dict,
    to_state_dict,
)

PARAMS = make_params()


def seen(wrap, params, grads, steps=1):
    """The gradients that an optimizer inside `wrap` sees: those by which SGD with the rate 1 moves."""
    optimizer = wrap(SGD(learning_rate=1.0))
    state = optimizer.init(params)
    for _ in range(steps):
        updates, state = optimizer.compute_updates(params, grads, state)
    return jax.tree.map(lambda update: -np.conj(np.asarray(update)), updates)  # a step is along the conjugate


def assert_close(actual, expected, rtol=1e-6, atol=1e-8):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=rtol, atol=atol)


# Adaptive gradient clipping.


def agc(p, g, c, epsilon):
    """Unit by unit, in Python's own loops."""
    p, g = np.asarray(p), np.array(g, copy=True)
    units = [(..., i) for i in range(p.shape[-1])] if p.ndim > 1 else [...]
    for unit in units:
        bound = c * max(np.sqrt(np.sum(np.abs(p[unit]) ** 2)), epsilon)
        norm = np.sqrt(np.sum(np.abs(g[unit]) ** 2))
        if norm > bound:
            g[unit] = g[unit] * (bound / norm)
    return g


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize(("c", "epsilon"), [(0.01, 1e-3), (0.5, 1e-3), (10.0, 1e-3), (0.1, 2.0)])
def test_agc_unit_by_unit(dtype, c, epsilon):
    with jax.enable_x64(True):
        params, grads = make_params(dtype), make_params(dtype, 1)
        got = seen(lambda inner: AGC(inner, clipping=c, epsilon=epsilon), params, grads)
        assert_close(got, jax.tree.map(lambda p, g: agc(p, g, c, epsilon), params, grads), rtol=1e-12, atol=0)


@pytest.mark.parametrize("shape", [(4,), (), (4, 3), (3, 2, 2, 3)])
def test_agc_equals_optax_live(shape):
    rng, peer = np.random.default_rng(0), optax.adaptive_grad_clip(0.1, eps=1e-3)
    for scale in (1e-3, 1.0, 1e3):
        p, g = jnp.asarray(rng.normal(size=shape), jnp.float32), jnp.asarray(scale * rng.normal(size=shape), jnp.float32)
        expected, _ = peer.update(g, peer.init(p), p)
        assert_close(seen(lambda inner: AGC(inner, clipping=0.1), p, g), expected)


def test_agc_of_a_stack_is_that_of_its_layers():
    """optax takes a leaf of three axes for heads, and sums the layers of a stack."""
    rng = np.random.default_rng(0)
    p, g = (jnp.asarray(rng.normal(size=(3, 4, 2)), jnp.float32) for _ in range(2))
    stacked = seen(lambda inner: AGC(inner, clipping=0.1, unit_axes=(0, -1)), p, g)
    apart = [seen(lambda inner: AGC(inner, clipping=0.1), p[i], g[i]) for i in range(3)]
    assert_close(stacked, np.stack(apart))
    by_path = lambda path, leaf: (0, -1) if path == "stack" else -1  # noqa: E731
    mixed = seen(lambda inner: AGC(inner, clipping=0.1, unit_axes=by_path), {"stack": p, "w": p[0]}, {"stack": g, "w": g[0]})
    assert_close(mixed, {"stack": stacked, "w": apart[0]})


def test_agc_leaves_what_is_small_to_the_last_bit():
    params, grads = make_params(), jax.tree.map(lambda g: g * 1e-30, make_params(seed=1))
    for clip in (lambda inner: AGC(inner), lambda inner: AGC(inner, clipping=1e30)):
        got, _ = clip(SGD(learning_rate=1.0)).compute_updates(params, grads, SGD().init(params))
        assert bits(got) == bits(jax.tree.map(lambda g: -g, grads))


@pytest.mark.parametrize("size", [1e-20, 1e10, 1e18, 1e25, 1e38, 3e38])
def test_agc_neither_overflows_nor_vanishes(size):
    p, g = jnp.full((4, 2), 2.0), jnp.full((4, 2), size, jnp.float32).at[:, 1].set(1e-3)
    got = seen(lambda inner: AGC(inner, clipping=0.5), p, g)
    np.testing.assert_allclose(got[:, 0], min(size, 1.0), rtol=1e-6)
    np.testing.assert_allclose(got[:, 1], 1e-3, rtol=1e-6)


def test_agc_of_zeros_and_of_what_is_not_finite():
    p = jnp.ones((2, 2))
    assert_close(seen(AGC, p, jnp.zeros((2, 2))), np.zeros((2, 2)))
    got = seen(AGC, jnp.zeros((2, 2)), jnp.ones((2, 2)))  # ε lets parameters that are 0 move
    assert_close(got, np.full((2, 2), 0.01 * 1e-3 / np.sqrt(2)))
    for bad in (jnp.inf, jnp.nan):
        got = seen(AGC, p, jnp.ones((2, 2)).at[0, 0].set(bad))
        np.testing.assert_array_equal(got[:, 0], [bad, 1.0])
        assert got[0, 1] < 0.1


# Centralization.


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_centralized_kernels_sum_to_zero_for_each_output(dtype):
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        grads = {"m": rng.normal(size=(4, 3)), "k": rng.normal(size=(3, 3, 2, 5)), "v": rng.normal(size=3), "s": np.float64(2)}
        grads = jax.tree.map(lambda g: jnp.asarray(g, dtype), grads)
        got = seen(CentralizeGradients, grads, grads)
        for name in ("m", "k"):
            sums = got[name].reshape(-1, got[name].shape[-1]).sum(axis=0)
            np.testing.assert_allclose(sums, 0, atol=1e-13)
            shift = np.asarray(grads[name]) - got[name]  # one number for each output
            np.testing.assert_allclose(shift, np.broadcast_to(shift[(0,) * (shift.ndim - 1)], shift.shape), atol=1e-13)
        assert_close({"v": got["v"], "s": got["s"]}, {"v": grads["v"], "s": grads["s"]}, rtol=0, atol=0)


def test_centralize_equals_optax_for_pytorchs_layout():
    """optax centralizes over all axes but the first: our kernels with the output moved to the front."""
    g = jnp.asarray(np.random.default_rng(0).normal(size=(3, 3, 2, 5)), jnp.float32)
    theirs, _ = optax.centralize().update(jnp.moveaxis(g, -1, 0), optax.EmptyState())
    assert_close(seen(CentralizeGradients, g, g), jnp.moveaxis(theirs, 0, -1))
    assert_close(
        seen(lambda inner: CentralizeGradients(inner, unit_axes=0), g, g), optax.centralize().update(g, optax.EmptyState())[0]
    )


def test_centralized_layers_of_a_stack():
    g = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 2)), jnp.float32)
    stacked = seen(lambda inner: CentralizeGradients(inner, unit_axes=(0, -1)), g, g)
    assert_close(stacked, np.stack([seen(CentralizeGradients, g[i], g[i]) for i in range(3)]))


@pytest.mark.parametrize("wrap", [AGC, CentralizeGradients])
def test_axes_that_are_none(wrap):
    for wrong in ("rows", 1.5, [0]):
        with pytest.raises(TypeError, match=rf"{wrap.__name__}: unit_axes must be an axis"):
            wrap(SGD(), unit_axes=wrong)
    optimizer = wrap(SGD(), unit_axes=3)
    with pytest.raises(ValueError, match=rf"at 'body/w': {wrap.__name__}: unit_axes must be different axes of \(2, 3\), got 3"):
        optimizer.update(PARAMS, PARAMS, optimizer.init(PARAMS))


# Noise.


def noise(optimizer, params, state):
    """What is added to gradients of zero."""
    updates, _ = optimizer.compute_updates(params, jax.tree.map(jnp.zeros_like, params), state)
    return jax.tree.map(np.asarray, updates)


def moments(x):
    return x.mean(), x.std(), ((x - x.mean()) ** 4).mean() / x.std() ** 4


@pytest.mark.parametrize(("eta", "gamma", "t"), [(0.3, 0.55, 0), (0.3, 0.55, 99), (1.0, 0.0, 7), (0.01, 1.0, 3)])
def test_the_noise_is_normal_with_the_papers_variance(eta, gamma, t):
    optimizer, params = AddNoise(SGD(learning_rate=1.0), eta=eta, gamma=gamma), {"w": jnp.zeros(200_000)}
    drawn = noise(optimizer, params, optimizer.init(params)._replace(step=jnp.int32(t)))["w"]
    mean, deviation, kurtosis = moments(drawn)
    sigma = np.sqrt(eta / (1 + t) ** gamma)
    assert abs(mean) < 5 * sigma / np.sqrt(drawn.size)
    assert deviation == pytest.approx(sigma, rel=0.01)
    assert kurtosis == pytest.approx(3, rel=0.03)


def test_complex_noise_has_half_the_variance_in_each_part():
    optimizer, params = AddNoise(SGD(learning_rate=1.0), eta=0.5, gamma=0.0), jnp.zeros(100_000, jnp.complex64)
    drawn = noise(optimizer, params, optimizer.init(params))
    assert [drawn.real.std(), drawn.imag.std()] == pytest.approx([0.5, 0.5], rel=0.02)
    assert abs(np.corrcoef(drawn.real, drawn.imag)[0, 1]) < 0.02


def test_leaves_steps_and_seeds_are_independent():
    params = {"a": jnp.zeros(10_000), "b": jnp.zeros(10_000)}
    draws = []
    for seed in (0, 1):
        optimizer = AddNoise(SGD(learning_rate=1.0), eta=1.0, gamma=0.0, seed=seed)
        for t in (0, 1):
            drawn = noise(optimizer, params, optimizer.init(params)._replace(step=jnp.int32(t)))
            draws += [drawn["a"], drawn["b"]]
    correlations = np.corrcoef(draws) - np.eye(len(draws))
    assert np.abs(correlations).max() < 0.05


def test_a_leaf_keeps_its_noise_when_others_come_or_go():
    optimizer, full = AddNoise(SGD(learning_rate=1.0), eta=1.0), {"a": jnp.zeros(5), "b": jnp.zeros(5)}
    whole = noise(optimizer, full, optimizer.init(full))
    alone = noise(optimizer, {"b": full["b"]}, optimizer.init({"b": full["b"]}))
    assert bits(alone["b"]) == bits(whole["b"])
    multi = MultiOptimizer({"a": optimizer, "b": optimizer}, groups={"a": "a", "b": "b"})
    assert bits(noise(multi, full, multi.init(full))) == bits(whole)


def test_paths_of_which_32_bits_are_alike():
    """The digests of these two begin with the same word."""
    params = {"layers": {24607: jnp.zeros(5), 157726: jnp.zeros(5)}}
    optimizer = AddNoise(SGD(learning_rate=1.0), eta=1.0)
    first, second = jax.tree.leaves(noise(optimizer, params, optimizer.init(params)))
    assert not np.any(first == second)


def test_a_run_that_is_resumed_sees_the_same_noise():
    optimizer = AddNoise(Clip(Adam(learning_rate=0.1), clip_norm=1.0), eta=0.1)
    params, state = PARAMS, optimizer.init(PARAMS)
    for seed in range(3):
        params, state = optimizer.update(params, make_params(seed=seed), state)
    on_disk = {name: np.asarray(value) for name, value in to_state_dict(state).items()}
    resumed = params, from_state_dict(jax.eval_shape(optimizer.init, PARAMS), on_disk)
    for seed in range(3, 6):
        params, state = optimizer.update(params, make_params(seed=seed), state)
        resumed = optimizer.update(resumed[0], make_params(seed=seed), resumed[1])
    assert bits(resumed) == bits((params, state))


def test_a_skipped_step_is_repeated_with_its_noise():
    trainer = trainer_of(AddNoise(SGD(learning_rate=0.1), eta=0.1), loss_scale=2.0)
    params, state, *_ = drive(trainer, "TT")
    _, between, *_ = drive(trainer, "FN", params, state)
    after = drive(trainer, "T", params, between, seed=3)[0]
    assert bits(after) == bits(drive(trainer, "T", params, state, seed=3)[0])


def test_the_mean_of_a_window_gets_the_noise_of_one_update():
    parts = [gradients(seed) for seed in (1, 2)]
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *parts)
    whole = AddNoise(SGD(learning_rate=1.0), eta=1.0)
    expected, _ = whole.update(SMALL, mean, whole.init(SMALL))
    for optimizer in (AddNoise(Accumulate(SGD(1.0), every=2), eta=1.0), Accumulate(AddNoise(SGD(1.0), eta=1.0), every=2)):
        params, state = SMALL, optimizer.init(SMALL)
        for part in parts:
            params, state = optimizer.update(params, part, state)
        assert_close(params, expected, atol=1e-6)


def test_seeds_may_be_swept():
    step = lambda seed: AddNoise(SGD(learning_rate=1.0), eta=1.0, seed=seed).update(SMALL, SMALL, SGD().init(SMALL))[0]["embed"]  # noqa: E731
    swept = jax.vmap(step)(jnp.arange(3))
    for seed in range(3):
        assert bits(swept[seed]) == bits(step(seed))


def test_no_noise():
    for make in (lambda inner: AddNoise(inner, eta=0.0), lambda inner: AddNoise(inner, eta=lambda step: 0.0)):
        assert_close(seen(make, PARAMS, make_params(seed=1)), make_params(seed=1), rtol=0, atol=0)
    assert AddNoise(SGD(), eta=0.1, gamma=0.0).eta == 0.1


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: AddNoise(SGD(), eta=-1.0),
            ValueError,
            r"AddNoise: eta must be a number in \[0, inf\) or a schedule, got -1.0",
        ),
        (lambda: AddNoise(SGD(), eta=1.0, gamma=-1.0), ValueError, "AddNoise: gamma must be"),
        (lambda: AddNoise(SGD(), eta=1.0, seed=-1), ValueError, "AddNoise: seed must be an integer of at least 0"),
        (lambda: AddNoise(SGD()), TypeError, "missing 1 required positional argument: 'eta'"),
        (lambda: AGC(SGD(), clipping=-1.0), ValueError, "AGC: clipping must be"),
        (lambda: AGC(SGD(), epsilon=-1.0), ValueError, "AGC: epsilon must be"),
        (lambda: AGC("sgd"), TypeError, "AGC: optimizer must be an Optimizer"),
        (lambda: CentralizeGradients("sgd"), TypeError, "CentralizeGradients: optimizer must be an Optimizer"),
    ],
)
def test_bad_input(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("wrap", [AGC, CentralizeGradients, lambda inner: AddNoise(inner, eta=0.1)])
def test_in_a_group_they_see_their_own_leaves(wrap):
    together = groups(wrap(SGD(1.0)), SGD(1.0))
    params, _ = together.update(PARAMS, make_params(seed=1), together.init(PARAMS))
    alone = wrap(SGD(1.0))
    expected, _ = alone.update(
        {"embed": PARAMS["embed"]}, {"embed": make_params(seed=1)["embed"]}, alone.init({"embed": PARAMS["embed"]})
    )
    assert bits(params["embed"]) == bits(expected["embed"])
