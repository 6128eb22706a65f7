"""One step, applied whole or not at all: every optimizer of the table, one verdict, one program."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxprs import branches, primitives, uses
from steps import PARAMS, drive, gradients, spoil, step, trainer_of
from zoo import OPTIMIZERS, WARMUP, bits, make_params, specs, unrecorded

from mithril_opt import SGD, Accumulate, Adam, AdamW, MultiOptimizer, ReduceLROnPlateau, clip_gradients, select

BAD = {"overflow": (jnp.inf, 1.0), "nan": (jnp.nan, 1.0), "bad-input": (jnp.nan, jnp.nan)}


@functools.cache
def clipping(name):
    """A trainer for an optimizer of the table, and its step, compiled once for all tests with the settings as constants."""
    trainer = trainer_of(OPTIMIZERS[name](), clip_norm=2.0)
    return trainer, jax.jit(functools.partial(step, trainer))


# All or nothing.


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_skipped_step_changes_nothing_but_the_loss_scale(name):
    """Of any optimizer, in mid-training; and the step after it is what it would have been."""
    trainer, step = clipping(name)
    params, state, success = step(PARAMS, trainer.init(PARAMS), gradients(1), 0.0, 1.0)
    assert bool(success)
    undisturbed = step(params, state, gradients(2), 0.0, 1.0)
    for error, loss in BAD.values():
        new_params, new_state, success = step(params, state, gradients(3), error, loss)
        assert not bool(success)
        assert bits(new_params) == bits(params)
        assert bits(unrecorded(new_state.optimizer)) == bits(unrecorded(state.optimizer))
        assert specs(new_state) == specs(state) == specs(trainer.init(params))
        assert int(new_state.loss_scale.attempts) == 2
        after, after_state, _ = step(new_params, new_state, gradients(2), 0.0, 1.0)
        expected = undisturbed[0], unrecorded(undisturbed[1].optimizer)
        assert bits((after, unrecorded(after_state.optimizer))) == bits(expected)
    assert step._cache_size() == 1


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_committed_step_is_the_optimizers_own(name):
    trainer, step = clipping(name)
    optimizer = trainer.optimizer
    params, state = PARAMS, trainer.init(PARAMS)
    expected, expected_state = PARAMS, optimizer.init(PARAMS)
    for seed in (1, 2, 3):
        params, state, success = step(params, state, gradients(seed), 0.0, 1.0)
        clipped = clip_gradients(optimizer.drop_frozen(params, gradients(seed)), clip_norm=2.0)
        expected, expected_state = optimizer.update(expected, clipped, expected_state)
        assert bool(success)
    own, others = (params, unrecorded(state.optimizer)), (expected, unrecorded(expected_state))
    for a, b in zip(jax.tree.leaves(own), jax.tree.leaves(others), strict=True):
        np.testing.assert_allclose(a, b, rtol=3e-6, atol=3e-7)


def test_schedules_and_what_they_remember_wait_for_the_next_committed_step():
    trainer = trainer_of(Adam(learning_rate=WARMUP, beta1=ReduceLROnPlateau(0.5, factor=0.5, patience=0)))
    params, state, *_ = drive(trainer, "TT")
    for metric in (3.0, 4.0):
        state = state._replace(optimizer=trainer.optimizer.observe(state.optimizer, metric))
    _, after, *_ = drive(trainer, "FNF", params, state)
    assert bits(after.optimizer) == bits(state.optimizer)
    assert float(trainer.optimizer.at(2, after.optimizer.schedules).beta1) == 0.25
    rate = trainer.optimizer.get_learning_rate
    assert float(rate(after.optimizer)) == float(rate(state.optimizer)) == pytest.approx(0.067, rel=1e-6)


def test_a_carry_is_committed_or_kept_with_the_same_verdict():
    """Batch statistics, say: what a bad batch made of them is thrown away."""
    trainer = trainer_of(Adam(), loss_scale=2.0**10)

    @jax.jit
    def step(params, state, mean, x):
        def loss_fn(params, x):
            return jnp.sum(params * x).astype(jnp.float32), 0.5 * mean + 0.5 * jnp.mean(x).astype(jnp.float32)

        (loss, new_mean), grads = trainer.value_and_grad(loss_fn, has_aux=True)(params, state, x)
        params, state, success = trainer.update(params, grads, state, loss=loss)
        return params, state, select(success, new_mean, mean)

    params, mean = jnp.ones(2), jnp.float32(0)
    params, state, mean = step(params, trainer.init(params), mean, jnp.array([1.0, 3.0]))
    assert float(mean) == 1.0
    kept, state, mean = step(params, state, mean, jnp.array([jnp.nan, 3.0]))
    assert (float(mean), bits(kept)) == (1.0, bits(params))
    *_, mean = step(params, state, mean, jnp.array([1.0, 1.0]))
    assert float(mean) == 1.0


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_one_bad_element_anywhere_is_enough(dtype):
    trainer = trainer_of(Adam(), clip_norm=1.0, loss_scale=2.0)
    grads = jax.tree.map(lambda leaf: leaf.astype(dtype), PARAMS)
    step = jax.jit(trainer.update)
    state = trainer.init(PARAMS)
    for i, bad in itertools.product(range(2), (np.inf, -np.inf, np.nan)):
        leaves, structure = jax.tree.flatten(jax.tree.map(np.array, grads))
        leaves[i].flat[-1] = bad
        new_params, new_state, success = step(PARAMS, structure.unflatten(leaves), state)
        assert (bool(success), int(new_state.loss_scale.last_bad_leaf)) == (False, i)
        assert bits((new_params, new_state.optimizer)) == bits((PARAMS, state.optimizer))


@pytest.mark.parametrize("bad", ["embed", "body"])
def test_one_verdict_over_all_groups(bad):
    optimizer = MultiOptimizer({"a": SGD(momentum=0.9), "b": Adam()}, groups={"a": "embed", "b": ...})
    trainer = trainer_of(optimizer)
    state = trainer.init(PARAMS)
    grads = {**PARAMS, bad: jax.tree.map(lambda leaf: leaf * jnp.inf, PARAMS[bad])}
    new_params, new_state, success = trainer.update(PARAMS, grads, state)
    assert bits((new_params, new_state.optimizer)) == bits((PARAMS, state.optimizer))
    assert not bool(success)


def test_finiteness_is_judged_by_the_elements_not_by_the_norm():
    """Sixteen gradients of 3e38 are finite, their norm is no float32."""
    trainer = trainer_of(SGD(learning_rate=1e-37), loss_scale=1.0)
    new_params, _, success = trainer.update(jnp.zeros(16), jnp.full(16, 3e38), trainer.init(jnp.zeros(16)))
    np.testing.assert_allclose(new_params, -30.0, rtol=1e-6)
    assert bool(success)


def test_finiteness_is_judged_after_the_division():
    """Below a scale of 1 dividing by it can overflow a float32."""
    trainer = trainer_of(SGD(), loss_scale=2.0**-4, min_loss_scale=2.0**-10)
    *_, state, success = trainer.update(jnp.zeros(2), jnp.full(2, 3e38), trainer.init(jnp.zeros(2)))
    assert (bool(success), int(state.loss_scale.skipped)) == (False, 1)


# The same numbers at any scale.


def steps_of_adam(trainer, steps=50):
    """Adam on a float32 model, backward from the scaled cotangent, whose powers of two are exact all the way."""
    targets = gradients(7)

    def loss_fn(params):
        errors = jax.tree.map(lambda p, t: jnp.sum(jnp.tanh(p - t) ** 2), params, targets)
        return sum(jax.tree.leaves(errors)) * 3

    def body(carry, _):
        params, state = carry
        loss, vjp = jax.vjp(loss_fn, params)
        (grads,) = vjp(state.loss_scale.scale)
        params, state, success = trainer.update(params, grads, state, loss=loss)
        return (params, state), (state.loss_scale.scale, success)

    carry, history = jax.jit(lambda carry: jax.lax.scan(body, carry, length=steps))((PARAMS, trainer.init(PARAMS)))
    return carry[0], *history


def test_fifty_steps_of_adam_and_clipping_do_not_depend_on_the_scale():
    settings = [
        dict(loss_scale=1.0, dynamic_loss_scaling=False),
        dict(loss_scale=2.0**15, dynamic_loss_scaling=False),
        dict(loss_scale=2.0**15, growth_interval=7),
    ]
    runs = [steps_of_adam(trainer_of(Adam(learning_rate=0.05), clip_norm=1.0, **setting)) for setting in settings]
    assert bits(runs[0][0]) == bits(runs[1][0]) == bits(runs[2][0])
    assert bits(runs[0][0]) != bits(PARAMS)
    assert [float(scales[-1]) for _, scales, _ in runs] == [1.0, 2.0**15, 2.0**22]
    assert all(success.all() for *_, success in runs)


# scan, vmap, one trace.


def test_scan():
    trainer, errors, grads = trainer_of(growth_interval=2), jnp.array([0, 0, np.inf, 0, 0, 0, np.inf, np.inf, 0]), gradients(1)

    def body(carry, error):
        params, state, success = trainer.update(carry[0], spoil(grads, error), carry[1])
        return (params, state), (state.loss_scale.scale, success)

    carry, (scales, success) = jax.lax.scan(body, (PARAMS, trainer.init(PARAMS)), errors)
    np.testing.assert_array_equal(scales / 2**15, [1, 2, 1, 1, 2, 2, 1, 0.5, 0.5])
    np.testing.assert_array_equal(success, errors == 0)
    assert int(carry[1].optimizer.step) == 6
    assert specs(carry) == specs((PARAMS, trainer.init(PARAMS)))


@pytest.mark.parametrize("optimizer", [Adam(), Accumulate(Adam(), every=1)])
def test_under_vmap_only_the_member_that_overflowed_skips(optimizer):
    trainer = trainer_of(optimizer)
    many = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), PARAMS)
    grads = many | {"embed": many["embed"].at[1, 0, 0].set(jnp.inf)}
    state = jax.vmap(trainer.init)(many)
    new_params, new_state, success = jax.jit(jax.vmap(trainer.update))(many, scaled_by(grads, 2.0**15), state, jnp.ones(3))
    np.testing.assert_array_equal(success, [True, False, True])
    np.testing.assert_array_equal(new_state.loss_scale.scale, [2.0**15, 2.0**14, 2.0**15])
    alone, *_ = trainer.update(PARAMS, scaled_by(PARAMS, 2.0**15), trainer.init(PARAMS))
    for i, expected in enumerate((alone, PARAMS, alone)):
        for a, b in zip(jax.tree.leaves(new_params), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-6)
    assert bits(jax.tree.map(lambda leaf: leaf[1], new_params)) == bits(PARAMS)


def scaled_by(grads, scale):
    return jax.tree.map(lambda grad: grad * scale, grads)


def test_one_trace_over_ten_steps_with_skips():
    trainer = trainer_of(AdamW(learning_rate=WARMUP), clip_norm=1.0, growth_interval=2, loss_scale=2.0**10)
    traces = []

    @jax.jit
    def step(params, state, x):
        traces.append(None)
        loss, grads = trainer.value_and_grad(lambda p, x: jnp.sum((p["embed"] * x).astype(jnp.float32)))(params, state, x)
        return trainer.update(params, grads, state, loss=loss)

    params, state = PARAMS, trainer.init(PARAMS)
    successes = []
    for x in (1.0, 2.0, 100.0, 1.0, jnp.nan, 1.0, 1.0, 100.0, 1.0, 1.0):
        params, state, success = step(params, state, jnp.float32(x))
        successes.append(bool(success))
    assert successes == [True, True, False, True, False, True, True, False, True, True]
    assert len(traces) == step._cache_size() == 1
    assert int(state.loss_scale.bad_input) == 1


# What it compiles to.


@pytest.mark.parametrize("optimizer", [Adam(), Accumulate(Adam(), every=2)])
@pytest.mark.parametrize("policy", ["float16", "bfloat16"])
def test_donated_buffers_are_reused(optimizer, policy):
    trainer = trainer_of(optimizer, policy=policy, clip_norm=1.0)
    params = make_params()
    state = trainer.init(params)

    def step(params, state, x):
        loss_fn = lambda p, x: jnp.sum((p["embed"] * x).astype(jnp.float32))  # noqa: E731
        loss, grads = trainer.value_and_grad(loss_fn)(params, state, x)
        return trainer.update(params, grads, state, loss=loss)

    step = jax.jit(step, donate_argnums=(0, 1))
    for x in (1.0, jnp.inf, 1.0):
        old = jax.tree.leaves((params, state))
        params, state, _ = step(params, state, jnp.float32(x))
        assert all(leaf.is_deleted() for leaf in old)
    trainer.init(make_params())


@pytest.mark.newest
def test_no_copy_of_a_donated_buffer():
    """Selecting with `where` around the update would keep the old moments alive: 8 bytes per parameter."""
    params = {"w": jnp.ones((256, 256))}
    trainer = trainer_of(Adam(), clip_norm=1.0)
    lowered = jax.jit(trainer.update, donate_argnums=(0, 2)).lower(params, params, trainer.init(params), jnp.float32(1))
    assert lowered.compile().memory_analysis().temp_size_in_bytes < 0.5 * 256 * 256


def whole_step_jaxpr(policy):
    """The jaxpr of a whole step, and the variable that holds the loss scale."""
    trainer = trainer_of(Adam(), policy=policy, clip_norm=1.0)

    def step(scale, params, state, x):
        state = state._replace(loss_scale=state.loss_scale._replace(scale=scale))
        loss_fn = lambda p, x: jnp.sum((p["embed"] * x).astype(jnp.float32))  # noqa: E731
        loss, grads = trainer.value_and_grad(loss_fn)(params, state, x)
        return trainer.update(params, grads, state, loss=loss)

    state = trainer.init(PARAMS)
    jaxpr = jax.make_jaxpr(step)(state.loss_scale.scale, PARAMS, state, jnp.float32(1)).jaxpr
    return jaxpr, jaxpr.invars[0]


@pytest.mark.parametrize("policy", ["bfloat16", "float32"])
def test_without_loss_scaling_the_scale_is_only_handed_on(policy):
    jaxpr, scale = whole_step_jaxpr(policy)
    names, reached = uses(jaxpr, [scale])
    assert names <= {"select_n"}
    assert sum(reached) == 1


def test_with_loss_scaling_it_multiplies_and_divides():
    """The test above can tell."""
    jaxpr, scale = whole_step_jaxpr("float16")
    assert {"mul", "div"} <= uses(jaxpr, [scale])[0]


@pytest.mark.parametrize("policy", ["bfloat16", "float32"])
def test_without_loss_scaling_checking_and_counting_stay_on(policy):
    params, state, scales, success = drive(trainer_of(Adam(), policy=policy, growth_interval=1), "TTFNT")
    np.testing.assert_array_equal(scales.scale, [1.0] * 5)
    np.testing.assert_array_equal(success, [True, True, False, False, True])
    counts = state.loss_scale
    assert (int(counts.skipped), int(counts.bad_input), int(counts.attempts), int(state.optimizer.step)) == (2, 1, 5, 3)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((params, state)))


def test_a_static_scale_skips_and_counts_but_never_moves():
    params, state, scales, success = drive(trainer_of(loss_scale=128.0, dynamic_loss_scaling=False, growth_interval=1), "TFTF")
    np.testing.assert_array_equal(scales.scale, [128.0] * 4)
    np.testing.assert_array_equal(success, [True, False, True, False])
    assert int(state.loss_scale.skipped) == 2
    before, *_ = drive(trainer_of(loss_scale=128.0, dynamic_loss_scaling=False), "TFT")
    assert bits(params) == bits(before)


def test_the_optimizer_runs_in_one_branch_only():
    trainer = trainer_of(Adam())
    jaxpr = jax.make_jaxpr(trainer.update)(PARAMS, PARAMS, trainer.init(PARAMS)).jaxpr
    (pair,) = branches(jaxpr)
    roots = [primitives(branch)["tanh"] for branch in pair]
    assert sorted(roots) == [0, primitives(jaxpr)["tanh"]]
    assert max(roots) > 0


def test_spoiled_gradients_reach_nothing_even_when_the_update_would_blow_up():
    """Selection is by branch, never by multiplying: 0 · NaN is NaN."""
    trainer = trainer_of(SGD(learning_rate=1e30, momentum=0.9, weight_decay=0.1), clip_norm=0.0)
    state, bad = trainer.init(PARAMS), spoil(PARAMS, jnp.nan)
    many = jax.jit(jax.vmap(trainer.update, axis_size=1, in_axes=None))  # under vmap the branch becomes a select
    for update in (trainer.update, many):
        new_params, new_state, _ = update(PARAMS, bad, state)
        assert bits((new_params, new_state.optimizer)) == bits((PARAMS, state.optimizer))
