"""Muon's momentum is moved from torch and optax to ours, and back; what torch kept is in tests/data/torch_muon.npz."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from interop import assert_close, promotion  # noqa: F401
from oracles import torch_muon as oracle
from test_parity_peers import ABOUT, DATA, SETTINGS, muon, of, tree
from zoo import bits, specs

from mithril_opt import SGD, AdamW, MultiOptimizer, Muon, state_from_optax, state_from_torch, state_to_optax, state_to_torch

with np.load(oracle.FILE) as file:
    STATES = dict(file)
GROUPS = json.loads(str(STATES.pop("description")))["param_groups"]
NAMES = ABOUT["matrices"]


def torch_state(setting):
    """What torch's state_dict() was in the middle of the run."""
    entries = {i: {"momentum_buffer": STATES[f"{setting}/state/{i}/momentum_buffer"]} for i in range(len(NAMES))}
    return {"state": entries, "param_groups": GROUPS[setting]}


def matrices(row):
    return {name: tree(row, jnp.float32)[name] for name in NAMES}


def torch_params(setting, step):
    """The parameters after `step` updates, in which there are matrices only."""
    sizes = [int(np.prod(ABOUT["shapes"][name])) for name in NAMES]
    parts = np.split(DATA[f"{setting}/params"][ABOUT["recorded"].index(step)], np.cumsum(sizes)[:-1])
    return {name: jnp.asarray(part.reshape(ABOUT["shapes"][name])) for name, part in zip(NAMES, parts, strict=True)}


def ours(setting):
    return muon(**SETTINGS[setting][1])


def run(optimizer, params, state, steps):
    update = jax.jit(optimizer.update)
    for step in steps:
        params, state = update(params, matrices(DATA["gradients"][step]), state)
    return params, state


def apart(found, expected):
    return np.sqrt(sum(float(jnp.sum((found[name] - expected[name]) ** 2)) for name in NAMES))


@pytest.mark.parametrize("setting", of("Muon"))
def test_a_run_goes_on_where_torch_left_it(setting):
    """To two digits, as its Newton–Schulz is in bfloat16; without the momentum it would go elsewhere."""
    optimizer, middle, end = ours(setting), torch_params(setting, oracle.MIDDLE), torch_params(setting, 20)
    state = state_from_torch(optimizer, middle, torch_state(setting), NAMES, step=oracle.MIDDLE)
    assert specs(state) == specs(optimizer.init(middle))
    steps = range(oracle.MIDDLE, 20)
    params, state = run(optimizer, middle, state, steps)
    afresh, _ = run(optimizer, middle, optimizer.init(middle), steps)
    assert int(state.step) == 20
    assert apart(params, end) < 0.05 * apart(middle, end) < 0.5 * apart(afresh, end)


@pytest.mark.parametrize("setting", of("Muon"))
def test_our_run_gives_torch_its_own_state(setting):
    params, optimizer, saved = matrices(DATA["start"]), ours(setting), torch_state(setting)
    params, state = run(optimizer, params, optimizer.init(params), range(oracle.MIDDLE))
    given = state_to_torch(optimizer, params, state, {**saved, "state": {}}, NAMES)
    assert given["param_groups"] == saved["param_groups"]
    assert jax.tree.structure(given["state"]) == jax.tree.structure(saved["state"])
    assert_close(given["state"], saved["state"])
    back = state_from_torch(optimizer, params, saved, NAMES, step=7)
    assert bits(state_to_torch(optimizer, params, back, saved, NAMES)["state"]) == bits(saved["state"])


def test_a_torch_state_that_is_none_of_its_muon():
    """The Muon of others adds its gradients up; SGD has a buffer of the same name."""
    params = torch_params("muon", oracle.MIDDLE)
    for group in ({"lr": 0.02, "momentum": 0.95, "weight_decay": 0}, {"momentum": 0.9, "dampening": 0, "nesterov": False}):
        saved = {**torch_state("muon"), "param_groups": [{**group, "params": [0, 1]}]}
        with pytest.raises(ValueError, match=r"no state of torch\.optim\.Muon, whose groups have .*'ns_steps'"):
            state_from_torch(Muon(), params, saved, NAMES, step=7)
    with pytest.raises(ValueError, match=r"no state of torch\.optim\.SGD"):
        state_from_torch(SGD(momentum=0.9), params, torch_state("muon"), NAMES, step=7)
    with pytest.raises(ValueError, match=r"torch\.optim\.Muon does not count its updates; give their number as step="):
        state_from_torch(Muon(), params, torch_state("muon"), NAMES)


def run_optax(transformation, params, state, steps):
    update = jax.jit(transformation.update)
    for step in steps:
        updates, state = update(matrices(DATA["gradients"][step]), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


@pytest.mark.usefixtures("promotion")
@pytest.mark.parametrize("nesterov", [False, True])
def test_a_run_moves_to_optax_and_back_in_the_middle(nesterov):
    """With Nesterov's step optax corrects both terms for the start, so that only a run that has left it behind is the same."""
    theirs = optax.contrib.muon(0.05, beta=0.5, nesterov=nesterov, weight_decay=0.1, consistent_rms=0.2, eps=1e-30)
    optimizer, params, first = Muon(0.05, beta=0.5, nesterov=nesterov), matrices(DATA["start"]), 14 if nesterov else 3
    params, optax_state = run_optax(theirs, params, theirs.init(params), range(first))
    expected, _ = run_optax(theirs, params, optax_state, range(first, 20))
    state = state_from_optax(optimizer, params, optax_state)
    assert specs(state) == specs(optimizer.init(params))
    assert int(state.step) == first
    assert bits(state_to_optax(optimizer, state, optax_state)) == bits(optax_state)
    params, state = run(optimizer, params, state, range(first, first + 3))
    params, _ = run_optax(theirs, params, state_to_optax(optimizer, state, theirs.init(params)), range(first + 3, 20))
    assert_close(params, expected, rtol=1e-4, atol=1e-4 if nesterov else 1e-5)


@pytest.mark.usefixtures("promotion")
def test_an_optax_state_with_other_parameters():
    """Optax gives what is no matrix to its Adam, in one state with Muon's."""
    params = {**matrices(DATA["start"]), "vector": jnp.ones(5)}
    state = optax.contrib.muon(0.05).init(params)
    with pytest.raises(
        ValueError, match=r"Muon needs an optax state with MuonState, but this one has ScaleByAdamState, MuonState"
    ):
        state_from_optax(Muon(), matrices(DATA["start"]), state)
    both = MultiOptimizer({"muon": Muon(), "adamw": AdamW()}, {"adamw": "vector", "muon": ...})
    with pytest.raises(ValueError, match="has no counterpart in optax with the same state"):
        state_from_optax(both, params, state)
