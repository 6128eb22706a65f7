"""A batch in micro-batches, one after the other within a step: what the whole batch gives, from one loop."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxprs import equations
from steps import batch, mlp, mlp_params, squared_error, trainer_of
from zoo import bits, specs

from mithril_opt import AdamW, Policy

FLOAT32 = {"policy": "float32"}


def rows(n=8, seed=0):
    """Inputs and targets of a perceptron, n rows."""
    parts = [batch(seed + i) for i in range(-(-n // 8))]
    return tuple(jnp.concatenate(column)[:n] for column in zip(*parts, strict=True))


def loss_fn(params, x, y):
    return squared_error(params, x, y)[0]


def close(actual, expected, rtol=2e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-7), actual, expected)


# What the whole batch gives.


@pytest.mark.parametrize("k", [1, 2, 3, 4, 12])
@pytest.mark.parametrize("jit", [jax.jit, lambda function: function], ids=["jit", "eager"])
def test_loss_and_gradients_are_those_of_the_whole_batch(k, jit):
    trainer, params = trainer_of(**FLOAT32), mlp_params()
    value_and_grad = jit(trainer.value_and_grad(loss_fn, micro_batches=k))
    expected = jax.value_and_grad(loss_fn)(params, *rows(12))
    actual = value_and_grad(params, trainer.init(params), *rows(12))
    close(actual, expected)
    assert specs(actual) == specs(expected)


def test_one_micro_batch_is_the_batch_to_the_bit():
    trainer, params = trainer_of(policy="float16"), mlp_params()
    arguments = params, trainer.init(params), *rows()
    one, none = (trainer.value_and_grad(loss_fn, **given)(*arguments) for given in ({"micro_batches": 1}, {}))
    assert bits(one) == bits(none)


def test_scaled_gradients_in_float16_are_the_mean_of_those_of_the_micro_batches():
    """Each computed alone; the mean is taken in float32, and is scaled as each of them is."""
    trainer, params = trainer_of(policy="float16", loss_scale=2.0**10), mlp_params()
    state, (x, y) = trainer.init(params), rows()
    alone = [trainer.value_and_grad(loss_fn)(params, state, x[i::4], y[i::4]) for i in range(4)]
    expected = jax.tree.map(lambda *leaves: np.mean(np.float64(leaves), axis=0), *alone)
    close(trainer.value_and_grad(loss_fn, micro_batches=4)(params, state, x, y), expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_the_mean_is_in_float32_whatever_the_parameters_are(dtype):
    """1 + 3 · 2⁻⁹ is no bfloat16, and 2 · 40,000 no float16."""
    trainer = trainer_of(policy=Policy(dtype), loss_scale=1.0)
    params = {"w": jnp.zeros((), dtype), "n": jnp.int32(7)}
    x = jnp.array([1.0, 1.0, 1.0, 1 + 3 * 2.0**-7]) if dtype == "bfloat16" else jnp.full(4, 40_000.0)
    loss = lambda params, x: (params["w"] * x[0]).astype(jnp.float32)  # noqa: E731
    _, grads = trainer.value_and_grad(loss, micro_batches=4)(params, trainer.init(params), x)
    assert grads["n"] is None
    assert grads["w"].dtype == jnp.float32
    assert float(grads["w"]) == float(jnp.mean(x.astype(dtype).astype(jnp.float32)))


def test_a_step_is_that_of_the_whole_batch():
    trainer, params = trainer_of(AdamW(learning_rate=0.1), clip_norm=0.1, **FLOAT32), mlp_params()

    @functools.partial(jax.jit, static_argnums=3)
    def step(params, state, batch, k):
        loss, grads = trainer.value_and_grad(loss_fn, micro_batches=k)(params, state, *batch)
        return trainer.update(params, grads, state, loss=loss)

    whole, cut = ((params, trainer.init(params)) for _ in range(2))
    for seed in range(3):
        *whole, _ = step(*whole, rows(8, seed), 1)
        *cut, success = step(*cut, rows(8, seed), 4)
        assert bool(success)
    close(cut, whole, rtol=1e-5)


# How arguments are cut.


def test_every_kind_of_argument():
    """Arrays are cut by rows, keys are split, the rest is handed on; by position and by keyword."""
    seen = []

    def loss(params, rows, key, factor, *, more, flag, name):
        seen.append((rows["a"].shape, rows["b"].shape, key.shape, factor, more.shape, flag, name))
        draw = jax.random.uniform(key)
        return params * jnp.mean(rows["a"]) * factor, {"rows": rows, "more": more, "draw": draw, "key": key}

    trainer, key = trainer_of(**FLOAT32), jax.random.key(3)
    batch = {"a": jnp.arange(6.0), "b": jnp.arange(12).reshape(6, 2)}
    given = batch, key, 2.0
    keywords = {"more": np.arange(6), "flag": True, "name": "train"}
    value_and_grad = trainer.value_and_grad(loss, has_aux=True, micro_batches=3)
    (value, aux), grad = value_and_grad(jnp.float32(1), trainer.init(jnp.float32(1)), *given, **keywords)
    assert set(seen) == {((2,), (2, 2), (), 2.0, (2,), True, "train")}
    assert (float(value), float(grad)) == (5.0, 5.0)
    np.testing.assert_array_equal(aux["rows"]["a"], [[0, 3], [1, 4], [2, 5]])
    np.testing.assert_array_equal(aux["rows"]["b"][1], [[2, 3], [8, 9]])
    np.testing.assert_array_equal(aux["more"], [[0, 3], [1, 4], [2, 5]])
    assert bits(jax.random.key_data(aux["key"])) == bits(jax.random.key_data(jax.random.split(key, 3)))
    assert len(set(aux["draw"].tolist())) == 3


@pytest.mark.parametrize("argnums", [1, (0, 1), (-2, 0), [0, 1]])
def test_what_is_differentiated_is_not_cut(argnums):
    loss = lambda a, b, x: jnp.mean(x @ a) * jnp.sum(b)  # noqa: E731
    trainer = trainer_of(**FLOAT32)
    arguments = jnp.array([1.0, 2.0]), jnp.array([3.0, 4.0, 5.0]), jnp.arange(8.0).reshape(4, 2)
    actual = trainer.value_and_grad(loss, argnums=argnums, micro_batches=2)(arguments[0], trainer.init(0.0), *arguments[1:])
    expected = jax.value_and_grad(loss, argnums=argnums)(*arguments)
    close(actual, expected)


BAD = [
    (dict(micro_batches=0), ("ones(4)",), ValueError, "micro_batches must be an integer of at least 1, got 0"),
    (dict(micro_batches=2.0), ("ones(4)",), ValueError, "got 2.0"),
    (dict(micro_batches=True), ("ones(4)",), ValueError, "got True"),
    (dict(micro_batches=3), ("ones(4)",), ValueError, "micro_batches=3 does not divide the 4 rows of the argument '1'"),
    (dict(micro_batches=2), ("ones(4)", "ones(6)"), ValueError, "the argument '2' has 6 rows, but '1' has 4; what is no batch"),
    (dict(micro_batches=2, argnums=(0, -2)), ("ones(4)",), ValueError, "names an argument twice"),
]


@pytest.mark.parametrize(("options", "given", "error", "message"), BAD)
def test_bad_input(options, given, error, message):
    trainer, arguments = trainer_of(), [jnp.ones(int(text[5:-1])) for text in given]
    with pytest.raises(error, match=message):
        trainer.value_and_grad(lambda params, *_: params, **options)(jnp.float32(1), trainer.init(jnp.float32(1)), *arguments)


def test_the_argument_is_named_by_its_path():
    trainer, params = trainer_of(), jnp.float32(1)
    value_and_grad = trainer.value_and_grad(lambda params, mask: params, micro_batches=2)
    with pytest.raises(ValueError, match="5 rows of the argument 'mask/x'"):
        value_and_grad(params, trainer.init(params), mask={"x": jnp.ones(5)})


# Steps that go wrong.


@pytest.mark.parametrize(("value", "bad_input", "scale"), [(60_000.0, 0, 2.0**14), (np.nan, 1, 2.0**15)])
def test_one_bad_micro_batch_spoils_the_step(value, bad_input, scale):
    """An overflow of the gradients of one micro-batch is the scale's fault, a loss that is NaN the batch's."""
    trainer, params = trainer_of(AdamW(), policy="float16"), {"w": jnp.ones(2)}
    state = trainer.init(params)
    x = jnp.ones((4, 2)).at[2, 0].set(value)
    loss_fn = lambda params, x: jnp.mean((params["w"][None] * x).astype(jnp.float32))  # noqa: E731
    loss, grads = trainer.value_and_grad(loss_fn, micro_batches=4)(params, state, x)
    new_params, new_state, success = trainer.update(params, grads, state, loss=loss)
    assert not success
    assert bits((new_params, new_state.optimizer)) == bits((params, state.optimizer))
    assert (int(new_state.loss_scale.bad_input), float(new_state.loss_scale.scale)) == (bad_input, scale)


# One loop, one buffer.


def test_one_loop_whose_only_buffer_is_the_sum():
    trainer, params = trainer_of(**FLOAT32), mlp_params()
    calls = []

    def loss(params, x, y):
        calls.append(None)
        return loss_fn(params, x, y)

    run = jax.jit(trainer.value_and_grad(loss, micro_batches=4))
    jaxpr = run.trace(params, trainer.init(params), *rows()).jaxpr.jaxpr
    assert len(calls) == 1
    (scan,) = [eqn for eqn in equations(jaxpr) if eqn.primitive.name == "scan"]
    body = scan.params["jaxpr"]
    shapes = [(var.aval.shape, inside.aval.shape) for var, inside in zip(scan.outvars, body.jaxpr.outvars, strict=True)]
    carried = [shape for shape, inside in shapes if shape == inside]  # what is not stacked
    assert sorted(carried) == sorted(leaf.shape for leaf in params.values())
    assert scan.params["length"] == 4


def test_activations_take_a_part_of_the_memory():
    """Compiled for a batch of 512 rows whose activations are 8 times the parameters."""
    trainer = trainer_of(policy="bfloat16")
    params = {"w1": jnp.ones((64, 256)), "b1": jnp.ones(256), "w2": jnp.ones((256, 4))}
    x, y = jnp.ones((512, 64)), jnp.ones((512, 4))

    def temporaries(k):
        run = jax.jit(trainer.value_and_grad(loss_fn, micro_batches=k))
        return run.lower(params, trainer.init(params), x, y).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(8) < 0.4 * temporaries(1)


# Many devices.


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def test_rows_stay_on_their_devices(axis_type):
    """Sums over devices are the only collectives, and the numbers are those of one device."""
    trainer, params = trainer_of(**FLOAT32), mlp_params()
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    place = lambda tree, spec: jax.device_put(tree, NamedSharding(mesh, spec))  # noqa: E731
    model = lambda params, x: mlp(params, x) if axis_type is AxisType.Auto else jnp.tanh(x @ params["w1"]) @ params["w2"]  # noqa: E731
    loss_fn = lambda params, x, y: jnp.mean((model(params, x) - y) ** 2)  # noqa: E731
    arguments = place(params, PartitionSpec()), trainer.init(params), *place(rows(32), PartitionSpec("data"))
    compiled = jax.jit(trainer.value_and_grad(loss_fn, micro_batches=4)).lower(*arguments).compile()
    assert not any(name in compiled.as_text() for name in ("all-gather", "all-to-all", "collective-permute"))
    close(compiled(*arguments), jax.value_and_grad(loss_fn)(params, *rows(32)), rtol=1e-5)


@pytest.mark.parametrize(
    ("mean", "factor"), [(lambda loss: loss, 8), (lambda loss: jax.lax.pmean(loss, "data"), 1)], ids=["varying", "mean"]
)
def test_under_shard_map_with_its_checks(mean, factor):
    """Gradients by what all devices have in common are sums over them."""
    trainer, params = trainer_of(**FLOAT32), mlp_params()
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))

    def gradients(params, x, y):
        value_and_grad = trainer.value_and_grad(lambda *arguments: mean(loss_fn(*arguments)), micro_batches=2)
        return value_and_grad(params, trainer.init(params), x, y)[1]

    specs = PartitionSpec(), PartitionSpec("data"), PartitionSpec("data")
    actual = jax.jit(jax.shard_map(gradients, mesh=mesh, in_specs=specs, out_specs=PartitionSpec()))(params, *rows(32))
    expected = jax.grad(loss_fn)(params, *rows(32))
    close(actual, jax.tree.map(lambda leaf: factor * leaf, expected), rtol=1e-5)
