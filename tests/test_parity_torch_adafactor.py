"""Adafactor against torch's own runs, which tests/oracles/torch_adafactor.py recorded, and moved into them in the middle.

Torch factors the last two axes of every leaf that has two, whatever their sizes, adds nothing to the squares and keeps V above
ε₁² instead: where gradients are not tiny that is our rule with ε₁ = 0.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interop import assert_close
from oracles import torch_adafactor, torch_states
from oracles.torch_states import MIDDLE, STEPS
from zoo import bits, specs

from mithril_opt import Adafactor, state_from_torch, state_to_torch

with np.load(torch_adafactor.FILE) as file:
    DATA = dict(file)
DESCRIPTION = json.loads(str(DATA.pop("description")))
SETTINGS = torch_adafactor.SETTINGS
_, GRADIENTS = torch_states.arrays()

# Where each of torch's parameters is with us, how its dimensions are turned, and which of our axes are torch's last two.
NAMES = ["linear/kernel", "linear/bias", "conv/kernel"]
AXES = {"linear/kernel": (1, 0), "conv/kernel": (2, 3, 1, 0)}
LAST_TWO = {"linear/kernel": (1, 0), "conv/kernel": (0, 1)}


def last_two(path, leaf):
    return LAST_TWO[path]


def ours(setting, **arguments):
    given = {"lr": 1e-2, "beta2_decay": -0.8, "eps": (None, 1e-3), "d": 1.0, "weight_decay": 0.0, **SETTINGS[setting]}
    fields = {
        "learning_rate": given["lr"],
        "decay": -given["beta2_decay"],
        "epsilon1": 0.0,
        "epsilon2": given["eps"][1],
        "update_clip": given["d"],
        "weight_decay": given["weight_decay"],
        "min_dim_size_to_factor": 1,
        "matrix_axes": last_two,
    }
    return Adafactor(**(fields | arguments))


def tree(arrays):
    """Torch's arrays, in torch's order, as our tree."""
    turned = [jnp.asarray(np.transpose(a, AXES.get(name))) for name, a in zip(NAMES, arrays, strict=True)]
    return {"linear": {"kernel": turned[0], "bias": turned[1]}, "conv": {"kernel": turned[2]}}


def recorded(prefix):
    return tree([DATA[f"{prefix}/{name}"] for name in torch_states.SHAPES])


def start():
    return tree(torch_states.arrays()[0].values())


def run(optimizer, params, state, steps):
    update = jax.jit(optimizer.update)
    for step in steps:
        params, state = update(params, tree([GRADIENTS[name][step] for name in torch_states.SHAPES]), state)
    return params, state


def torch_state(setting):
    """What torch's optimizer's state_dict() was in the middle of the run."""
    state = {}
    for key, value in DATA.items():
        if key.startswith(f"{setting}/state/"):
            _, _, index, name = key.split("/")
            state.setdefault(int(index), {})[name] = value
    return {"state": state, "param_groups": DESCRIPTION["param_groups"][setting]}


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_run_is_torchs(setting):
    params, _ = run(ours(setting), start(), ours(setting).init(start()), range(STEPS))
    assert_close(params, recorded(f"{setting}/end"), rtol=2e-6, atol=1e-6)
    assert np.max(np.abs(start()["conv"]["kernel"] - params["conv"]["kernel"])) > 0.01


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_run_goes_on_where_torch_left_it(setting):
    params = recorded(f"{setting}/middle")
    state = state_from_torch(ours(setting), params, torch_state(setting), NAMES, AXES)
    assert specs(state) == specs(ours(setting).init(params))
    params, state = run(ours(setting), params, state, range(MIDDLE, STEPS))
    assert_close(params, recorded(f"{setting}/end"))
    assert int(state.step) == STEPS


@pytest.mark.parametrize("setting", SETTINGS)
def test_our_run_gives_torch_its_own_state(setting):
    params, state = run(ours(setting), start(), ours(setting).init(start()), range(MIDDLE))
    expected = torch_state(setting)
    given = state_to_torch(ours(setting), params, state, {**expected, "state": {}}, NAMES, AXES)
    assert given["param_groups"] == expected["param_groups"]
    assert jax.tree.map(np.shape, given["state"]) == jax.tree.map(np.shape, expected["state"])
    assert_close(given["state"], expected["state"])


def test_a_round_trip_is_the_identity():
    params, saved = recorded("relative/middle"), torch_state("relative")
    state = state_from_torch(ours("relative"), params, saved, NAMES, AXES)
    assert bits(state_to_torch(ours("relative"), params, state, saved, NAMES, AXES)["state"]) == bits(saved["state"])


def test_torch_itself_goes_on_where_we_left_it():
    torch = pytest.importorskip("torch")
    optimizer = ours("relative")
    params, state = run(optimizer, start(), optimizer.init(start()), range(MIDDLE))
    leaves = [params["linear"]["kernel"].T, params["linear"]["bias"], params["conv"]["kernel"].transpose(3, 2, 0, 1)]
    theirs = [torch.nn.Parameter(torch.tensor(np.array(leaf))) for leaf in leaves]
    torchs = torch.optim.Adafactor(theirs, **SETTINGS["relative"])
    moved = state_to_torch(optimizer, params, state, torchs.state_dict(), NAMES, AXES)
    tensors = {i: {name: torch.from_numpy(a) for name, a in entry.items()} for i, entry in moved["state"].items()}
    torchs.load_state_dict({**moved, "state": tensors})
    for step in range(MIDDLE, STEPS):
        for param, name in zip(theirs, torch_states.SHAPES, strict=True):
            param.grad = torch.tensor(GRADIENTS[name][step])
        torchs.step()
    assert_close(tree([param.detach().numpy() for param in theirs]), recorded("relative/end"))


# Bad input.


def test_a_square_matrix_whose_axes_are_the_other_way_round():
    """Its rows and columns have the same shape with us, but not with torch."""
    entry = {"step": 1.0, "row_var": np.ones((4, 1)), "col_var": np.full((1, 4), 2.0)}
    saved, params = {"state": {0: entry}, "param_groups": []}, {"w": jnp.ones((4, 4))}
    optimizer = Adafactor(min_dim_size_to_factor=1, matrix_axes=(-2, -1))
    state = state_from_torch(optimizer, params, saved, ["w"])
    np.testing.assert_array_equal(state.slots.row["w"], 1)
    with pytest.raises(ValueError, match=r"PyTorch's 'row_var' of 'w' has shape \(1, 4\), not float32\[4,1\]"):
        state_from_torch(optimizer, params, saved, ["w"], transpose=["w"])
    swapped = Adafactor(min_dim_size_to_factor=1, matrix_axes=(-1, -2))
    assert state_from_torch(swapped, params, saved, ["w"], transpose=["w"]).slots.row["w"].tolist() == [1] * 4


def test_what_only_torch_factors():
    params = recorded("defaults/middle")
    message = (
        r"PyTorch's state of 'linear/kernel' has \['col_var', 'row_var', 'step'\], but this optimizer needs \['variance'\]"
    )
    with pytest.raises(ValueError, match=message):
        state_from_torch(Adafactor(), params, torch_state("defaults"), NAMES, AXES)


def test_a_first_moment_has_no_place_in_torch():
    with pytest.raises(ValueError, match="Adafactor has no counterpart in PyTorch with the same state"):
        state_from_torch(Adafactor(beta1=0.9), recorded("defaults/middle"), torch_state("defaults"), NAMES, AXES)
