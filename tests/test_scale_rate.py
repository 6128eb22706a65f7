"""A rate for each leaf: against groups with rates of their own, and against formulas."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from steps import PARAMS as SMALL
from steps import drive, trainer_of
from zoo import WARMUP, bits, groups, make_params

from mithril_opt import (
    SGD,
    Accumulate,
    Adam,
    AdamW,
    ConstantLR,
    Frozen,
    MultiOptimizer,
    ReduceLROnPlateau,
    ScaleRate,
    StepLR,
    from_optax,
    layer_decay,
)

PARAMS = make_params()


def run(optimizer, steps=6, params=PARAMS):
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for seed in range(steps):
        params, state = update(params, make_params(jax.tree.leaves(params)[0].dtype, seed), state)
    return params, state


def assert_close(actual, expected, rtol=2e-6, atol=1e-7):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=rtol, atol=atol)


@pytest.mark.parametrize("rule", [SGD, Adam, AdamW])
def test_equals_groups_with_rates_of_their_own(rule):
    scaled, _ = run(ScaleRate(rule(learning_rate=0.1), {"embed": 0.25, "body/*": 2.0}))
    assert_close(scaled, run(groups(rule(learning_rate=0.025), rule(learning_rate=0.2)))[0])


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_the_scaled_rate_in_float64(dtype):
    """p ← p − f η (g + b), written out for SGD with momentum as a sum over the past."""
    with jax.enable_x64(True):
        params, _ = run(ScaleRate(SGD(learning_rate=0.125, momentum=0.5), {"embed": 0.3}), 5, make_params(dtype))
        gradients = [np.conj(np.asarray(make_params(dtype, seed)["embed"])) for seed in range(5)]
        total = sum(g * sum(0.5**k for k in range(5 - i)) for i, g in enumerate(gradients))
        np.testing.assert_allclose(params["embed"], make_params(dtype)["embed"] - 0.3 * 0.125 * total, rtol=1e-12)


def test_a_factor_in_float64_widens_no_update():
    with jax.enable_x64(True):
        params = jnp.ones(2, jnp.float32)
        optimizer = ScaleRate(SGD(), {"": jnp.float64(0.5)})
        updates, _ = optimizer.compute_updates(params, params, optimizer.init(params))
    assert updates.dtype == jnp.float32


def test_leaves_that_match_nothing_are_left_to_the_last_bit():
    inner = AdamW(learning_rate=WARMUP)
    (scaled, state), (plain, alone) = run(ScaleRate(inner, {"embed": 0.0})), run(inner)
    assert bits(scaled["body"]) == bits(plain["body"])
    assert bits(scaled["embed"]) == bits(PARAMS["embed"])
    assert bits(state.slots.nu) == bits(alone.slots.nu)  # the moments of a leaf that is held move
    assert scaled["body"]["w"].dtype == jnp.float32


@pytest.mark.parametrize(
    "pattern", ["emb*", re.compile("bed$"), lambda path, leaf: leaf.ndim == 2 and path == "embed", ("none", "embed"), ...]
)
def test_patterns(pattern):
    others = {} if pattern is not ... else {"body/*": 1.0}
    scaled, _ = run(ScaleRate(SGD(learning_rate=1.0), {pattern: 0.5, **others}), 1)
    plain, _ = run(SGD(learning_rate=1.0), 1)
    assert_close(scaled["embed"], 0.5 * (PARAMS["embed"] + plain["embed"]))
    assert bits(scaled["body"]) == bits(plain["body"])


def test_a_function_of_path_and_leaf():
    scaled, _ = run(ScaleRate(SGD(learning_rate=1.0), lambda path, leaf: 1 / (1 + leaf.ndim)), 1)
    grads = make_params(seed=0)
    assert_close(scaled, jax.tree.map(lambda p, g: p - g / (1 + p.ndim), PARAMS, grads))


def depth_of(path, leaf):
    return {"embed": 0, "block0": 1, "block1": 2, "head": 3}[path.split("/")[0]]


@pytest.mark.parametrize("decay", [0.75, 0.65, 0.999, 1.0])
@pytest.mark.parametrize("argument", [False, True], ids=["closed", "argument"])
def test_layer_decay(decay, argument):
    params = {"embed": jnp.ones(2), "block0": {"w": jnp.ones(2)}, "block1": {"w": jnp.ones(2)}, "head": jnp.ones(2)}
    optimizer = ScaleRate(SGD(learning_rate=1.0), layer_decay(depth_of, num_layers=3, decay=decay))
    step = lambda optimizer: optimizer.update(params, params, optimizer.init(params))[0]  # noqa: E731
    new = jax.jit(step)(optimizer) if argument else step(optimizer)
    factors = {name: 1 - float(jax.tree.leaves(leaf)[0][0]) for name, leaf in new.items()}
    assert factors == pytest.approx({"embed": decay**3, "block0": decay**2, "block1": decay, "head": 1.0}, rel=1e-6)


def test_layer_decay_over_many_layers_loses_nothing_as_an_argument():
    factors = lambda decay: layer_decay(lambda path, leaf: 0, num_layers=1000, decay=decay).of([("w", None)])[0]  # noqa: E731
    np.testing.assert_allclose(factors(0.999), 0.999**1000, rtol=2e-7)
    optimizer = ScaleRate(SGD(), layer_decay(depth_of, num_layers=1000, decay=0.999))
    passed = jax.jit(lambda optimizer: optimizer.factors.of([("embed", None)])[0])(optimizer)
    np.testing.assert_allclose(passed, 0.999**1000, rtol=2e-7)


def test_schedules_as_factors_hold_and_release():
    optimizer = ScaleRate(
        SGD(learning_rate=1.0), {"embed": ConstantLR(1.0, factor=0.0, total_iters=3), ...: StepLR(1.0, 2, 0.5)}
    )
    params, state, grads = PARAMS, optimizer.init(PARAMS), jax.tree.map(jnp.ones_like, PARAMS)
    for _ in range(5):
        params, state = optimizer.update(params, grads, state)
    assert_close(params["embed"], PARAMS["embed"] - 2)
    assert_close(params["body"], jax.tree.map(lambda p: p - (1 + 1 + 0.5 + 0.5 + 0.25), PARAMS["body"]))
    assert bits(optimizer.at(4).update(params, grads, state._replace(step=jnp.int32(4)))[0]) == bits(
        optimizer.update(params, grads, state._replace(step=jnp.int32(4)))[0]
    )


def test_the_clock_of_schedules_counts_applied_updates():
    factors = {"embed": lambda step: 0.5**step}
    outside, inside = ScaleRate(Accumulate(SGD(1.0), every=2), factors), Accumulate(ScaleRate(SGD(1.0), factors), every=2)
    for optimizer in (outside, inside):
        params, state, grads = PARAMS, optimizer.init(PARAMS), jax.tree.map(jnp.ones_like, PARAMS)
        for _ in range(6):
            params, state = optimizer.update(params, grads, state)
        assert_close(params["embed"], PARAMS["embed"] - 1.75)
    trainer = trainer_of(ScaleRate(SGD(1.0), factors), loss_scale=2.0)
    params, state, *_ = drive(trainer, "TFFT")
    assert int(state.optimizer.step) == 2


def test_a_factor_that_is_not_a_number_is_no_success():
    trainer = trainer_of(ScaleRate(SGD(1.0), {"embed": lambda step: jnp.where(step == 1, jnp.nan, 1.0)}), loss_scale=2.0)
    params, state, _, success = drive(trainer, "T")
    after, after_state, _, failure = drive(trainer, "T", params, state)
    assert (bool(success[0]), bool(failure[0])) == (True, False)
    assert bits((after, after_state.optimizer)) == bits((params, state.optimizer))
    assert int(after_state.loss_scale.bad_input) == 1


def test_a_factor_may_be_traced_swept_and_differentiated():
    step = lambda factor: ScaleRate(SGD(1.0), {"embed": factor}).update(SMALL, SMALL, SGD().init(SMALL))[0]["embed"][0, 0]  # noqa: E731
    first = float(SMALL["embed"][0, 0])
    np.testing.assert_allclose(jax.vmap(step)(jnp.array([0.0, 0.5])), [first, first / 2], rtol=1e-6)
    assert float(jax.grad(step)(0.5)) == pytest.approx(-first, rel=1e-6)
    assert float(jax.grad(step)(0.0)) == pytest.approx(-first, rel=1e-6)


def test_around_groups_frozen_leaves_and_optax():
    optimizer = ScaleRate(groups(Frozen(), from_optax(optax.sgd(1.0))), {"embed": 3.0, "body/w": 0.5})
    params, _ = optimizer.update(PARAMS, PARAMS, optimizer.init(PARAMS))
    assert params["embed"] is PARAMS["embed"]
    assert_close(params["body"]["w"], 0.5 * PARAMS["body"]["w"])
    rates = ScaleRate(SGD(0.5), {"embed": 3.0})
    assert float(rates.get_learning_rate(rates.init(PARAMS))) == 0.5  # of the rule; explain shows that of every leaf


def test_inside_a_group_the_patterns_are_those_of_whole_paths():
    optimizer = groups(SGD(1.0), ScaleRate(SGD(1.0), {"body/w": 0.5}))
    params, _ = optimizer.update(PARAMS, PARAMS, optimizer.init(PARAMS))
    assert_close(params["body"]["w"], 0.5 * PARAMS["body"]["w"])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: ScaleRate(SGD(), {"w": -1.0}),
            ValueError,
            r"factors\['w'\] must be a number in \[0, inf\) or a schedule, got -1",
        ),
        (lambda: ScaleRate(SGD(), {"w": "fast"}), TypeError, r"factors\['w'\] must be a number .* got 'fast'"),
        (lambda: ScaleRate(SGD(), {3: 1.0}), TypeError, "a pattern must be a glob, .* got 3"),
        (lambda: ScaleRate(SGD(), 0.5), TypeError, "factors must be a dictionary by pattern or a function .* got 0.5"),
        (lambda: ScaleRate(SGD(), {"w": ReduceLROnPlateau(1.0)}), ValueError, r"factors\['w'\] cannot follow a metric"),
        (lambda: ScaleRate("sgd", {}), TypeError, "ScaleRate: optimizer must be an Optimizer"),
        (lambda: layer_decay(depth_of, 3, 0.0), ValueError, r"decay must be a number in \(0, 1\], got 0.0"),
        (lambda: layer_decay(depth_of, 3, 1.5), ValueError, r"decay must be a number in \(0, 1\], got 1.5"),
        (lambda: layer_decay(depth_of, -1, 0.5), ValueError, "num_layers must be an integer of at least 0, got -1"),
        (lambda: layer_decay("depth", 3, 0.5), TypeError, "depth_of must be a function"),
    ],
)
def test_bad_input(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ({"nothing/*": 0.5}, r"ScaleRate: no leaf matches \['nothing/\*'\]; the paths are body/b/0"),
        ({"embed": 0.5, "emb*": 2.0}, r"'embed' \(float32\[4,3\]\) matches the patterns \['embed', 'emb\*'\]"),
        (lambda path, leaf: -1.0, "the factor of 'body/b/0' must be a number"),
        (layer_decay(lambda path, leaf: 7, 3, 0.5), "the depth of 'body/b/0' must be an integer from 0 to 3, got 7"),
        (layer_decay(lambda path, leaf: -1, 3, 0.5), "the depth of 'body/b/0' must be an integer from 0 to 3, got -1"),
        (layer_decay(lambda path, leaf: 0.5, 3, 0.5), "the depth of 'body/b/0' must be an integer from 0 to 3, got 0.5"),
    ],
)
def test_what_does_not_fit_the_parameters(factors, message):
    optimizer = ScaleRate(SGD(), factors)
    with pytest.raises(ValueError, match=message):
        optimizer.update(PARAMS, PARAMS, optimizer.init(PARAMS))


@pytest.mark.parametrize(
    "factors",
    [{"embed": jnp.ones(2)}, lambda path, leaf: np.ones(2), layer_decay(lambda path, leaf: 0, 2, jnp.array([0.5, 0.9]))],
    ids=["pattern", "function", "depth"],
)
def test_several_factors_at_once_need_a_vmap(factors):
    optimizer = ScaleRate(SGD(), factors)
    with pytest.raises(
        ValueError, match=r"ScaleRate: a factor must be a scalar, got shape \(2,\); jax.vmap over the optimizer"
    ):
        optimizer.update(PARAMS, PARAMS, optimizer.init(PARAMS))


def test_it_prints_what_it_was_given():
    assert repr(ScaleRate(SGD(), {"embed": 0.5})).endswith("factors={'embed': 0.5})")
    multi = MultiOptimizer({"all": ScaleRate(SGD(), {"*": 2.0})}, groups={"all": "*"})
    assert multi == MultiOptimizer({"all": ScaleRate(SGD(), {"*": 2.0})}, groups={"all": "*"})
