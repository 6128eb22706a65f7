"""Whose memory it is: what is restored belongs to nobody else, and a donated step takes nothing away from a snapshot."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from zoo import OPTIMIZERS, bits, make_params, specs

from mithril_opt import Adam, MixedPrecisionTrainer, from_state_dict, state_from_optax, to_state_dict

STATES = {
    "rule": lambda: Adam().init(make_params()),
    "trainer": lambda: MixedPrecisionTrainer(None, Adam()).init(make_params()),
    "keys": lambda: {"key": jax.random.key(1), "float": jnp.float32(1.0)},
    **{
        name: lambda name=name: OPTIMIZERS[name]().init(make_params())
        for name in ("clip-accumulate", "multi-nested", "adam-plateau")
    },
}


@pytest.fixture(params=STATES, name="state")
def fixture_state(request):
    return STATES[request.param]()


@pytest.mark.parametrize("strict", [True, False])
def test_overwriting_what_was_read_changes_nothing(state, strict):
    mapping = {path: np.array(leaf) for path, leaf in to_state_dict(state).items()}
    restored = from_state_dict(state, mapping, strict=strict)
    before = bits(to_state_dict(restored))
    for leaf in mapping.values():
        leaf[...] = 7
    assert bits(to_state_dict(restored)) == before


def test_overwriting_a_memory_mapped_file_changes_nothing(tmp_path):
    state = Adam().init({"w": jnp.arange(1024.0)})
    np.save(tmp_path / "mu.npy", np.arange(1024.0, dtype=np.float32))
    mapped = np.load(tmp_path / "mu.npy", mmap_mode="r+")
    restored = from_state_dict(state, {**to_state_dict(state), "slots/mu/w": mapped})
    mapped[:] = -1
    mapped.flush()
    np.testing.assert_array_equal(restored.slots.mu["w"], np.arange(1024.0))


@pytest.mark.parametrize("strict", [True, False])
def test_a_donated_step_leaves_the_snapshot(strict):
    params = make_params()
    state = Adam().init(params)
    snapshot = to_state_dict(state)
    if not strict:
        del snapshot["slots/nu/embed"]
    restored = from_state_dict(state, snapshot, strict=strict)
    assert specs(restored) == specs(state)
    step = jax.jit(Adam().update, donate_argnums=(0, 2))
    jax.block_until_ready(step(jax.tree.map(jnp.copy, params), params, restored))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(restored))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((snapshot, state)) if isinstance(leaf, jax.Array))


def test_a_state_of_optax_stays_its_own():
    params = {"w": jnp.ones(4)}
    theirs = optax.adam(0.1).init(params)
    ours = state_from_optax(Adam(), params, theirs)
    jax.block_until_ready(jax.jit(Adam().update, donate_argnums=2)(params, params, ours))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(theirs))
