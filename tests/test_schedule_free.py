"""Schedule-Free against its definition as a weighted mean, in float64; against optax; in 16 bits; and what is evaluated."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from zoo import OPTIMIZERS, bits, make_params

from mithril_opt import (
    SGD,
    Accumulate,
    Adam,
    AdamW,
    Clip,
    Frozen,
    LinearWarmupScheduler,
    MixedPrecisionTrainer,
    MultiOptimizer,
    Optimizer,
    ScheduleFree,
    ScheduleFreeAdamW,
    ScheduleFreeSGD,
    from_optax,
    from_state_dict,
    to_state_dict,
)
from mithril_opt.core.schedule_free import Weights

STEPS = 30


def array(*shape, seed=0, dtype="float64"):
    normal = np.random.default_rng([seed, *shape]).normal
    imaginary = 1j if dtype.startswith("complex") else 0
    return (normal(size=shape) + imaginary * normal(size=shape)).astype(dtype)


def gradients(dtype="float64"):
    return [array(4, 3, seed=1 + i, dtype=dtype) * (1, 0.05, 3)[i % 3] for i in range(STEPS)]


def schedule_free(p, grads, rate, adam=None, decay=0.0, beta1=lambda k: 0.9, r=0.0, q=2.0):
    """y and x after every step. x is the mean of all z, weighted, and nothing is updated in place."""
    y, points, weights = p, [p], []
    for k, g in enumerate(grads):
        if adam is not None:
            beta2, epsilon = adam
            v = (1 - beta2) * sum(beta2 ** (k - i) * np.abs(grads[i]) ** 2 for i in range(k + 1))
            g = g / (np.sqrt(v / (1 - beta2 ** (k + 1))) + epsilon)
        points.append(points[-1] - rate(k) * (g + decay * y))
        weights.append((k + 1) ** r * max(rate(i) for i in range(k + 1)) ** q)
        x = np.tensordot(weights, points[1:], axes=1) / sum(weights) if sum(weights) else p
        y = beta1(k) * x + (1 - beta1(k)) * points[-1]
        yield y, x


PAPERS = {ScheduleFreeAdamW: schedule_free, ScheduleFreeSGD: schedule_free}


def train(optimizer, params, grads):
    """The parameters after every step, and those to evaluate."""
    state, update, trajectory = optimizer.init(params), jax.jit(optimizer.update), []
    evaluated = jax.jit(optimizer.eval_params)
    for grad in grads:
        params, state = update(params, grad, state)
        trajectory.append((params, evaluated(params, state)))
    return trajectory


def warmup(k):
    """Of 8 updates, in numbers that float32 holds."""
    return 0.25 * min(1, (k + 1) / 8)


def late(k):
    """The first updates have no rate at all."""
    return 0.25 * (k >= 3)


def falling(k):
    return 0.875 if k < 10 else 0.5


def slower(k):
    """The points after the largest rate weigh as much as those before."""
    return 0.25 if k < 10 else 0.125


def traced(function):
    """A function of Python's integers as a schedule."""
    table = jnp.asarray([function(k) for k in range(STEPS)], jnp.float32)
    return lambda step: table[step]


ADAM = (0.999, 1e-8)
CASES = {
    "adamw": (ScheduleFreeAdamW(0.25), dict(adam=ADAM)),
    "adamw-decay": (ScheduleFreeAdamW(0.25, 0.8, 0.9, 0.1, 0.5), dict(adam=(0.9, 0.1), decay=0.5, beta1=lambda k: 0.8)),
    "adamw-warmup": (ScheduleFreeAdamW(traced(warmup), r=0.5), dict(rate=warmup, adam=ADAM, r=0.5)),
    "adamw-late": (ScheduleFreeAdamW(traced(late)), dict(rate=late, adam=ADAM)),
    "adamw-beta1": (ScheduleFreeAdamW(0.25, beta1=traced(falling)), dict(adam=ADAM, beta1=falling)),
    "adamw-kept": (ScheduleFreeAdamW(0.25, beta1=traced(falling), keep_x=True), dict(adam=ADAM, beta1=falling)),
    "sgd": (ScheduleFreeSGD(0.25), {}),
    "sgd-everything": (
        ScheduleFreeSGD(traced(warmup), 0.95, 0.1, r=1.0, weight_lr_power=1.0),
        dict(rate=warmup, decay=0.1, r=1.0, q=1.0, beta1=lambda k: 0.95),
    ),
    "sgd-alike": (ScheduleFreeSGD(traced(late), weight_lr_power=0.0), dict(rate=late, q=0.0)),
    "sgd-slower": (ScheduleFreeSGD(traced(slower)), dict(rate=slower)),
    "wrapper": (ScheduleFree(SGD(0.25)), {}),
    "wrapper-slower": (ScheduleFree(SGD(traced(slower))), dict(rate=slower)),
    "wrapper-beta1": (ScheduleFree(Adam(0.25, beta1=0.0), traced(falling)), dict(adam=ADAM, beta1=falling)),
    "wrapper-adam": (ScheduleFree(Adam(traced(warmup), beta1=0.0), 0.8), dict(rate=warmup, adam=ADAM, beta1=lambda k: 0.8)),
    "wrapper-alike": (ScheduleFree(SGD(traced(late)), weight_lr_power=0.0), dict(rate=late, q=0.0)),
}


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("case", CASES)
def test_definition_in_float64(case, dtype):
    optimizer, settings = CASES[case]
    grads = gradients(dtype)
    with jax.enable_x64(True):
        actual = train(optimizer, jnp.asarray(array(4, 3, dtype=dtype)), [jnp.conj(grad) for grad in grads])
    expected = schedule_free(array(4, 3, dtype=dtype), grads, **{"rate": lambda k: 0.25, **settings})
    np.testing.assert_allclose(np.asarray(actual), np.asarray([*expected]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_definition_in_float32(case):
    optimizer, settings = CASES[case]
    actual = train(optimizer, np.float32(array(4, 3)), [np.float32(grad) for grad in gradients()])
    expected = schedule_free(array(4, 3), gradients(), **{"rate": lambda k: 0.25, **settings})
    np.testing.assert_allclose(np.asarray(actual), np.asarray([*expected]), rtol=2e-5, atol=1e-5)


def test_optax():
    """Without a warm-up, whose clocks are one apart there."""
    params, grads = np.float32(array(4, 3)), [np.float32(grad) for grad in gradients()]
    theirs = optax.contrib.schedule_free_adamw(0.25, b1=0.9, b2=0.99, eps=1e-8, weight_decay=0.1, weight_lr_power=2.0)
    ours = train(ScheduleFreeAdamW(0.25, 0.9, 0.99, weight_decay=0.1), params, grads)
    with jax.numpy_dtype_promotion("standard"):
        expected, update = jnp.asarray(params), jax.jit(theirs.update)
        state = theirs.init(expected)
        for grad, (y, x) in zip(grads, ours, strict=True):
            updates, state = update(jnp.asarray(grad), state, expected)
            expected = optax.apply_updates(expected, updates)
            np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(x, optax.contrib.schedule_free_eval_params(state, expected), rtol=1e-4, atol=2e-5)


def test_a_warm_up_begins_with_a_rate():
    schedule = LinearWarmupScheduler(7, 0.25 / 8, 0.25)
    assert [float(schedule(k)) for k in range(9)] == [warmup(k) for k in range(9)]


def test_a_million_updates_lose_no_digits_of_the_weight():
    """c is 1e-6 then: 1 − (1 − c) in float32 would be off by 5 %."""
    optimizer = ScheduleFreeSGD(learning_rate=2.0**-10, beta1=0.5)
    state = optimizer.init(jnp.float32(0))
    n = 10**6
    weights = state.shared.weights._replace(sum=jnp.float32(n), max_rate=jnp.float32(2.0**-10))
    shared = state.shared._replace(weights=weights)
    state = state._replace(step=jnp.int32(n), shared=shared, slots=state.slots._replace(z=jnp.float32(-1.0)))
    y, state = optimizer.update(jnp.float32(0.0), jnp.float32(0.0), state)
    assert float(y) == pytest.approx(-1 / (n + 1), rel=1e-6)


def weigh(weights, rates, r, q, start=0):
    """c of points with these rates, after `start` others."""

    def body(weights, step):
        c, weights = weights.with_point(jnp.float32(start + 1) + step, rates(step), r, q)
        return weights, c

    return jax.lax.scan(body, weights, jnp.arange(20_000, dtype=jnp.int32).astype(jnp.float32))[1]


@pytest.mark.parametrize(("r", "q"), [(0.0, 2.0), (0.5, 0.0), (5.0, 2.0), (12.0, 8.0)])
def test_weights_against_their_sum_in_float64(r, q):
    """With a warm-up of 10,000 updates. Twice the power of a rate of 1e-4 and a r of 12 are no float32s."""
    rates = lambda step: jnp.minimum(step + 1, 10_000) * 1e-8  # noqa: E731
    actual = weigh(Weights.of_nothing(jnp.float32), rates, r, q)
    steps = np.arange(20_000, dtype=np.float64)
    weights = ((steps + 1) / 20_000) ** r * np.minimum(steps + 1, 10_000) ** q / 1e4**q
    np.testing.assert_allclose(actual, weights / np.cumsum(weights), rtol=1e-5)


def test_weights_go_on_where_float32_has_no_more_integers():
    start = Weights(jnp.float32(2.0**24), jnp.float32(0), jnp.float32(1))
    actual = weigh(start, lambda step: 1.0, 0.0, 2.0, start=2**24)
    np.testing.assert_allclose(1 / np.float64(actual[-1]), 2**24 + 20_000, rtol=1e-7)


def noisy_descent(optimizer, dtype, steps=1000):
    """The distance from the minimum of what is evaluated, after `steps` noisy gradients of a parabola."""
    target = np.linspace(4.0, 16.0, 64).astype("float32")

    def body(carry, key):
        params, state = carry
        grads = params.astype("float32") - target + jax.random.normal(key, (64,))
        return optimizer.update(params, grads.astype(dtype), state), None

    params = jnp.zeros(64, dtype)
    (params, state), _ = jax.lax.scan(body, (params, optimizer.init(params)), jax.random.split(jax.random.key(0), steps))
    return jnp.sqrt(jnp.mean((optimizer.eval_params(params, state).astype("float32") - target) ** 2))


@pytest.mark.parametrize("make", [lambda **k: ScheduleFreeSGD(0.05, **k), lambda **k: ScheduleFree(SGD(0.05))])
def test_16_bit_parameters_average_as_32_bits_do(make):
    wide, narrow = noisy_descent(make(), "float32"), noisy_descent(make(), "bfloat16")
    assert abs(narrow / wide - 1) < 0.01


def test_16_bit_parameters_do_not_tell_their_average():
    wide, narrow = (
        noisy_descent(ScheduleFreeSGD(0.05), "float32"),
        noisy_descent(ScheduleFreeSGD(0.05, keep_x=False), "bfloat16"),
    )
    assert narrow / wide > 1.1


def sizes(optimizer, params):
    state = optimizer.init(params)
    return sum(leaf.nbytes for leaf in jax.tree.leaves(state)) // 400


def test_bytes_for_a_parameter():
    wide, narrow = jnp.ones(400), jnp.ones(400, jnp.bfloat16)
    assert [sizes(rule, wide) for rule in (ScheduleFreeAdamW(), ScheduleFreeSGD(), ScheduleFree(SGD()))] == [8, 4, 4]
    assert [sizes(rule, narrow) for rule in (ScheduleFreeAdamW(), ScheduleFreeSGD(), ScheduleFree(SGD()))] == [12, 8, 8]
    assert sizes(ScheduleFreeAdamW(keep_x=True), wide) == 12


@pytest.mark.parametrize("optimizer", [ScheduleFreeAdamW(0.1), ScheduleFree(SGD(0.1))])
def test_a_leaf_without_a_gradient_keeps_its_points(optimizer):
    params = {"a": jnp.ones(2), "b": jnp.ones(2, jnp.bfloat16)}
    state, grads = optimizer.init(params), {"a": jnp.ones(2), "b": jnp.ones(2, jnp.bfloat16)}
    for given in (grads, {**grads, "b": None}, {"a": None, "b": None}):
        before = bits((params["b"], optimizer.eval_params(params, state)["b"]))
        params, state = optimizer.update(params, given, state)
        assert (bits((params["b"], optimizer.eval_params(params, state)["b"])) == before) == (given["b"] is None)


def test_bad_settings():
    with pytest.raises(ValueError, match=r"ScheduleFreeAdamW: beta1 must be a number in \(0, 1\) or a schedule, got 0.0"):
        ScheduleFreeAdamW(beta1=0.0)
    with pytest.raises(TypeError, match="ScheduleFreeSGD: keep_x must be True, False or None, got 'yes'"):
        ScheduleFreeSGD(keep_x="yes")
    with pytest.raises(ValueError, match=r"ScheduleFree: the optimizer accumulates; write Accumulate\(ScheduleFree\(...\)"):
        ScheduleFree(Accumulate(SGD(), every=2))
    both = ScheduleFree(MultiOptimizer({"a": SGD(), "b": SGD()}, groups={"a": "a", "b": "b"}))
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    with pytest.raises(ValueError, match=r"several rates, \['a', 'b'\]: wrap those of its groups, or give weight_lr_power=0.0"):
        both.update(params, params, both.init(params))


# What is evaluated.

PARAMS = {"w": jnp.ones((2, 3)), "b": jnp.ones(3), "steps": jnp.int32(7)}
GRADS = {"w": jnp.full((2, 3), 0.5), "b": jnp.full(3, -0.5), "steps": None}
PLAIN = [name for name, row in OPTIMIZERS.items() if type(row()).eval_params is Optimizer.eval_params]


@pytest.mark.parametrize("name", PLAIN)
def test_of_a_plain_rule_the_parameters_are_evaluated(name):
    optimizer, params = OPTIMIZERS[name](), make_params()
    new, state = optimizer.update(params, params, optimizer.init(params))
    evaluated = optimizer.eval_params({**new, "name": "relu"}, optimizer.init({**new, "name": "relu"}))
    assert bits(optimizer.eval_params(new, state)) == bits(new)
    assert evaluated["name"] == "relu"


def states(optimizer, updates=3):
    """Parameters and state after some updates."""
    params, state = PARAMS, optimizer.init(PARAMS)
    for _ in range(updates):
        params, state = optimizer.update(params, GRADS, state)
    return params, state


RULES = [ScheduleFreeAdamW(0.1), ScheduleFreeSGD(0.1), ScheduleFree(SGD(0.1))]


@functools.cache
def reference(index):
    params, state = states(RULES[index])
    return RULES[index].eval_params(params, state)


def assert_evaluates(evaluated, index, leaves=("w", "b")):
    """As the rule alone; the passenger is handed on."""
    assert int(evaluated["steps"]) == 7
    for name in leaves:
        np.testing.assert_allclose(evaluated[name], reference(index)[name], rtol=1e-6)


@pytest.mark.parametrize("index", range(len(RULES)))
def test_averages_are_evaluated_through_everything(index):
    rule = RULES[index]
    for optimizer in (Clip(rule, clip_norm=100.0), Accumulate(rule, every=1), Accumulate(Clip(rule, clip_norm=100.0), every=1)):
        params, state = states(optimizer)
        assert_evaluates(jax.jit(optimizer.eval_params)(params, state), index)
        restored = from_state_dict(jax.eval_shape(optimizer.init, PARAMS), to_state_dict(state))
        assert_evaluates(optimizer.eval_params(params, restored), index)
        assert not np.allclose(params["w"], reference(index)["w"])


@pytest.mark.parametrize("index", range(len(RULES)))
def test_averages_are_evaluated_by_group(index):
    optimizer = MultiOptimizer({"averaged": RULES[index], "plain": AdamW(0.1)}, groups={"averaged": "w", "plain": "b"})
    params, state = states(optimizer)
    evaluated = optimizer.eval_params(params, state)
    assert_evaluates(evaluated, index, "w")
    assert evaluated["b"] is params["b"]


@pytest.mark.parametrize("index", range(len(RULES)))
def test_averages_are_evaluated_in_mixed_precision_and_wait_for_a_window(index):
    trainer = MixedPrecisionTrainer(None, Accumulate(RULES[index], every=2), policy="bfloat16")
    params, state = PARAMS, trainer.init(PARAMS)
    for micro_step in range(6):
        before = trainer.optimizer.eval_params(params, state.optimizer)
        params, state, success = trainer.update(params, GRADS, state)
        after = trainer.optimizer.eval_params(params, state.optimizer)
        assert success
        assert (bits(before) == bits(after)) == (micro_step % 2 == 0)
    assert_evaluates(after, index)
    bad = {**GRADS, "w": GRADS["w"] * jnp.inf}
    skipped, state, success = trainer.update(params, bad, state)
    assert not success
    assert bits(trainer.optimizer.eval_params(skipped, state.optimizer)) == bits(after)


@pytest.mark.parametrize("power", [0.0, 2.0])
def test_what_is_frozen_is_evaluated_as_it_is_and_has_no_rate(power):
    inner = MultiOptimizer({"fixed": Frozen(), "free": SGD(0.1)}, groups={"fixed": "b", "free": ...})
    optimizer = ScheduleFree(inner, weight_lr_power=power)
    params, state = states(optimizer)
    assert optimizer.eval_params(params, state)["b"] is params["b"] is PARAMS["b"]
    assert state.z["b"] is None
    alone = ScheduleFree(SGD(0.1), weight_lr_power=power)
    assert bits(params["w"]) == bits(states(alone)[0]["w"])


def test_a_rate_that_is_not_known():
    optimizer = ScheduleFree(from_optax(optax.sgd(0.1)))
    with pytest.raises(ValueError, match="ScheduleFree: the optimizer keeps its rate to itself: wrap another, or"):
        states(optimizer)


@pytest.mark.parametrize("index", range(len(RULES)))
def test_the_state_of_other_parameters(index):
    _, state = states(RULES[index])
    with pytest.raises(ValueError, match="does not belong to this optimizer and these parameters"):
        RULES[index].eval_params({"w": jnp.ones(2)}, state)
    with pytest.raises(ValueError, match="takes the state that init returned"):
        RULES[index].eval_params(PARAMS, PARAMS)


@pytest.mark.parametrize("index", range(len(RULES)))
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_what_is_evaluated_has_the_dtype_of_the_parameters(index, dtype):
    params = {"w": jnp.ones(3, dtype)}
    new, state = RULES[index].update(params, params, RULES[index].init(params))
    assert RULES[index].eval_params(new, state)["w"].dtype == dtype


@pytest.mark.parametrize("rule", [ScheduleFreeAdamW, ScheduleFreeSGD])
def test_a_gradient_whose_square_overflows(rule):
    """It stops an element of z in AdamW, and is a step like any other in SGD."""
    params, state = jnp.ones(2), rule(0.1).init(jnp.ones(2))
    for gradient in (jnp.array([1e21, 1.0]), jnp.ones(2), jnp.ones(2)):
        params, state = rule(0.1).update(params, gradient, state)
    z = state.slots.z
    assert np.isfinite(jnp.stack([params, z])).all()
    np.testing.assert_allclose(z[0], 1 if rule is ScheduleFreeAdamW else -1e20, rtol=1e-6)
