"""The optimizers against torch's own trajectories, which tests/oracles/torch_optimizers.py recorded."""

import functools
import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mithril_opt import SGD, AdaGrad, Adam, AdamW, RMSProp, StepLR

with np.load(pathlib.Path(__file__).parent / "data" / "torch_optimizers.npz") as file:
    RECORD = dict(file)
DESCRIPTION = json.loads(str(RECORD["description"]))
SETTINGS = DESCRIPTION["settings"]
SHAPES = DESCRIPTION["shapes"]

KINDS = {"SGD": SGD, "Adam": Adam, "AdamW": AdamW, "RMSprop": RMSProp, "Adagrad": AdaGrad}
FIELDS = {"lr": "learning_rate", "alpha": "decay", "eps": "epsilon"}
# One setting per optimizer, with most of its features.
RICHEST = ["sgd-nesterov-drop", "adam-amsgrad-decay", "adamw-drop", "rmsprop-all", "adagrad-all"]


def ours(name):
    """Our optimizer with the hyperparameters of one of torch's."""
    setting = SETTINGS[name]
    fields = {FIELDS.get(field, field): value for field, value in setting["hyperparameters"].items()}
    if "betas" in fields:
        fields["beta1"], fields["beta2"] = fields.pop("betas")
    if setting["drop"]:
        fields["learning_rate"] = StepLR(fields["learning_rate"], **setting["drop"])
    return KINDS[setting["optimizer"]](**fields)


def tree(row):
    """A row of all elements as a tree of NumPy arrays."""
    ends = np.cumsum([math.prod(shape) for shape in SHAPES.values()])[:-1]
    return {name: leaf.reshape(shape) for (name, shape), leaf in zip(SHAPES.items(), np.split(row, ends), strict=True)}


def trajectory(optimizer, update, dtype):
    """The parameters at the recorded steps, a row each."""
    params = jax.tree.map(jnp.asarray, tree(RECORD["start"].astype(dtype)))
    state, rows = optimizer.init(params), []
    for step, gradients in enumerate(RECORD["gradients"].astype(dtype), start=1):
        params, state = update(params, tree(gradients), state)
        if step in DESCRIPTION["recorded"]:
            rows.append(np.concatenate([np.ravel(params[name]) for name in SHAPES]))
    return np.stack(rows)


def torchs(name, dtype):
    return RECORD[dtype][list(SETTINGS).index(name)]


def assert_close(actual, expected, tolerance):
    """Parameters are of the order of 1, and one that is small has been large: errors are relative to 1 there."""
    assert actual.dtype == expected.dtype
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def assert_float32_follows(name, update):
    """Ours stays within 4.5e-7 of torch's float64, seven roundings in 60 steps; torch's own float32 is off by up to 9e-7,
    because AdamW rounds 1 − ηλ to the same side in every step."""
    actual = trajectory(ours(name), update, "float32")
    assert_close(actual, torchs(name, "float64").astype(np.float32), 1e-6)
    assert_close(actual, torchs(name, "float32"), 2e-6)


def assert_float64_follows(name, update):
    """Measured: 6e-15 with β₂ = 0.9999, where 1 − β₂ᵗ cancels in torch's float64, and 3e-15 elsewhere."""
    assert_close(trajectory(ours(name), update, "float64"), torchs(name, "float64"), 1e-13)


@pytest.mark.parametrize("name", SETTINGS)
def test_jitted_float32(name):
    assert_float32_follows(name, jax.jit(ours(name).update))


@pytest.mark.parametrize("name", RICHEST)
def test_eager_float32(name):
    assert_float32_follows(name, ours(name).update)


@pytest.mark.parametrize("name", RICHEST)
def test_float32_with_the_optimizer_as_an_argument_of_jit(name):
    update = jax.jit(lambda optimizer, *args: optimizer.update(*args))
    assert_float32_follows(name, functools.partial(update, ours(name)))


@pytest.mark.parametrize("name", SETTINGS)
def test_eager_float64(name):
    with jax.enable_x64(True):
        assert_float64_follows(name, ours(name).update)


@pytest.mark.parametrize("name", RICHEST)
def test_jitted_float64(name):
    with jax.enable_x64(True):
        assert_float64_follows(name, jax.jit(ours(name).update))
