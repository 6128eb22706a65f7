"""A run is moved from PyTorch to ours, and back, in the middle; what torch did is in tests/data/torch_states.npz."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interop import assert_close
from oracles import torch_states as oracle
from zoo import bits, specs

from mithril_opt import SGD, AdaGrad, Adam, AdamW, Frozen, RMSProp, state_from_torch, state_to_torch

with np.load(oracle.FILE) as file:
    DATA = dict(file)
DESCRIPTION = json.loads(str(DATA.pop("description")))
RULES = {
    "sgd": SGD(learning_rate=0.1),
    "momentum": SGD(learning_rate=0.1, momentum=0.9, dampening=0.5),
    "adam": Adam(learning_rate=0.1),
    "adamw": AdamW(learning_rate=0.1, weight_decay=0.1, amsgrad=True),
    "rmsprop": RMSProp(learning_rate=0.01, decay=0.9, momentum=0.9, centered=True),
    "adagrad": AdaGrad(learning_rate=0.1, epsilon=1e-8),
}
# Where each of torch's parameters is with us, and how its dimensions are turned: (out, in) to (in, out), OIHW to HWIO.
NAMES = ["linear/kernel", "linear/bias", "conv/kernel"]
AXES = {"linear/kernel": (1, 0), "conv/kernel": (2, 3, 1, 0)}
# SGD does not count.
STEPS = {"sgd": oracle.MIDDLE, "momentum": oracle.MIDDLE}


def ours(arrays):
    """Torch's arrays, in torch's order, as our tree."""
    turned = [jnp.asarray(np.transpose(a, AXES.get(name))) for name, a in zip(NAMES, arrays, strict=True)]
    return {"linear": {"kernel": turned[0], "bias": turned[1]}, "conv": {"kernel": turned[2]}}


def recorded(prefix):
    return ours([DATA[f"{prefix}/{name}"] for name in oracle.SHAPES])


def gradients(step):
    return ours([DATA[f"gradients/{name}"][step] for name in oracle.SHAPES])


def torch_state(rule):
    """What torch's optimizer's state_dict() was in the middle of the run."""
    state = {}
    for key, value in DATA.items():
        if key.startswith(f"{rule}/state/"):
            _, _, index, name = key.split("/")
            state.setdefault(int(index), {})[name] = value
    return {"state": state, "param_groups": DESCRIPTION["param_groups"][rule]}


def run(optimizer, params, state, steps):
    update = jax.jit(optimizer.update)
    for step in steps:
        params, state = update(params, gradients(step), state)
    return params, state


@pytest.mark.parametrize("rule", RULES)
def test_a_run_goes_on_where_torch_left_it(rule):
    params = recorded(f"{rule}/middle")
    state = state_from_torch(RULES[rule], params, torch_state(rule), NAMES, AXES, STEPS.get(rule))
    assert specs(state) == specs(RULES[rule].init(params))
    params, state = run(RULES[rule], params, state, range(oracle.MIDDLE, oracle.STEPS))
    assert_close(params, recorded(f"{rule}/end"))
    assert int(state.step) == oracle.STEPS


@pytest.mark.parametrize("rule", RULES)
def test_our_run_gives_torch_its_own_state(rule):
    params = recorded("start")
    params, state = run(RULES[rule], params, RULES[rule].init(params), range(oracle.MIDDLE))
    fresh = {**torch_state(rule), "state": {}}
    given, expected = state_to_torch(RULES[rule], params, state, fresh, NAMES, AXES), torch_state(rule)
    assert given["param_groups"] == expected["param_groups"]
    assert jax.tree.map(np.shape, given["state"]) == jax.tree.map(np.shape, expected["state"])
    assert_close(given["state"], expected["state"])


@pytest.mark.parametrize("rule", RULES)
def test_a_round_trip_is_the_identity(rule):
    params, saved = recorded(f"{rule}/middle"), torch_state(rule)
    state = state_from_torch(RULES[rule], params, saved, NAMES, AXES, STEPS.get(rule))
    assert bits(state_to_torch(RULES[rule], params, state, saved, NAMES, AXES)["state"]) == bits(saved["state"])


@pytest.mark.parametrize("rule", RULES)
def test_torch_itself_goes_on_where_we_left_it(rule):
    torch = pytest.importorskip("torch")
    params = recorded("start")
    params, state = run(RULES[rule], params, RULES[rule].init(params), range(oracle.MIDDLE))
    kind, arguments = oracle.SETTINGS[rule]
    leaves = [params["linear"]["kernel"].T, params["linear"]["bias"], params["conv"]["kernel"].transpose(3, 2, 0, 1)]
    theirs = [torch.nn.Parameter(torch.tensor(np.array(leaf))) for leaf in leaves]
    optimizer = getattr(torch.optim, kind)(theirs, **arguments)
    moved = state_to_torch(RULES[rule], params, state, optimizer.state_dict(), NAMES, AXES)
    tensors = {i: {name: torch.from_numpy(a) for name, a in entry.items()} for i, entry in moved["state"].items()}
    optimizer.load_state_dict({**moved, "state": tensors})
    for step in range(oracle.MIDDLE, oracle.STEPS):
        for param, name in zip(theirs, oracle.SHAPES, strict=True):
            param.grad = torch.tensor(DATA[f"gradients/{name}"][step])
        optimizer.step()
    assert_close(ours([param.detach().numpy() for param in theirs]), recorded(f"{rule}/end"))
    back = state_from_torch(RULES[rule], params, optimizer.state_dict(), NAMES, AXES, oracle.STEPS)
    assert int(back.step) == oracle.STEPS


def test_matrices_transposed_and_the_order_of_the_names():
    params = {"b": jnp.zeros(3), "w": jnp.zeros((2, 3))}
    matrix = np.arange(6, dtype=np.float32).reshape(3, 2)
    state = {0: {"momentum_buffer": matrix}, 1: {"momentum_buffer": np.ones(3, np.float32)}}
    optimizer, saved = SGD(momentum=0.9), {"state": state, "param_groups": []}
    moved = state_from_torch(optimizer, params, saved, names=["w", "b"], transpose=["w"], step=7)
    np.testing.assert_array_equal(moved.slots.trace["w"], matrix.T)
    back = state_to_torch(optimizer, params, moved, saved, names=["w", "b"], transpose=["w"])
    assert bits(back["state"]) == bits(state)


def test_a_state_without_updates_is_a_fresh_one():
    params, optimizer = recorded("start"), Adam(learning_rate=0.1)
    fresh = {"state": {}, "param_groups": DESCRIPTION["param_groups"]["adam"]}
    state = state_from_torch(optimizer, params, fresh, NAMES)
    assert bits(state) == bits(optimizer.init(params))


def test_restored_slots_are_placed_like_fresh_ones():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    params = {"w": jax.device_put(jnp.ones(8), sharding)}
    saved = {"state": {0: {"step": 1.0, "sum": np.ones(8)}}, "param_groups": []}
    state = state_from_torch(AdaGrad(), params, saved, names=["w"])
    assert state.slots.sum_of_squares["w"].sharding == sharding
    jax.block_until_ready(jax.jit(AdaGrad().update)(params, params, state))


# Bad input.


def moved(rule, optimizer=None, saved=None, names=NAMES, transpose=AXES, step=None):
    params = recorded(f"{rule}/middle")
    return state_from_torch(optimizer or RULES[rule], params, saved or torch_state(rule), names, transpose, step)


def test_an_optimizer_that_torch_does_not_have():
    with pytest.raises(ValueError, match="Frozen has no counterpart in PyTorch with the same state"):
        moved("adam", Frozen())


def test_the_state_of_another_optimizer():
    with pytest.raises(ValueError, match=r"no state of torch.optim.Adam, whose groups have \['amsgrad'\]; these have \["):
        moved("adam", saved={"state": {}, "param_groups": [{"rho": 0.9, "params": [0, 1, 2]}]})
    with pytest.raises(ValueError, match=r"no state of torch.optim.Adam"):  # whose moments have the same names
        moved("adam", saved={**torch_state("adam"), "param_groups": DESCRIPTION["param_groups"]["radam"]})
    with pytest.raises(
        ValueError, match=r"'linear/kernel' has \['exp_avg', 'exp_avg_sq', 'max_exp_avg_sq', 'step'\], but this"
    ):
        moved("adamw", AdamW())
    with pytest.raises(ValueError, match=r"needs \['exp_avg', 'exp_avg_sq', 'max_exp_avg_sq'\] of torch.optim.Adam"):
        moved("adam", Adam(amsgrad=True))
    with pytest.raises(ValueError, match=r"with 'state' and 'param_groups'; got \['weight'\]"):
        moved("adam", saved={"weight": np.ones(3)})


@pytest.mark.parametrize("state", [{}, None], ids=["fresh", "trained"])
@pytest.mark.parametrize(("ours", "theirs"), [("adam", "adamw"), ("adamw", "adam")])
def test_adam_and_adamw_have_the_same_state_but_not_the_same_decay(ours, theirs, state):
    groups = [{**group, "amsgrad": False} for group in DESCRIPTION["param_groups"][theirs]]
    saved = {"state": torch_state("adam")["state"] if state is None else {}, "param_groups": groups}
    decoupled, decay = theirs == "adamw", groups[0]["weight_decay"]
    both = {"adam": Adam(learning_rate=0.1, weight_decay=decay), "adamw": AdamW(learning_rate=0.1, weight_decay=decay)}
    with pytest.raises(ValueError, match=rf"a parameter group has {{'decoupled_weight_decay': {decoupled}}}"):
        moved("adam", both[ours], saved)
    for group in saved["param_groups"]:
        del group["decoupled_weight_decay"]  # an older PyTorch
    moved("adam", both[ours], saved)


def test_names_and_transpositions_that_do_not_fit():
    with pytest.raises(ValueError, match=r"in the order of PyTorch's parameter groups: missing: conv/kernel, linear/bias$"):
        moved("adam", names=["linear/kernel"], transpose=())
    with pytest.raises(ValueError, match=r"parameter groups: missing: linear/bias; unknown: linear/b; twice: conv/kernel$"):
        moved("adam", names=["linear/kernel", "linear/b", "conv/kernel", "conv/kernel"], transpose=())
    groups = [{**DESCRIPTION["param_groups"]["adam"][0], "params": [0, 1]}]
    with pytest.raises(ValueError, match="PyTorch's optimizer has 2 parameters, but names lists 3"):
        moved("adam", saved={**torch_state("adam"), "param_groups": groups})
    with pytest.raises(ValueError, match="transpose names layer, which are not among"):
        moved("adam", transpose=["layer"])
    with pytest.raises(ValueError, match=r"transpose must be a list of paths or a dictionary, got 'linear/kernel'"):
        moved("adam", transpose="linear/kernel")
    with pytest.raises(ValueError, match=r"the axes \(1, 0\) for 'conv/kernel', whose array has 4 dimensions"):
        moved("adam", transpose=["conv/kernel", "linear/kernel"])
    with pytest.raises(ValueError, match=r"'exp_avg' of 'linear/kernel' has shape \(3, 4\), not float32\[4,3\]"):
        moved("adam", transpose={"conv/kernel": (2, 3, 1, 0)})


def test_counts_that_are_missing_or_differ():
    with pytest.raises(ValueError, match=r"torch.optim.SGD does not count its updates; give their number as step="):
        moved("momentum")
    with pytest.raises(ValueError, match=r"different numbers of updates, \[5, 6\]; one clock cannot hold them"):
        moved("adam", step=6)
    saved = torch_state("adam")
    del saved["state"][1]
    with pytest.raises(ValueError, match="PyTorch has no state for linear/bias, which never got a gradient"):
        moved("adam", saved=saved)


def test_complex_second_moments():
    params = {"z": jnp.ones(2, jnp.complex64)}
    with pytest.raises(ValueError, match="the second moments of complex parameters cannot be moved: z"):
        state_from_torch(Adam(), params, {"state": {}, "param_groups": []}, names=["z"])
    with pytest.raises(ValueError, match="takes the state that init returned"):
        state_to_torch(Adam(), params, params, {"state": {}, "param_groups": []}, names=["z"])
