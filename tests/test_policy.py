"""The three dtypes: what is cast, what is left alone, and when the loss is scaled."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from steps import trainer_of

from mithril_opt import Policy

DTYPES = {"float16": jnp.float16, "bfloat16": jnp.bfloat16, "float32": jnp.float32}
CASTS = {"compute": Policy.cast_to_compute, "param": Policy.cast_to_param, "output": Policy.cast_to_output}


@pytest.mark.parametrize("name", DTYPES)
def test_a_name_is_its_dtype(name):
    assert Policy(name) == Policy(DTYPES[name]) == Policy(jnp.dtype(name)) == trainer_of(policy=name).policy
    assert (Policy(name).compute_dtype, Policy(name).param_dtype) == (DTYPES[name], jnp.float32)
    assert Policy("float16", name, name).param_dtype == Policy("float16", output_dtype=name).output_dtype == DTYPES[name]


@pytest.mark.parametrize(
    ("name", "needs"), [("float16", True), ("bfloat16", False), ("float32", False), ("float64", False), (jnp.float8_e5m2, True)]
)
def test_scaling_is_for_narrow_exponents(name, needs):
    assert Policy(name).needs_loss_scaling is needs
    state = trainer_of(policy=Policy(name), loss_scale=8.0).init(jnp.ones(2))
    assert float(state.loss_scale.scale) == (8.0 if needs else 1.0)


@pytest.mark.parametrize("cast", CASTS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_floating_leaves_are_cast_and_no_others(cast, dtype):
    other = {
        "labels": jnp.arange(3),
        "flag": np.array(True),
        "complex": jnp.ones(2, jnp.complex64),
        "key": jax.random.key(0),
        "name": "relu",
        "act": jnp.tanh,
        "n": 3,
        "rate": 0.5,
    }
    floats = {"a": jnp.ones(2), "b": np.ones((), np.float16), "c": jnp.ones(1, jnp.bfloat16)}
    policy = Policy(**{"compute_dtype": "float32", f"{cast}_dtype": dtype})
    new = CASTS[cast](policy, {**other, **floats, "none": None})
    assert all(new[name] is other[name] for name in other)
    assert {new[name].dtype for name in floats} == {jnp.dtype(dtype)}
    assert new["none"] is None


def test_casting_is_differentiable_and_keeps_shapes():
    policy = Policy("float16")
    grads = jax.grad(lambda tree: jnp.sum(policy.cast_to_compute(tree)["w"]).astype(jnp.float32))({"w": jnp.ones((2, 3))})
    assert (grads["w"].shape, grads["w"].dtype) == ((2, 3), jnp.float32)


def test_is_a_static_value():
    policy = Policy("bfloat16", output_dtype="float16")
    assert jax.tree.leaves(policy) == []
    assert pickle.loads(pickle.dumps(policy)) == policy
    assert hash(policy) == hash(Policy(jnp.bfloat16, "float32", jnp.float16))


def seen_dtypes(policy, **arguments):
    """The dtypes that a loss function, its positional and its keyword arguments see."""
    seen = {}

    def loss_fn(params, x, *, labels, weight):
        seen.update(params=params["w"].dtype, n=params["n"], x=x.dtype, labels=labels.dtype, weight=weight.dtype)
        logits = params["w"] * x * weight
        return jnp.sum(logits.astype(jnp.float32)), {"logits": logits, "labels": labels}

    params = {"w": jnp.ones(3), "n": 5}
    trainer = trainer_of(policy=policy)
    (loss, aux), grads = trainer.value_and_grad(loss_fn, has_aux=True)(
        params, trainer.init(params), jnp.ones(3), labels=jnp.arange(3), weight=jnp.ones((), jnp.float32).repeat(3)
    )
    return seen, loss, aux, grads


@pytest.mark.parametrize("compute", DTYPES)
@pytest.mark.parametrize("output", DTYPES)
@pytest.mark.filterwarnings("ignore:the loss is float16")
def test_what_a_loss_function_sees_and_what_comes_out(compute, output):
    seen, loss, aux, grads = seen_dtypes(Policy(compute, output_dtype=output))
    wide = DTYPES[compute]
    assert seen == {"params": wide, "n": 5, "x": wide, "labels": jnp.int32, "weight": wide}
    assert loss.dtype == aux["logits"].dtype == DTYPES[output]
    assert aux["labels"].dtype == jnp.int32
    assert grads["w"].dtype == jnp.float32  # the parameter's own
    assert grads["n"] is None


@pytest.mark.parametrize("compute", DTYPES)
@pytest.mark.parametrize("output", DTYPES)
def test_what_a_model_sees_and_what_comes_out(compute, output):
    def model(params, inputs):
        assert params["w"].dtype == inputs["x"].dtype == DTYPES[compute]
        assert inputs["labels"].dtype == jnp.int32
        return {"y": params["w"] * inputs["x"], "best": jnp.argmax(inputs["x"])}

    trainer = trainer_of(model=model, policy=Policy(compute, output_dtype=output))
    params = {"w": jnp.ones(3), "n": 5}
    outputs, _ = trainer.forward(params, trainer.init(params), {"x": jnp.ones(3), "labels": jnp.arange(3)})
    assert outputs["y"].dtype == DTYPES[output]
    assert outputs["best"].dtype == jnp.int32


@pytest.mark.parametrize("dtype", DTYPES)
def test_parameters_of_any_dtype_keep_it(dtype):
    params = {"w": jnp.ones(3, dtype)}
    trainer = trainer_of(loss_scale=4.0)
    state = trainer.init(params)
    loss, grads = trainer.value_and_grad(lambda p: jnp.sum(p["w"].astype(jnp.float32)))(params, state)
    new_params, _, success = trainer.update(params, grads, state, loss=loss)
    assert grads["w"].dtype == new_params["w"].dtype == DTYPES[dtype]
    assert bool(success)
    np.testing.assert_array_equal(new_params["w"].astype(jnp.float32), 0.5)


def test_float64_stays_float64():
    with jax.enable_x64(True):
        params = {"w": jnp.full(3, 1.0 + 1e-12)}
        trainer = trainer_of(policy=Policy("float64", output_dtype="float64"))
        state = trainer.init(params)
        loss, grads = trainer.value_and_grad(lambda p: jnp.sum(p["w"] ** 2))(params, state)
        new_params, _, success = trainer.update(params, grads, state, loss=loss)
        np.testing.assert_array_equal(new_params["w"], params["w"] - 0.5 * (2 * params["w"]))
        assert new_params["w"].dtype == loss.dtype == jnp.float64
        assert bool(success)


BAD_POLICIES = [
    (dict(compute_dtype="float17"), ValueError, "compute_dtype must be one of float16, .*, got 'float17'"),
    (dict(compute_dtype="half"), ValueError, "got 'half'"),
    (dict(compute_dtype="int8"), ValueError, "got 'int8'"),
    (dict(compute_dtype=jnp.int8), ValueError, "compute_dtype must be a real floating dtype, got int8"),
    (dict(compute_dtype=jnp.complex64), ValueError, "compute_dtype must be a real floating dtype, got complex64"),
    (dict(compute_dtype="float16", param_dtype="fp32"), ValueError, "param_dtype must be one of"),
    (dict(compute_dtype="float16", output_dtype=bool), ValueError, "output_dtype must be a real floating dtype, got bool"),
    # NumPy reads None as float64.
    (dict(compute_dtype=None), TypeError, "compute_dtype must be a dtype or one of float16, .*, got None"),
    (dict(compute_dtype=16), TypeError, "compute_dtype must be a dtype or one of .*, got 16"),
]  # fmt: skip


@pytest.mark.parametrize(("dtypes", "error", "message"), BAD_POLICIES)
def test_bad_input(dtypes, error, message):
    with pytest.raises(error, match=message):
        Policy(**dtypes)
    if len(dtypes) == 1:
        with pytest.raises(error, match=message):
            trainer_of(policy=dtypes["compute_dtype"])
