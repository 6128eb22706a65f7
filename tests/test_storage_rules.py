"""Every rule with slots and parameters in fewer bits, and states of other libraries that are packed into them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from interop import promotion  # noqa: F401
from test_interop_torch import AXES, NAMES, STEPS, gradients, oracle, recorded, torch_state
from zoo import OPTIMIZERS, RULES, bits, specs

from mithril_opt import (
    SGD,
    SOAP,
    Adafactor,
    AdamW,
    Muon,
    Prodigy,
    Quantize,
    RMSProp,
    Round,
    ScheduleFreeAdamW,
    state_from_optax,
    state_from_torch,
)
from mithril_opt.core.coding import Coded

SIZE, UPDATES = 64, 40
# Rules that look at more than one element, as the zoo has them for larger leaves.
MATRICES = {
    "adafactor": Adafactor(0.02, beta1=0.9, relative_step=False, min_dim_size_to_factor=2),
    "muon": Muon(0.02),
    "soap": SOAP(0.02, every=5),
    "prodigy": Prodigy(d0=1e-3),
}
ROWS = {name: row() for name, row in OPTIMIZERS.items() if type(row()) in RULES and name not in MATRICES}
# d grows by leaps.
FREER = {"prodigy": 1.5}
# The storage, and how far the way that the parameters have come may be off, relative to its length.
STORAGES = {
    "quantize-16": (Quantize, 0.015),
    "quantize-8": (functools.partial(Quantize, bits=8), 0.06),
    "round-0": (functools.partial(Round, remainder=0), 0.06),
    "round-8": (Round, 0.03),
    "both": (lambda rule: Round(Quantize(rule, bits=8)), 0.06),
}


@functools.partial(jax.jit, static_argnums=(0, 1))
def way(optimizer, dtype):
    """Of the evaluated parameters, in a valley of slopes that differ by rows and columns, with noise."""
    slope = 10.0 ** -jnp.linspace(0, 1, SIZE)
    normal = lambda k: jax.random.normal(jax.random.key(k), (SIZE, SIZE))  # noqa: E731
    start = (0.1 * normal(0)).astype(jnp.bfloat16)

    def step(carry, k):
        params, state = carry
        grads = slope[:, None] * (params.astype(jnp.float32) - normal(1)) * slope[None]
        return optimizer.update(params, grads + 0.01 * normal(2 + k), state), None

    params = start.astype(dtype)
    (params, state), _ = jax.lax.scan(step, (params, optimizer.init(params)), jnp.arange(UPDATES))
    return (optimizer.eval_params(params, state).astype(jnp.float32) - start.astype(jnp.float32)), state


def pairs():
    for name in (*MATRICES, *ROWS):
        for storage in STORAGES:
            fast = name in MATRICES and storage == "both"
            yield pytest.param(name, storage, marks=() if fast else pytest.mark.slow)


@pytest.mark.parametrize(("name", "storage"), [*pairs()])
def test_a_rule_comes_as_far(name, storage):
    rule = MATRICES.get(name) or ROWS[name]
    store, tolerance = STORAGES[storage]
    exact, _ = way(rule, jnp.float32)
    found, _ = way(store(rule), jnp.bfloat16 if "round" in storage or storage == "both" else jnp.float32)
    off = float(jnp.linalg.norm(found - exact) / jnp.linalg.norm(exact))
    assert off < tolerance * FREER.get(name, 1)


EXACT = {
    "soap": (SOAP(), {"outer", "basis"}),
    "centered": (RMSProp(centered=True, momentum=0.9), {"nu", "mu"}),
    "rmsprop": (RMSProp(momentum=0.9), set()),
    "schedule-free": (ScheduleFreeAdamW(keep_x=True), {"z", "x"}),
}


@pytest.mark.parametrize("bits_per_slot", [16, 8])
@pytest.mark.parametrize("name", EXACT)
def test_what_a_rule_needs_exactly_stays_as_it_is(name, bits_per_slot):
    (rule, exact), params = EXACT[name], jnp.ones((SIZE, SIZE))
    optimizer = Quantize(rule, bits=bits_per_slot)
    state = jax.eval_shape(lambda: optimizer.update(params, params, optimizer.init(params))[1])
    wide = {slot for slot, own in state.slots._asdict().items() for leaf in jax.tree.leaves(own) if leaf.dtype == jnp.float32}
    coded = {slot for slot, own in state.slots._asdict().items() if isinstance(own, Coded)}
    assert wide - coded == exact
    assert specs(state)[0] == specs(jax.eval_shape(optimizer.init, params))[0]


# States of other libraries.


def close(found, expected, start, within):
    """Whether two runs have gone the same way."""
    found, expected, start = (np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(t)]) for t in (found, expected, start))
    assert np.linalg.norm(found - expected) < within * np.linalg.norm(expected - start)


TORCH = {
    "momentum": SGD(learning_rate=0.1, momentum=0.9, dampening=0.5),
    "adamw": AdamW(learning_rate=0.1, weight_decay=0.1, amsgrad=True),
}


@pytest.mark.parametrize("rule", TORCH)
def test_a_run_goes_on_where_torch_left_it(rule):
    """In 16 bits, and from there in 32 again."""
    plain, optimizer, params = TORCH[rule], Quantize(TORCH[rule]), recorded(f"{rule}/middle")
    state = state_from_torch(plain, params, torch_state(rule), NAMES, AXES, STEPS.get(rule))
    packed = optimizer.pack(state)
    assert specs(packed) == specs(optimizer.init(params))
    assert specs(optimizer.unpack(packed)) == specs(state)
    for ours, theirs in zip(jax.tree.leaves(optimizer.unpack(packed)), jax.tree.leaves(state), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2.0**-7)
    for update, own, within in ((optimizer.update, packed, 0.015), (plain.update, optimizer.unpack(packed), 0.015)):
        new, step = params, jax.jit(update)
        for k in range(oracle.MIDDLE, oracle.STEPS):
            new, own = step(new, gradients(k), own)
        close(new, recorded(f"{rule}/end"), params, within)


OPTAX = {
    "quantize-8": (lambda rule: Quantize(rule, bits=8), lambda optimizer, plain, fresh: optimizer.pack(plain)),
    "round-16": (lambda rule: Round(rule, remainder=16), lambda optimizer, plain, fresh: fresh._replace(optimizer=plain)),
    "both": (
        lambda rule: Round(Quantize(rule, bits=8)),
        lambda optimizer, plain, fresh: optimizer.pack(fresh._replace(optimizer=plain)),
    ),
}


@pytest.mark.usefixtures("promotion")
@pytest.mark.parametrize("storage", OPTAX)
def test_a_run_goes_on_where_optax_left_it(storage):
    wrap, enter = OPTAX[storage]
    normal = lambda seed: jnp.asarray(np.random.default_rng(seed).normal(size=(SIZE, SIZE)), jnp.bfloat16)  # noqa: E731
    transformation, params = optax.adamw(0.01), normal(0).astype(jnp.float32)
    theirs, update = transformation.init(params), jax.jit(transformation.update)
    for seed in range(1, 5):
        _, theirs = update(normal(seed).astype(jnp.float32), theirs, params)
    optimizer, plain = wrap(AdamW(0.01, weight_decay=1e-4)), state_from_optax(AdamW(), params, theirs)
    own = params.astype(jnp.bfloat16) if storage != "quantize-8" else params
    fresh = optimizer.init(own)
    state = enter(optimizer, plain, fresh)
    assert specs(state) == specs(fresh)
    step, start = jax.jit(optimizer.update), params
    for seed in range(5, 15):
        own, state = step(own, normal(seed).astype(own.dtype), state)
        updates, theirs = update(normal(seed).astype(jnp.float32), theirs, params)
        params = optax.apply_updates(params, updates)
    close(optimizer.eval_params(own, state), params, start, 1e-5 if storage == "round-16" else 0.05)
    if storage != "round-16":
        inner = optimizer.unpack(state).optimizer if storage == "both" else optimizer.unpack(state)
        assert specs(inner) == specs(plain)
        assert bits(optimizer.pack(optimizer.unpack(state))) == bits(state)
