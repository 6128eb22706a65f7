"""The trainer's two ways to be driven, its numbers, its trees, and how often it compiles."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from steps import PARAMS, batch, mlp, mlp_params, scaled, spoil, squared_error, trainer_of
from zoo import bits, specs

from mithril_opt import SGD, Adam, AdamW, Frozen, MultiOptimizer, Policy
from mithril_opt.mixed_precision.commit import commit

# The JAX way.

CALLS = {
    "params": (lambda p, x, y: jnp.sum(p["w"] * x) * y, dict(), (2.0, 3.0), {}),
    "argnums-int": (lambda p, x, y: jnp.sum(p["w"] * x) * y, dict(argnums=1), (2.0, 3.0), {}),
    "argnums-negative": (lambda p, x, y: jnp.sum(p["w"] * x) * y, dict(argnums=-1), (2.0, 3.0), {}),
    "argnums-tuple": (lambda p, x, y: jnp.sum(p["w"] * x) * y, dict(argnums=(0, 2)), (2.0, 3.0), {}),
    "argnums-tuple-of-one": (lambda p, x, y: jnp.sum(p["w"] * x) * y, dict(argnums=(0,)), (2.0, 3.0), {}),
    "aux": (lambda p, x: (jnp.sum(p["w"] * x), {"x": x}), dict(has_aux=True), (2.0,), {}),
    "aux-and-argnums": (lambda p, x: (jnp.sum(p["w"] * x), x), dict(has_aux=True, argnums=(1, 0)), (2.0,), {}),
    "keywords": (lambda p, x, *, state, params: jnp.sum(p["w"] * x) * state + params, {}, (2.0,), dict(state=3.0, params=1.0)),
}


@pytest.mark.parametrize("policy", ["float32", "float16"])
@pytest.mark.parametrize("name", CALLS)
def test_value_and_grad_mirrors_jax(name, policy):
    fun, options, args, kwargs = CALLS[name]
    loss_fn = lambda *args, **kwargs: jax.tree.map(lambda leaf: leaf.astype(jnp.float32), fun(*args, **kwargs))  # noqa: E731
    args, kwargs = jax.tree.map(jnp.float32, (args, kwargs))
    params = {"w": jnp.array([1.0, 2.0])}
    trainer = trainer_of(policy=policy, loss_scale=2.0**10)
    state = trainer.init(params)
    value, grads = trainer.value_and_grad(loss_fn, **options)(params, state, *args, **kwargs)
    expected_value, expected = jax.value_and_grad(loss_fn, **options)(params, *args, **kwargs)
    assert specs((value, grads))[0] == specs((expected_value, expected))[0]
    assert bits(value) == bits(expected_value)
    assert bits(grads) == bits(scaled(trainer, expected, state))


def test_the_loss_is_exact_and_does_not_overflow_by_the_scale():
    trainer = trainer_of(loss_scale=2.0**120, max_loss_scale=2.0**120)
    loss_fn = lambda p: p.astype(jnp.float32) * 60000  # noqa: E731
    loss, grads = trainer.value_and_grad(loss_fn)(jnp.float32(1), trainer.init(jnp.float32(1)))
    assert (float(loss), float(grads)) == (60000.0, np.inf)


def test_a_float16_loss_is_warned_of_and_clamped():
    """65504 is the largest float16, so the cotangent must stay below; what is missing is multiplied in afterwards."""
    trainer = trainer_of(loss_scale=2.0**16)
    params = jnp.array([1.0, 2.0])
    state = trainer.init(params)
    with pytest.warns(UserWarning, match="the loss is float16, so no loss scale above 32768") as caught:
        loss, grads = jax.jit(trainer.value_and_grad(lambda p: jnp.sum(p * jnp.float16(0.25))))(params, state)
    assert len(caught) == 1
    assert (float(loss), loss.dtype) == (0.75, jnp.float32)
    np.testing.assert_array_equal(grads, [2.0**14] * 2)
    new_params, _, success = trainer.update(params, grads, state, loss=loss)
    np.testing.assert_array_equal(new_params, [0.875, 1.875])
    assert bool(success)


def test_a_float32_loss_that_comes_out_in_float16_is_clamped_too():
    trainer = trainer_of(loss_scale=2.0**20, policy=Policy("float16", output_dtype="float16"))
    with pytest.warns(UserWarning, match="the loss is float16"):
        _, grads = trainer.value_and_grad(lambda p: p.astype(jnp.float32))(jnp.float32(1), trainer.init(jnp.float32(1)))
    assert float(grads) == 2.0**20


# The Mithril way.


def halves(trainer):
    traces = []

    @jax.jit
    def first(params, state, x):
        traces.append("forward")
        return trainer.forward(params, state, x)

    @jax.jit
    def second(params, state, pullback, gradients):
        traces.append("backward")
        return trainer.backward_and_update(params, state, pullback, gradients)

    return first, second, traces


@pytest.mark.parametrize("policy", ["float16", "bfloat16", "float32"])
def test_two_halves_on_either_side_of_jit_are_the_whole_step(policy):
    trainer = trainer_of(Adam(learning_rate=0.01), mlp, policy=policy, loss_scale=2.0**9, clip_norm=1.0)
    first, second, traces = halves(trainer)
    whole = jax.jit(trainer.value_and_grad(squared_error, has_aux=True))
    params, state = mlp_params(), trainer.init(mlp_params())
    peer, peer_state = params, state
    for i in range(6):
        x, y = batch(i)
        outputs, pullback = first(params, state, x)
        labels = y.astype(policy).astype(jnp.float32)  # as `squared_error` sees them
        gradients = 2 * (outputs - labels) / outputs.size
        params, state, success = second(params, state, pullback, gradients)
        (loss, _), grads = whole(peer, peer_state, x, y)
        peer, peer_state, _ = trainer.update(peer, grads, peer_state, loss=loss)
        assert bool(success)
    assert traces == ["forward", "backward"]
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(peer), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
    assert bits(state.loss_scale) == bits(peer_state.loss_scale)


def test_one_trace_of_each_half_over_ten_steps_with_skips():
    trainer = trainer_of(Adam(learning_rate=0.01), mlp, growth_interval=3)
    first, second, traces = halves(trainer)
    params, state = mlp_params(), trainer.init(mlp_params())
    for i, letter in enumerate("TTFTNTFTTT"):
        outputs, pullback = first(params, state, batch(i)[0])
        gradients = jnp.full_like(outputs, {"T": 1e-3, "F": 1e10, "N": np.nan}[letter])
        params, state, success = second(params, state, pullback, gradients)
        assert bool(success) == (letter == "T")
    assert traces == ["forward", "backward"]
    assert (int(state.optimizer.step), int(state.loss_scale.skipped), int(state.loss_scale.bad_input)) == (7, 3, 1)


def test_outputs_of_any_structure():
    def model(params, x):
        return {"best": jnp.argmax(x), "y": (params["w"] * x, params["w"] + 1), "unused": params["w"]}

    params = {"w": jnp.array([1.0, 2.0]), "n": 3}
    trainer = trainer_of(SGD(learning_rate=1.0), model, loss_scale=8.0)
    state = trainer.init(params)
    outputs, pullback = trainer.forward(params, state, jnp.array([3.0, 4.0]))
    gradients = {"best": None, "y": (jnp.array([1.0, 0.5]), jnp.array([0.0, 1.0])), "unused": None}
    new_params, _, success = trainer.backward_and_update(params, state, pullback, gradients)
    np.testing.assert_array_equal(new_params["w"], [1.0 - 3.0, 2.0 - 2.0 - 1.0])
    assert (int(outputs["best"]), new_params["n"], bool(success)) == (1, 3, True)


# Numbers.


def test_gradients_are_divided_by_the_scale_that_produced_them():
    """Growing in the same step, a scaler that divides by the new scale would apply a gradient of 1 instead of 2."""
    trainer = trainer_of(SGD(learning_rate=1.0), loss_scale=4.0, growth_interval=1)
    params = jnp.array([1.0])
    state = trainer.init(params)
    loss, grads = trainer.value_and_grad(lambda w: jnp.sum(w.astype(jnp.float32) ** 2))(params, state)
    new_params, state, _ = trainer.update(params, grads, state, loss=loss)
    assert (float(new_params[0]), float(state.loss_scale.scale)) == (-1.0, 8.0)


def test_a_step_by_hand():
    trainer = trainer_of(SGD(learning_rate=0.5))
    params = jnp.array([1.0, 2.0, 3.0, 4.0])
    new_params, *_ = trainer.update(params, jnp.array([1.0, 6.0, 7.0, 2.0]) * 2.0**15, trainer.init(params))
    np.testing.assert_array_equal(new_params, [0.5, -1.0, -0.5, 3.0])


@pytest.mark.parametrize(
    ("grad", "unscaled"), [(2.0**-26 * 2.0**15, 2.0**-26), (np.float16(1e-3), 3.0529918e-08), (6e-8, 2.0**-24 / 2**15)]
)
def test_float16_gradients_are_unscaled_in_float32(grad, unscaled):
    """In float16 all of them would be 0 or the smallest subnormal."""
    params = jnp.zeros(1)
    trainer = trainer_of(SGD(learning_rate=1.0))
    new_params, *_ = trainer.update(params, jnp.asarray([grad], jnp.float16), trainer.init(params))
    np.testing.assert_array_equal(-new_params, np.float32([unscaled]))


def test_a_scale_that_is_no_power_of_two_divides_to_one_rounding():
    trainer = trainer_of(SGD(learning_rate=1.0), loss_scale=1000.0)
    grads = jnp.asarray(np.random.default_rng(0).normal(size=100), jnp.float32)
    new_params, *_ = trainer.update(jnp.zeros(100), grads * 1000, trainer.init(jnp.zeros(100)))
    np.testing.assert_allclose(-new_params, grads, rtol=3e-7)


CLIPPED = [
    ([300.0] * 4, jnp.float16, [0.5] * 4),
    ([1e20] * 4, jnp.float32, [0.5] * 4),
    ([1e38] * 4, jnp.float32, [0.5] * 4),
    ([0.0] * 4, jnp.float32, [0.0] * 4),
    ([0.25] * 4, jnp.float32, [0.25] * 4),
    ([16.0] * 4096, jnp.float16, [1 / 64] * 4096),
]


@pytest.mark.parametrize(("values", "dtype", "expected"), CLIPPED)
def test_clipping_cannot_overflow(values, dtype, expected):
    trainer = trainer_of(SGD(learning_rate=1.0), loss_scale=1.0, clip_norm=1.0)
    params = jnp.zeros(len(values))
    new_params, _, success = trainer.update(params, jnp.asarray(values, dtype), trainer.init(params))
    np.testing.assert_allclose(-new_params, expected, rtol=1e-6)
    assert bool(success)


def test_adams_second_moment_stays_finite_when_a_huge_gradient_is_clipped():
    trainer = trainer_of(Adam(), loss_scale=1.0, clip_norm=1.0)
    _, state, success = trainer.update(jnp.zeros(4), jnp.full(4, 1e20), trainer.init(jnp.zeros(4)))
    np.testing.assert_allclose(state.optimizer.slots.nu, 0.25e-3, rtol=1e-6)
    assert bool(success)


def test_it_is_the_unscaled_gradients_that_are_clipped_over_all_groups():
    optimizer = MultiOptimizer({"a": SGD(learning_rate=1.0), "b": SGD(learning_rate=1.0)}, groups={"a": "a", "b": ...})
    trainer = trainer_of(optimizer, loss_scale=1024.0, clip_norm=2.5)
    params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    grads = {"a": jnp.array([3.0]) * 1024, "b": jnp.array([4.0]) * 1024}
    new_params, *_ = trainer.update(params, grads, trainer.init(params))
    np.testing.assert_allclose([new_params["a"][0], new_params["b"][0]], [-1.5, -2.0], rtol=1e-6)
    untouched, *_ = trainer.update(params, jax.tree.map(lambda g: g / 2, grads), trainer.init(params))
    np.testing.assert_array_equal([untouched["a"][0], untouched["b"][0]], [-1.5, -2.0])


# What is in the trees.


def test_passengers_missing_gradients_and_python_floats():
    key, passengers = jax.random.key(0), {"n": 7, "name": "relu", "flag": np.array(True), "act": jnp.tanh}
    params = {"w": jnp.array([1.0, 2.0]), "none": None, "still": jnp.ones(3), "rate": 0.5, "key": key, **passengers}
    trainer = trainer_of(AdamW(learning_rate=0.1, weight_decay=0.5))
    state = trainer.init(params)
    grads = {"w": jnp.array([1.0, -1.0]), "none": None, "still": None, "rate": 1.0, "key": None, **dict.fromkeys(passengers)}
    grads["n"], grads["flag"] = jnp.nan, np.zeros((), jax.dtypes.float0)
    new_params, new_state, success = trainer.update(params, scaled_floats(grads, 2.0**15), state, loss=1.0)
    assert bool(success)
    assert all(new_params[name] is params[name] for name in (*passengers, "none", "key"))
    assert bits(new_params["still"]) == bits(params["still"])
    np.testing.assert_allclose(new_params["w"], [0.85, 2.0], rtol=1e-6)
    np.testing.assert_allclose(new_params["rate"], 0.5 * 0.95 - 0.1, rtol=1e-6)
    assert jax.tree.structure(new_state) == jax.tree.structure(state)


def scaled_floats(grads, scale):
    return {name: grad * scale if name in ("w", "rate") else grad for name, grad in grads.items()}


def test_value_and_grad_and_update_with_passengers():
    params = {"w": jnp.array([1.0, 2.0]), "n": jnp.arange(2), "name": "relu", "key": jax.random.key(0)}
    trainer = trainer_of(SGD(learning_rate=1.0))
    state = trainer.init(params)
    loss_fn = lambda p: jnp.sum(p["w"].astype(jnp.float32) * p["n"].astype(jnp.float32))  # noqa: E731
    loss, grads = trainer.value_and_grad(loss_fn)(params, state)
    assert [grads[name] for name in ("n", "name", "key")] == [None] * 3
    new_params, _, success = trainer.update(params, grads, state, loss=loss)
    np.testing.assert_array_equal(new_params["w"], [1.0, 1.0])
    assert bool(success)


@pytest.mark.parametrize("params", [{}, {"n": 3}, {"none": None}, {"w": jnp.zeros((0, 3))}])
def test_nothing_to_train(params):
    trainer = trainer_of(Adam(), clip_norm=1.0)
    new_params, state, success = trainer.update(params, params, trainer.init(params))
    assert jax.tree.structure(new_params) == jax.tree.structure(params)
    assert (int(state.optimizer.step), bool(success), int(state.loss_scale.last_bad_leaf)) == (1, True, -1)


def test_gradients_of_frozen_leaves_do_not_count():
    optimizer = MultiOptimizer({"a": SGD(learning_rate=1.0), "b": Frozen()}, groups={"a": "a", "b": ...})
    trainer = trainer_of(optimizer, loss_scale=1.0, clip_norm=1.0)
    params = {"a": jnp.zeros(1), "b": jnp.ones(2)}
    new_params, _, success = trainer.update(params, {"a": jnp.ones(1), "b": jnp.full(2, jnp.inf)}, trainer.init(params))
    assert (float(new_params["a"][0]), bool(success)) == (-1.0, True)


def test_a_group_may_have_no_gradient_at_all():
    """As when two parts of a model train in turns. Groups are a matter of the parameters, not of the gradients."""
    seen = lambda path, leaf: leaf.dtype == jnp.float32  # noqa: E731
    optimizer = MultiOptimizer({"a": SGD(learning_rate=1.0), "b": Adam()}, groups={"a": seen, "b": ...})
    trainer = trainer_of(optimizer, loss_scale=1.0)
    params = {"a": jnp.zeros(1), "b": jnp.ones(2, jnp.float16)}
    new_params, _, success = trainer.update(params, {"a": jnp.ones(1, jnp.float16), "b": None}, trainer.init(params))
    assert (float(new_params["a"][0]), bool(success)) == (-1.0, True)
    assert bits(new_params["b"]) == bits(params["b"])


def test_complex_parameters():
    trainer = trainer_of(SGD(learning_rate=1.0), loss_scale=4.0, clip_norm=10.0)
    params = {"z": jnp.array([3 + 4j])}
    state = trainer.init(params)
    loss, grads = trainer.value_and_grad(lambda p: jnp.sum(jnp.abs(p["z"]) ** 2))(params, state)
    new_params, state, success = trainer.update(params, grads, state, loss=loss)
    np.testing.assert_allclose(new_params["z"], [3 + 4j - 2 * (3 + 4j)], rtol=1e-6)
    bad, state, success = trainer.update(params, {"z": jnp.array([complex(1, np.inf)])}, state)
    assert bits(bad) == bits(params)
    assert not bool(success)


# Compiling.


def test_it_is_a_value():
    """It compares, hashes, pickles and prints; its state can be had without arrays."""
    trainer = trainer_of(Adam(learning_rate=0.1), mlp, policy="bfloat16", clip_norm=1.0)
    copy = pickle.loads(pickle.dumps(trainer))
    assert (copy, hash(copy)) == (trainer, hash(trainer))
    assert all(str(number) in repr(trainer) for number in (0.1, 0.9, 0.999, 1e-8, 32768.0, 2000, 1.0))
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), PARAMS)
    assert specs(trainer.init(abstract)) == specs(trainer.init(PARAMS))
    assert specs(jax.jit(trainer.init)(PARAMS)) == specs(trainer.init(PARAMS))


def test_a_call_outside_jit_compiles_itself_once():
    trainer = trainer_of(Adam(learning_rate=0.0123), clip_norm=1.0)
    params, state = PARAMS, trainer.init(PARAMS)
    commit.clear_cache()
    for letter in "TFTNT":
        grads = spoil(PARAMS, jnp.inf) if letter == "F" else PARAMS
        params, state, _ = trainer.update(params, grads, state, loss=jnp.float32(np.nan if letter == "N" else 1.0))
    assert commit._cache_size() == 1


def test_one_trace_whatever_the_settings():
    traces = []

    @jax.jit
    def step(trainer, params, state):
        traces.append(None)
        return trainer.update(params, scaled(trainer, params, state), state)

    for scale in (2.0, 4.0, 8.0):
        trainer = trainer_of(Adam(learning_rate=0.1 * scale), loss_scale=scale, growth_interval=int(scale), clip_norm=scale)
        *_, success = step(trainer, PARAMS, trainer.init(PARAMS))
        assert bool(success)
    assert len(traces) == 1


def test_traced_settings_are_swept_with_vmap():
    def scale_after(backoff, interval):
        trainer = trainer_of(backoff_factor=backoff, growth_interval=interval)
        state = trainer.init(jnp.ones(1))
        for grad in (jnp.ones(1), jnp.full(1, jnp.inf)):
            _, state, _ = trainer.update(jnp.ones(1), grad, state)
        return state.loss_scale.scale

    scales = jax.vmap(scale_after)(jnp.array([0.5, 0.25]), jnp.array([1, 2]))
    np.testing.assert_array_equal(scales, [2.0**15, 2.0**13])
