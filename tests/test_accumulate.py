"""Gradient accumulation: alone, inside other optimizers and under the trainer."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from jaxprs import branches, primitives
from steps import PARAMS, gradients
from zoo import OPTIMIZERS, WARMUP, bits, core, groups, make_params, specs

from mithril_opt import SGD, Accumulate, Adam, AdamW, Frozen, LeafOptimizer, MixedPrecisionTrainer, ReduceLROnPlateau, pytree
from mithril_opt.core.optimizer import _compiled_step

any_update = jax.jit(lambda optimizer, *args: optimizer.update(*args))  # compiled once for all numbers


def run(optimizer, steps, params=PARAMS, state=None, seed=1, grads=None):
    """Updates on other gradients every time."""
    state = optimizer.init(params) if state is None else state
    for i in range(steps):
        params, state = any_update(optimizer, params, gradients(seed + i) if grads is None else grads[i], state)
    return params, state


def mean(trees):
    return jax.tree.map(lambda *leaves: sum(leaves[1:], leaves[0]) * np.float32(1 / len(leaves)), *trees)


def assert_close(actual, expected, rtol=1e-6, atol=1e-7):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


# Equal to updates on the averaged gradients.


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_equals_updates_on_the_averaged_gradients(name):
    """Three windows of four: the rate, the bias correction and whatever else counts, counts applied updates."""
    optimizer = OPTIMIZERS[name]()
    params, state = run(Accumulate(optimizer, every=4), 12)
    means = [mean([gradients(1 + 4 * i + j) for j in range(4)]) for i in range(3)]
    expected, expected_state = run(optimizer, 3, grads=means)
    assert_close((params, state.optimizer), (expected, expected_state), rtol=3e-6, atol=1e-6)  # eigenvectors multiply roundings
    assert int(core(state).step) == 3
    assert bits(optimizer.get_learning_rate(state.optimizer)) == bits(Accumulate(optimizer, 4).get_learning_rate(state))


@pytest.mark.parametrize("every", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("optimizer", [SGD(learning_rate=WARMUP, momentum=0.9), AdamW(learning_rate=WARMUP)])
def test_every_length_of_a_window(optimizer, every):
    params, state = run(Accumulate(optimizer, every), 2 * every)
    means = [mean([gradients(1 + every * i + j) for j in range(every)]) for i in range(2)]
    expected = run(optimizer, 2, grads=means)
    assert_close((params, state.optimizer), expected, rtol=3e-6, atol=3e-7)
    if every <= 2:  # halves are exact
        assert bits(params) == bits(expected[0])


def test_sums_are_float32_whatever_the_gradients():
    """In float16, 2048 + 1 is 2048, and 60000 + 60000 overflows."""
    params = {"a": jnp.zeros(1, jnp.float16), "b": jnp.zeros(1), "z": jnp.zeros(1, jnp.complex64)}
    optimizer = Accumulate(SGD(learning_rate=1.0), every=2)
    state = optimizer.init(params)
    assert [leaf.dtype for leaf in jax.tree.leaves(state.mean)] == [jnp.float32, jnp.float32, jnp.complex64]
    for value in (60000.0, 60001.0):
        grads = {"a": jnp.full(1, 2048 if value == 60000 else 2, jnp.float16), "b": jnp.full(1, value), "z": jnp.full(1, 2j)}
        params, state = optimizer.update(params, grads, state)
    assert (float(params["a"][0]), float(params["b"][0]), complex(params["z"][0])) == (-1025.0, -60000.5, 2j)


def test_float64_sums_of_float64_gradients():
    with jax.enable_x64(True):
        optimizer = Accumulate(SGD(learning_rate=1.0), every=3)
        params, state = jnp.zeros(2), optimizer.init(jnp.zeros(2))
        for _ in range(3):
            params, state = optimizer.update(params, jnp.full(2, 0.1), state)
        assert params.dtype == state.mean.dtype == jnp.float64
        np.testing.assert_allclose(params, -0.1, rtol=1e-15)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_finite_mean_of_gradients_whose_sum_overflows(sign):
    trainer = MixedPrecisionTrainer(None, Accumulate(SGD(learning_rate=1e-30), every=3), policy="float32")
    params, state = jnp.zeros(2), trainer.init(jnp.zeros(2))
    for value in (3e38, 3e38, sign * 3e38):
        params, state, success = trainer.update(params, jnp.full(2, value), state)
    np.testing.assert_allclose(params, -3e8 if sign == 1 else -1e8, rtol=1e-6)
    assert bool(success)


# What a micro-step does and does not do.


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_micro_steps_touch_only_the_accumulator(name):
    optimizer = Accumulate(OPTIMIZERS[name](), every=4)
    params, state = run(optimizer, 4)
    new_params, new_state = params, state
    for i in range(3):
        new_params, new_state = run(optimizer, 1, new_params, new_state, seed=9 + i)
        assert bits(new_params) == bits(params)
        assert bits(new_state.optimizer) == bits(state.optimizer)
        assert (int(new_state.micro_step), int(new_state.verdict)) == (i + 1, 0)
    _, closed = run(optimizer, 1, new_params, new_state, seed=12)
    assert int(closed.micro_step) == 0
    assert int(core(closed).step) == int(core(state).step) + 1


def test_the_inner_optimizer_runs_on_every_kth_call_only():
    calls = []

    @pytree
    class Counted(LeafOptimizer):
        learning_rate: float = 0.1

        def init_leaf(self, param):
            return None

        def update_leaf(self, param, grad, slots, t):
            jax.debug.callback(lambda: calls.append(None))
            return grad, slots

    optimizer = Accumulate(Counted(), every=3)
    params, state = {"w": jnp.ones(2)}, optimizer.init({"w": jnp.ones(2)})
    update, counts = jax.jit(optimizer.update), []
    for _ in range(7):
        params, state = update(params, params, state)
        jax.effects_barrier()
        counts.append(len(calls))
    assert counts == [0, 0, 1, 1, 1, 2, 2]


def test_the_inner_optimizer_is_in_one_branch_of_one_cond():
    optimizer = Accumulate(Adam(), every=2)
    jaxpr = jax.make_jaxpr(optimizer.update)(PARAMS, PARAMS, optimizer.init(PARAMS)).jaxpr
    (pair,) = branches(jaxpr)
    roots = [primitives(branch)["sqrt"] for branch in pair]
    assert sorted(roots) == [0, primitives(jaxpr)["sqrt"]]
    assert max(roots) > 0


def test_a_call_outside_jit_compiles_itself_once():
    optimizer = Accumulate(Adam(learning_rate=0.0321), every=2)
    params, state = PARAMS, optimizer.init(PARAMS)
    _compiled_step.clear_cache()
    for i in range(5):
        params, state = optimizer.update(params, gradients(i), state)
    assert _compiled_step._cache_size() == 1
    assert_close((params, state), run(optimizer, 5, seed=0))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_structure_dtypes_and_weak_types_stay(name):
    optimizer = Accumulate(OPTIMIZERS[name](), every=4)
    state = optimizer.init(PARAMS)
    assert specs(jax.eval_shape(optimizer.init, PARAMS))[0] == specs(state)[0]
    assert specs(run(optimizer, 1, state=state)) == specs(run(optimizer, 4, state=state)) == specs((PARAMS, state))


def test_donated_buffers_are_reused_and_nothing_is_shared():
    optimizer = Accumulate(Adam(), every=2)
    params = make_params()
    state = optimizer.init(params)
    step = jax.jit(optimizer.update, donate_argnums=(0, 2))
    for _ in range(3):
        old = jax.tree.leaves((params, state))
        assert len({leaf.unsafe_buffer_pointer() for leaf in old}) == len(old)
        params, state = step(params, make_params(seed=1), state)
        assert all(leaf.is_deleted() for leaf in old)


def test_sums_inherit_the_sharding():
    sharding = NamedSharding(jax.make_mesh((8,), ("data",)), PartitionSpec("data"))
    params = {"w": jax.device_put(jnp.ones((16, 3)), sharding)}
    optimizer = Accumulate(Adam(), every=2)
    state = optimizer.init(params)
    _, new_state = jax.jit(optimizer.update)(params, params, state)
    assert all(sums["w"].sharding.is_equivalent_to(sharding, 2) for sums in (state.mean, new_state.mean))


def test_a_state_put_away_in_mid_window_has_the_same_future():
    optimizer = Accumulate(Adam(learning_rate=WARMUP), every=3)
    params, state = run(optimizer, 4)
    restored = pickle.loads(pickle.dumps(state))
    assert bits(run(optimizer, 5, params, restored)) == bits(run(optimizer, 5, params, state))


@pytest.mark.parametrize("value", [jnp.inf, jnp.nan, 1.0])
def test_nothing_of_a_closed_window_enters_the_next(value):
    optimizer = Accumulate(Adam(learning_rate=WARMUP), every=2)
    params, state = run(optimizer, 2)
    stale = state._replace(mean=jax.tree.map(lambda leaf: jnp.full_like(leaf, value), state.mean))
    assert bits(run(optimizer, 2, params, stale, seed=5)) == bits(run(optimizer, 2, params, state, seed=5))


def test_a_window_that_is_made_shorter_closes_with_the_mean_of_what_is_in_it():
    """Resuming with a smaller k in mid-window: a count that is only compared for equality would never close it."""
    grads = [{"w": jnp.full(2, value)} for value in (1.0, 2.0, 3.0, 6.0, 5.0, 7.0)]
    params = {"w": jnp.zeros(2)}
    params, state = run(Accumulate(SGD(learning_rate=1.0), every=8), 3, params, grads=grads[:3])
    shorter = Accumulate(SGD(learning_rate=1.0), every=2)
    params, state = run(shorter, 1, params, state, grads=grads[3:4])
    np.testing.assert_allclose(params["w"], -3.0, rtol=1e-6)
    params, state = run(shorter, 2, params, state, grads=grads[4:])
    np.testing.assert_allclose(params["w"], -9.0, rtol=1e-6)
    assert int(state.optimizer.step) == 2


# Trees.


def test_missing_gradients_passengers_and_python_floats():
    params = {"w": jnp.ones(2), "still": jnp.ones(2), "n": 3, "name": "relu", "rate": 0.5}
    optimizer = Accumulate(AdamW(learning_rate=0.1, weight_decay=0.1), every=2)
    state = optimizer.init(params)
    grads = {"w": jnp.ones(2), "still": None, "n": None, "name": 7, "rate": 1.0}
    new_params, state = optimizer.update(params, grads, state)
    new_params, state = optimizer.update(new_params, grads, state)
    assert (new_params["n"], new_params["name"]) == (3, "relu")
    assert bits(new_params["still"]) == bits(params["still"])
    assert state.mean["n"] is state.mean["name"] is None
    np.testing.assert_allclose(new_params["w"], 0.89, rtol=1e-6)
    np.testing.assert_allclose(new_params["rate"], 0.395, rtol=1e-6)


def test_a_gradient_may_be_missing_now_and_then():
    optimizer = Accumulate(SGD(learning_rate=1.0), every=2)
    params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    state = optimizer.init(params)
    params, state = optimizer.update(params, {"a": None, "b": jnp.ones(1)}, state)
    params, state = optimizer.update(params, {"a": jnp.ones(1), "b": None}, state)
    assert (float(params["a"][0]), float(params["b"][0])) == (-0.5, 0.0)
    params, state = optimizer.update(params, {"a": jnp.ones(1), "b": None}, state)
    assert float(state.mean["b"][0]) == 0.0


@pytest.mark.parametrize("params", [{}, {"n": 3}])
def test_nothing_to_train(params):
    optimizer = Accumulate(Adam(), every=2)
    state = optimizer.init(params)
    for _ in range(2):
        params, state = optimizer.update(params, params, state)
    assert int(state.optimizer.step) == 1


# Inside other optimizers, and other optimizers inside.


def test_frozen_leaves_have_no_sums():
    optimizer = Accumulate(groups(Frozen(), SGD(learning_rate=1.0)), every=2)
    state = optimizer.init(PARAMS)
    assert state.mean["embed"] is None
    grads = {**PARAMS, "embed": jnp.full((4, 3), jnp.nan)}
    params, state = run(optimizer, 2, grads=[grads] * 2)
    assert bits(params["embed"]) == bits(PARAMS["embed"])
    assert_close(params["body"], jax.tree.map(jnp.zeros_like, PARAMS["body"]))


def test_a_group_that_accumulates_beside_one_that_does_not():
    """Each is what it would be alone; the outer clock counts calls, the group's own counts applied updates."""
    slow, fast = Accumulate(Adam(learning_rate=WARMUP), every=2), SGD(learning_rate=WARMUP, momentum=0.9)
    together = groups(slow, fast)
    params, state = run(together, 6)
    grads = [gradients(1 + i) for i in range(6)]
    first = run(slow, 6, {"embed": PARAMS["embed"]}, grads=[{"embed": g["embed"]} for g in grads])
    second = run(fast, 6, {"body": PARAMS["body"]}, grads=[{"body": g["body"]} for g in grads])
    assert_close(params, {**first[0], **second[0]})
    assert (int(state.step), int(state.slots["embedding"].optimizer.step)) == (6, 3)
    rates = together.get_learning_rate(state)
    assert (float(rates["embedding"]), float(rates["body"])) == (float(WARMUP(3)), float(WARMUP(6)))


@pytest.mark.parametrize("inner", [Accumulate(SGD(), 2), groups(Accumulate(SGD(), 2), Accumulate(SGD(), 2))])
def test_a_window_of_windows(inner):
    with pytest.raises(ValueError, match="accumulates already; give the product of both lengths as every"):
        Accumulate(inner, 3)


@pytest.mark.parametrize("wrap", [lambda inner: inner, lambda inner: groups(inner, SGD())])
def test_a_metric_driven_schedule_inside(wrap):
    optimizer = Accumulate(wrap(SGD(learning_rate=ReduceLROnPlateau(0.5, factor=0.5, patience=0))), every=2)
    state = optimizer.init(PARAMS)
    params, state = run(optimizer, 1, state=state)
    state = optimizer.observe(optimizer.observe(state, 3.0), 4.0)
    rate = optimizer.get_learning_rate(state)
    assert float(rate["embedding"] if isinstance(rate, dict) else rate) == 0.25
    params, state = run(optimizer, 1, params, state, seed=2)
    grads = (gradients(1)["embed"] + gradients(2)["embed"]) / 2
    np.testing.assert_allclose(params["embed"], PARAMS["embed"] - 0.25 * grads, rtol=1e-6, atol=1e-7)


def test_at_and_equality_and_pickle():
    optimizer = Accumulate(Adam(learning_rate=WARMUP), every=2)
    assert float(optimizer.at(3).optimizer.learning_rate) == float(WARMUP(3))
    assert pickle.loads(pickle.dumps(optimizer)) == optimizer != Accumulate(Adam(learning_rate=WARMUP), every=3)


@pytest.mark.parametrize("kind", [np.int32, np.int64, np.uint8])
def test_a_length_may_be_an_integer_of_numpy(kind):
    optimizer = Accumulate(SGD(), every=kind(4))
    assert optimizer == Accumulate(SGD(), every=4)
    assert type(optimizer.every) is int
    assert jax.tree.structure(optimizer) == jax.tree.structure(Accumulate(SGD(), every=4))


# Bad input.

BAD = [
    (lambda: Accumulate(SGD(), every=0), ValueError, "every must be an integer of at least 1, got 0"),
    (lambda: Accumulate(SGD(), every=2.0), ValueError, "every must be an integer of at least 1, got 2.0"),
    (lambda: Accumulate(SGD(), every=True), ValueError, "every must be an integer of at least 1, got True"),
    (lambda: Accumulate(0.1, every=2), TypeError, "optimizer must be an Optimizer, got 0.1"),
    (lambda: Accumulate(SGD, every=2), TypeError, "optimizer must be an Optimizer, got <class"),
    (
        lambda: Accumulate(SGD(), 2).update(PARAMS, PARAMS, SGD().init(PARAMS)),
        ValueError,
        "Accumulate.update takes the state that init returned as its third argument, got OptState",
    ),
    (
        lambda: Accumulate(SGD(), 2).update(PARAMS, Accumulate(SGD(), 2).init(PARAMS), PARAMS),
        ValueError,
        "this looks like optax's order",
    ),
    (
        lambda: Accumulate(SGD(), 2).update(PARAMS, {"embed": PARAMS["embed"]}, Accumulate(SGD(), 2).init(PARAMS)),
        ValueError,
        r"at 'body/w' the parameter is float32\[2,3\] but there is no gradient",
    ),
    (
        lambda: Accumulate(SGD(), 2).update(PARAMS, {**PARAMS, "embed": jnp.ones(3)}, Accumulate(SGD(), 2).init(PARAMS)),
        ValueError,
        r"at 'embed' the parameter is float32\[4,3\] but the gradient is float32\[3\]",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
