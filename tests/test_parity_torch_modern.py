"""NAdam, RAdam, Adamax and AdaDelta against torch's trajectories and states, which tests/oracles/torch_modern.py recorded."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import torch_modern as oracle
from test_parity_torch import RECORD, SHAPES, assert_close, trajectory, tree
from zoo import bits, specs

from mithril_opt import AdaDelta, Adam, Adamax, NAdam, RAdam, StepLR, state_from_torch, state_to_torch
from mithril_opt.core.pytree import with_fields

with np.load(oracle.FILE) as file:
    DATA = dict(file)
SETTINGS = json.loads(str(DATA.pop("description")))["settings"]

KINDS = {"NAdam": NAdam, "RAdam": RAdam, "Adamax": Adamax, "Adadelta": AdaDelta}
FIELDS = {"lr": "learning_rate", "eps": "epsilon"}
NAMES = list(SHAPES)


def ours(name):
    """Our optimizer with the hyperparameters of one of torch's."""
    setting = SETTINGS[name]
    fields = {FIELDS.get(field, field): value for field, value in setting["fields"].items()}
    if "betas" in fields:
        fields["beta1"], fields["beta2"] = fields.pop("betas")
    if setting["drop"]:
        fields["learning_rate"] = StepLR(fields["learning_rate"], **setting["drop"])
    return KINDS[setting["optimizer"]](**fields)


any_update = jax.jit(lambda optimizer, *args: optimizer.update(*args))


def update_of(optimizer):
    """Its update; RAdam's with torch's ε, which is added before the bias correction."""

    def update(params, grads, state):
        if not isinstance(optimizer, RAdam):
            return any_update(optimizer, params, grads, state)
        epsilon = optimizer.epsilon / (1 - float(optimizer.beta2) ** (int(state.step) + 1)) ** 0.5
        return any_update(with_fields(optimizer, epsilon=epsilon), params, grads, state)

    return update


def torchs(name, dtype):
    return DATA[dtype][list(SETTINGS).index(name)]


@pytest.mark.parametrize("name", SETTINGS)
def test_float32(name):
    """Measured: 4e-7."""
    actual = trajectory(ours(name), update_of(ours(name)), "float32")
    assert_close(actual, torchs(name, "float64").astype(np.float32), 1e-6)


@pytest.mark.parametrize("name", SETTINGS)
def test_float64(name):
    """Measured: 3e-15; 3e-9 for NAdam, of which torch keeps the product of the momenta in float32."""
    with jax.enable_x64(True):
        actual = trajectory(ours(name), update_of(ours(name)), "float64")
    assert_close(actual, torchs(name, "float64"), 1e-8 if name.startswith("nadam") else 1e-13)


def test_torchs_epsilon_of_radam_is_another_one():
    actual = trajectory(ours("radam-epsilon"), ours("radam-epsilon").update, "float32")
    assert np.abs(actual - torchs("radam-epsilon", "float64")).max() > 1e-3


# States.


def torch_state(name):
    """What torch's optimizer's state_dict() was in the middle of the run."""
    state = {}
    for key, value in DATA.items():
        if key.startswith(f"{name}/"):
            _, index, entry = key.split("/")
            state.setdefault(int(index), {})[entry] = value
    # Their rate was recorded after the last step.
    groups = [{key: value for key, value in group.items() if key != "lr"} for group in SETTINGS[name]["param_groups"]]
    return {"state": state, "param_groups": groups}


def params_at(name, step):
    return jax.tree.map(jnp.asarray, tree(torchs(name, "float32")[oracle.RECORDED.index(step)]))


@pytest.mark.parametrize("name", SETTINGS)
def test_a_run_goes_on_where_torch_left_it(name):
    optimizer, params = ours(name), params_at(name, oracle.MIDDLE)
    state, update = state_from_torch(optimizer, params, torch_state(name), NAMES), update_of(optimizer)
    assert specs(state) == specs(optimizer.init(params))
    assert bits(state_to_torch(optimizer, params, state, torch_state(name), NAMES)["state"]) == bits(torch_state(name)["state"])
    for gradients in RECORD["gradients"][oracle.MIDDLE :]:
        params, state = update(params, tree(gradients), state)
    for path, leaf in params_at(name, 60).items():
        np.testing.assert_allclose(params[path], leaf, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("name", SETTINGS)
def test_our_run_gives_torch_its_own_state(name):
    optimizer, params = ours(name), jax.tree.map(jnp.asarray, tree(RECORD["start"]))
    state, update, expected = optimizer.init(params), update_of(optimizer), torch_state(name)
    for gradients in RECORD["gradients"][: oracle.MIDDLE]:
        params, state = update(params, tree(gradients), state)
    given = state_to_torch(optimizer, params, state, {**expected, "state": {}}, NAMES)
    assert jax.tree.structure(given) == jax.tree.structure(expected)
    for mine, theirs in zip(jax.tree.leaves(given["state"]), jax.tree.leaves(expected["state"]), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=3e-6, atol=1e-7)


def test_a_scalar_slot_of_a_matrix_is_not_transposed():
    optimizer, params = ours("nadam"), params_at("nadam", oracle.MIDDLE)
    params["matrix"] = params["matrix"].T
    state = state_from_torch(optimizer, params, torch_state("nadam"), NAMES, transpose=["matrix"])
    assert state.slots.product["matrix"].shape == ()
    np.testing.assert_array_equal(state.slots.mu["matrix"].T, DATA["nadam/0/exp_avg"])
    back = state_to_torch(optimizer, params, state, torch_state("nadam"), NAMES, transpose=["matrix"])
    assert bits(back["state"]) == bits(torch_state("nadam")["state"])


@pytest.mark.parametrize(
    ("optimizer", "name"),
    [
        (Adam(), "radam"),
        (RAdam(), "nadam"),
        (RAdam(), "adamax"),
        (Adamax(), "radam"),
        (NAdam(), "radam"),
        (RAdam(), "adadelta"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_the_state_of_another_rule(optimizer, name):
    params = params_at(name, oracle.MIDDLE)
    with pytest.raises(ValueError, match=r"no state of torch\.optim|PyTorch's state of 'matrix' has"):
        state_from_torch(optimizer, params, torch_state(name), NAMES)


def test_the_state_of_adam_is_none_of_radam():
    """Their slots have the same names."""
    groups = [{**SETTINGS["radam"]["param_groups"][0], "amsgrad": False}]
    with pytest.raises(
        ValueError, match=r"no state of torch.optim.RAdam, whose groups have \['betas'\]; these have \['amsgrad'"
    ):
        state_from_torch(RAdam(), params_at("radam", 25), {**torch_state("radam"), "param_groups": groups}, NAMES)
