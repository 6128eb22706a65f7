"""Slots in 16 and 8 bits, bfloat16 parameters: what they cost in accuracy, and that nothing stalls and nothing explodes."""

import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from steps import scaled
from zoo import bits, specs

from mithril_opt import (
    SGD,
    Accumulate,
    Adam,
    AdamW,
    Clip,
    Frozen,
    MixedPrecisionTrainer,
    MultiOptimizer,
    OptState,
    Prodigy,
    Quantize,
    RMSProp,
    Round,
    ScheduleFree,
    ScheduleFreeSGD,
    from_optax,
    from_state_dict,
    pytree,
    state_shardings,
    to_optax,
    to_state_dict,
)
from mithril_opt.core.coding import Coded
from mithril_opt.core.updates import plain

SHAPE, STEPS = (32, 512), 600


def normal(rng):
    return 1e-3 * np.ones(SHAPE), np.ones(STEPS)


def heavy(rng):
    return 1e-3 * np.exp(1.5 * rng.normal(size=SHAPE)), np.exp(0.5 * rng.normal(size=STEPS))


def tiny(rng):
    return 10.0 ** np.linspace(-12, -3, SHAPE[0])[:, None] * np.ones(SHAPE), np.ones(STEPS)


def outlier(rng):
    return 1e-3 * np.where(np.arange(np.prod(SHAPE)).reshape(SHAPE) % 256 == 0, 1e4, 1), np.ones(STEPS)


def gradients(kind):
    """(scale per element, scale per step), and what is drawn anew in every step."""
    rng = np.random.default_rng(0)
    if kind == "sparse":  # rows that are active in 2 % of the steps
        active = rng.uniform(size=(STEPS, SHAPE[0], 1)) < 0.02
        return jnp.asarray(1e-3 * np.ones(SHAPE), jnp.float32), jnp.asarray(active, jnp.float32)
    scale, per_step = {"normal": normal, "heavy": heavy, "tiny": tiny, "outlier": outlier}[kind](rng)
    return jnp.asarray(scale, jnp.float32), jnp.asarray(per_step[:, None, None] * np.ones((STEPS, 1, 1)), jnp.float32)


@functools.partial(jax.jit, static_argnums=0)
def directions(optimizer, scale, per_step):
    """The updates of every step, at parameters that never move."""
    params = jnp.zeros(SHAPE)

    def step(state, given):
        index, factor = given
        grads = scale * factor * jax.random.normal(jax.random.key(index), SHAPE)
        updates, state = optimizer.compute_updates(params, grads, state)
        return state, plain(updates)

    return jax.lax.scan(step, optimizer.init(params), (jnp.arange(STEPS), per_step))[1]


@functools.cache
def directions_of(kind, bits_per_slot):
    adam = Adam(learning_rate=1.0, beta2=0.999)
    optimizer = adam if bits_per_slot is None else Quantize(adam, bits=bits_per_slot)
    return np.asarray(directions(optimizer, *gradients(kind)))


KINDS = {"normal": 0.06, "heavy": 0.5, "sparse": 0.03, "tiny": 0.09, "outlier": 0.69}


@pytest.mark.parametrize(
    ("bits_per_slot", "kind", "error"), [*((16, kind, 0.015) for kind in KINDS), *((8, *item) for item in KINDS.items())]
)
def test_the_direction(kind, bits_per_slot, error):
    exact, stored = directions_of(kind, None), directions_of(kind, bits_per_slot)
    late = slice(STEPS // 2, None)
    assert np.linalg.norm(stored[late] - exact[late]) < error * np.linalg.norm(exact[late])
    assert np.abs(stored).max() < (1.02 if bits_per_slot == 16 else 10) * np.abs(exact).max()


@pytest.mark.parametrize(("bits_per_slot", "factor"), [(16, 1.02), (8, 1.5)])
def test_a_second_moment_that_must_fall_by_ten_thousand_in_its_block(bits_per_slot, factor):
    """Half of a block goes from g = 1 to g = 0.01 after 3000 of 20 000 steps; stored to nearest it would stay where it was."""
    optimizer, params = Quantize(RMSProp(decay=0.999), bits=bits_per_slot), jnp.zeros((32, 128))
    half = jnp.arange(128) < 64

    def step(state, k):
        return optimizer.compute_updates(params, jnp.where(half & (k >= 3000), 0.01, 1.0)[None] * jnp.ones((32, 128)), state)[
            1
        ], None

    state = jax.jit(lambda state: jax.lax.scan(step, state, jnp.arange(20_000))[0])(optimizer.init(params))
    found = np.asarray(optimizer.unpack(state).slots.nu, np.float64)
    exact = 1e-4 + 0.999**17_000 * (1 - 1e-4)
    assert 1 / factor < found[:, :64].mean() / exact < factor
    np.testing.assert_allclose(found[:, 64:], 1, rtol=0.01)


@pytest.mark.parametrize(("remainder", "within"), [(0, 0.01), (8, 2e-4), (16, 2e-4)])
@pytest.mark.parametrize("decay", [False, True])
def test_parameters_move_by_less_than_they_can_show(remainder, within, decay):
    """10,000 steps of −10⁻⁵ from 1, where a bfloat16 moves by 2⁻⁹ at least; and as many by weight decay."""
    sgd = SGD(learning_rate=1e-5, weight_decay=1.0) if decay else SGD(learning_rate=1e-5)
    optimizer, params = Round(sgd, remainder=remainder), jnp.ones(4096, jnp.bfloat16)
    grads = jnp.zeros(4096, jnp.bfloat16) if decay else jnp.ones(4096, jnp.bfloat16)

    def step(carry, _):
        return optimizer.update(carry[0], grads, carry[1]), None

    (params, state), _ = jax.lax.scan(step, (params, optimizer.init(params)), length=10_000)
    wide = np.asarray(optimizer.eval_params(params, state), np.float64)
    assert params.dtype == jnp.bfloat16
    assert abs(wide.mean() - (np.exp(-0.1) if decay else 0.9)) < within
    assert wide.std() < within


def tree(dtype, seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"w": (64, 128), "b": (128,), "s": ()}
    return {name: jnp.asarray(rng.normal(size=shape), dtype) for name, shape in shapes.items()} | {"none": jnp.arange(2)}


def given(dtype, seed):
    return {**tree(jnp.bfloat16, seed), "none": None} if dtype == jnp.bfloat16 else jax.tree.map(
        lambda leaf: leaf.astype(dtype), {**tree(jnp.bfloat16, seed), "none": None}
    )  # fmt: skip


def trained_for(optimizer, params, steps=5):
    state, step = optimizer.init(params), jax.jit(optimizer.update)
    for i in range(steps):
        params, state = step(params, given(params["w"].dtype, 1 + i), state)
    return params, state


SIXTEEN_BITS = """
import jax, jax.numpy as jnp, numpy as np
from mithril_opt import *

for rule in AdamW(1e-3), SGD(1e-3, momentum=0.9), RMSProp(1e-3), AdaGrad(1e-3):
    stored = jax.random.normal(jax.random.key(0), (64, 128), jnp.bfloat16)
    exact, optimizer = stored.astype(jnp.float32), Round(rule, remainder=16)
    state, other = optimizer.init(stored), rule.init(exact)
    for i in range(50):
        grads = jax.random.normal(jax.random.key(1 + i), (64, 128), jnp.bfloat16)
        stored, state = optimizer.update(stored, grads, state)
        exact, other = rule.update(exact, grads.astype(jnp.float32), other)
    assert stored.dtype == jnp.bfloat16
    print(np.asarray(optimizer.eval_params(stored, state)).tobytes() == np.asarray(exact).tobytes())
"""


def test_sixteen_bits_beside_bfloat16_are_float32():
    """In a process of its own: as these tests compile, XLA rounds a product before it adds it in one of the two and not in the
    other."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    ran = subprocess.run([sys.executable, "-c", SIXTEEN_BITS], env=environment, capture_output=True, text=True, check=False)
    assert ran.stdout.split() == ["True"] * 4, ran.stderr


def test_prodigy_in_bfloat16():
    """d grows as it does in float32, although the first steps are of 10⁻⁶."""
    found = {}
    for optimizer, dtype in ((Round(Prodigy(), remainder=16), jnp.bfloat16), (Prodigy(), jnp.float32)):
        params = jnp.ones(64, dtype)
        state, step = optimizer.init(params), jax.jit(optimizer.update)
        for _ in range(20):
            params, state = step(params, jnp.ones(64, dtype), state)
        found[dtype] = float(optimizer.get_learning_rate(state))
    assert found[jnp.bfloat16] == pytest.approx(found[jnp.float32], rel=1e-5)
    assert found[jnp.float32] > 1e-5


def test_a_step_that_nearly_cancels_the_parameter():
    """p′ = p − η g = 2⁻³⁰ is far below a unit of p, and exact all the same: storage owns the last addition."""
    optimizer, params = Round(SGD(learning_rate=1.0), remainder=16), jnp.ones(1, jnp.bfloat16)
    params, state = optimizer.update(params, jnp.array([1 - 2.0**-24]), optimizer.init(params))
    assert optimizer.eval_params(params, state) == 2.0**-24


@pytest.mark.parametrize(
    "wrap", [lambda o: o, lambda o: Clip(o, clip_norm=1.0), lambda o: MultiOptimizer({"all": o}, {"all": ...})]
)
def test_optax_cannot_add_what_round_adds(wrap):
    with pytest.raises(TypeError, match="adds its updates itself"):
        to_optax(wrap(Round(SGD())))


STORAGES = {
    "quantize-16": lambda: Quantize(AdamW(1e-3)),
    "quantize-8": lambda: Quantize(AdamW(1e-3), bits=8),
    "round-0": lambda: Round(AdamW(1e-3), remainder=0),
    "round-8": lambda: Round(AdamW(1e-3)),
    "round-16": lambda: Round(AdamW(1e-3), remainder=16),
    "both": lambda: Round(Quantize(AdamW(1e-3), bits=8)),
    "the-other-way-round": lambda: Quantize(Round(AdamW(1e-3)), bits=8),
    "groups": lambda: Quantize(
        MultiOptimizer({"w": AdamW(1e-3), "rest": SGD(1e-3, momentum=0.9)}, {"w": "w", "rest": ...}), bits=8
    ),
    "in-groups": lambda: MultiOptimizer({"w": Quantize(AdamW(1e-3), bits=8), "rest": Frozen()}, {"w": "w", "rest": ...}),
    "optax": lambda: Quantize(from_optax(optax.adamw(1e-3)), bits=8),
    "clip": lambda: Quantize(Clip(AdamW(1e-3), clip_norm=1.0), bits=8),
}


OURS = [name for name in STORAGES if name != "optax"]  # which knows no missing gradients


@pytest.fixture(params=STORAGES, name="optimizer")
def fixture_optimizer(request):
    return STORAGES[request.param]()


def test_it_trains_as_float32_does(optimizer):
    exact, _ = trained_for(MultiOptimizer({"w": AdamW(1e-3), "rest": Frozen()}, {"w": "w", "rest": ...}), tree(jnp.float32))
    found, _ = trained_for(optimizer, tree(jnp.float32))
    moved = np.asarray(exact["w"] - tree(jnp.float32)["w"])
    assert np.linalg.norm(np.asarray(found["w"] - exact["w"])) < 0.05 * np.linalg.norm(moved)


def test_resume_is_exact(optimizer):
    params = tree(jnp.bfloat16)
    params, state = trained_for(optimizer, params)
    saved = {name: np.array(leaf) for name, leaf in to_state_dict(state).items()}
    restored = from_state_dict(jax.eval_shape(optimizer.init, params), saved)
    assert specs(restored) == specs(state)
    step = jax.jit(optimizer.update)
    grads = given(jnp.bfloat16, 9)
    assert bits(step(params, grads, restored)) == bits(step(params, grads, state))


@pytest.mark.parametrize("name", OURS)
def test_without_a_gradient_every_bit_stays(name):
    optimizer = STORAGES[name]()
    params, state = trained_for(optimizer, tree(jnp.bfloat16))
    new, after = jax.jit(optimizer.update)(params, {**given(jnp.bfloat16, 9), "w": None, "b": None, "s": None}, state)
    assert bits(new) == bits(params)
    counts = ("step", "count")
    assert {name: bits(leaf) for name, leaf in to_state_dict(after).items() if not name.endswith(counts)} == {
        name: bits(leaf) for name, leaf in to_state_dict(state).items() if not name.endswith(counts)
    }


def test_a_skipped_step_leaves_every_bit(optimizer):
    trainer = MixedPrecisionTrainer(None, optimizer, policy="float16")
    params = tree(jnp.bfloat16)
    state, step = trainer.init(params), jax.jit(trainer.update)
    params, state, success = step(params, scaled(trainer, given(jnp.bfloat16, 1), state), state)
    assert success
    bad = scaled(trainer, given(jnp.bfloat16, 2), state)
    bad = {**bad, "w": bad["w"].at[3, 4].set(jnp.inf)}
    new, after, success = step(params, bad, state)
    assert not success
    assert bits(new) == bits(params)
    assert bits(after.optimizer) == bits(state.optimizer)


def test_nothing_is_shared_and_donation_works(optimizer):
    params = tree(jnp.bfloat16)
    state = optimizer.init(params)
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves((params, state))]
    assert len(set(pointers)) == len(pointers)
    step = jax.jit(optimizer.update, donate_argnums=(0, 2))
    for i in range(3):
        params, state = step(params, given(jnp.bfloat16, i + 1), state)
    assert step._cache_size() == 1


def test_under_accumulation(optimizer):
    """Codes are touched in the last micro-step alone, and the window is the update with the mean."""
    params, accumulating = tree(jnp.bfloat16), Accumulate(optimizer, every=2)
    state, step = accumulating.init(params), jax.jit(accumulating.update)
    grads = given(jnp.bfloat16, 1)
    first, middle = step(params, grads, state)
    assert bits(first) == bits(params)
    assert bits(middle.optimizer) == bits(state.optimizer)
    second, _ = step(first, grads, middle)
    assert bits(second) == bits(jax.jit(optimizer.update)(params, grads, optimizer.init(params))[0])


@pytest.mark.parametrize("axis", [0, -1])
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def test_sharded_is_unsharded_to_the_bit(optimizer, axis_type, axis):
    """Also along an axis whose shards cut through the tiles; slots stay where `state_shardings` puts them."""
    mesh = jax.make_mesh((4,), ("x",), axis_types=(axis_type,))
    sharding = lambda leaf: NamedSharding(mesh, _spec(leaf.shape, axis))  # noqa: E731
    params = tree(jnp.bfloat16)
    shardings = jax.tree.map(sharding, params)
    with jax.set_mesh(mesh):
        many = trained_for(optimizer, jax.device_put(params, shardings), 3)
    one = trained_for(optimizer, params, 3)
    assert bits(jax.device_get(many)) == bits(jax.device_get(one))
    placed = state_shardings(optimizer, params, shardings)
    jax.tree.map(
        lambda leaf, at: leaf.sharding.is_equivalent_to(at, leaf.ndim) or pytest.fail(f"{leaf.sharding}"), many[1], placed
    )


def _spec(shape, axis):
    divides = shape and shape[axis] % 4 == 0
    return PartitionSpec(*("x" if divides and i == axis % len(shape) else None for i in range(len(shape))))


@pytest.mark.parametrize("bits_per_slot", [16, 8])
def test_inside_shard_map(bits_per_slot):
    """Where a device sees a part of a leaf that would be too small for codes, and a whole one that all devices have."""
    optimizer, mesh = Quantize(Adam(), bits=bits_per_slot), jax.make_mesh((4,), ("x",), axis_types=(AxisType.Auto,))
    params = {name: tree(jnp.float32)[name] for name in ("w", "b")}
    state = optimizer.init(params)
    specs_of = jax.tree.map(lambda leaf: PartitionSpec("x") if leaf.ndim == 2 else PartitionSpec(), (params, state))
    update = jax.shard_map(optimizer.update, mesh=mesh, in_specs=(specs_of[0], *specs_of), out_specs=specs_of)
    new, after = jax.jit(update)(params, params, state)
    assert specs(after) == specs(state)
    expected, other = jax.jit(optimizer.update)(params, params, state)
    assert bits(new) == bits(expected)
    for ours, theirs in zip(jax.tree.leaves(optimizer.unpack(after)), jax.tree.leaves(optimizer.unpack(other)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0.01, atol=0 if bits_per_slot == 16 else 0.05 * float(np.max(theirs)))


def test_nothing_is_kept_beside_what_is_frozen():
    optimizer = Round(MultiOptimizer({"w": AdamW(0.1), "rest": Frozen()}, {"w": "w", "rest": ...}), remainder=16)
    params = {"w": jnp.ones((2, 3), jnp.bfloat16), "b": jnp.ones(3, jnp.bfloat16)}
    state = optimizer.init(params)
    assert jax.tree.map(jnp.shape, state.remainder) == {"w": (2, 3), "b": None}
    new, after = jax.jit(optimizer.update)(params, params, state)
    assert bits(new["b"]) == bits(params["b"])
    assert specs(after) == specs(state)
    assert jax.tree.map(jnp.result_type, optimizer.eval_params(new, after)) == {"w": jnp.float32, "b": jnp.float32}


def test_schedule_free_in_bfloat16_alone_needs_its_average():
    """An error in y is one in x for ever where x is not kept, and those of all steps add up."""
    goal, narrow = jnp.linspace(-2, 2, 64), jnp.zeros(64, jnp.bfloat16)

    def distance(optimizer, params):
        """Of the average from the goal after 2000 steps with noise."""

        def step(carry, key):
            params, state = carry
            grads = 0.1 * (params.astype(jnp.float32) - goal) + 0.01 * jax.random.normal(key, (64,))
            return optimizer.update(params, grads, state), None

        keys = jax.random.split(jax.random.key(0), 2000)
        (params, state), _ = jax.lax.scan(step, (params, optimizer.init(params)), keys)
        return float(jnp.sqrt(jnp.mean((optimizer.eval_params(params, state) - goal) ** 2)))

    exact = distance(ScheduleFreeSGD(0.5), narrow.astype(jnp.float32))
    assert distance(Round(ScheduleFreeSGD(0.5, keep_x=True), remainder=0), narrow) == pytest.approx(exact, rel=0.1)
    assert distance(Round(ScheduleFreeSGD(0.5), remainder=0), narrow) > 2 * exact  # so the docstring of Round says what to do


@pytest.mark.parametrize("optimizer", [Quantize(Adam()), Quantize(Adam(), bits=8), Round(Adam(), remainder=0)], ids=str)
def test_leaves_do_not_err_together(optimizer):
    """Two that are alike, and see the same gradients, are rounded by thresholds of their own."""
    params = dict.fromkeys("ab", jnp.ones((64, 64), jnp.bfloat16 if isinstance(optimizer, Round) else jnp.float32))
    grads = dict.fromkeys("ab", jnp.linspace(0.1, 1, 4096).reshape(64, 64))
    params, state = jax.jit(optimizer.update)(params, grads, optimizer.init(params))
    a, b = ([params[name], state] if isinstance(optimizer, Round) else [state.slots.mu[name]] for name in "ab")
    assert bits(a)[0] != bits(b)[0]


@pytest.mark.parametrize(
    "wrap", [Quantize, *(functools.partial(Round, remainder=bits) for bits in (0, 8, 16)), lambda rule: Round(Quantize(rule))]
)
def test_derivatives_are_those_of_float32(wrap):
    """By the learning rate, the parameters and the gradients, after two steps of a rule that remembers the first."""
    rule, optimizer, start = SGD(0.25, momentum=0.5), wrap(SGD(0.25, momentum=0.5)), jnp.linspace(-1, 1, 8)

    @functools.partial(jax.grad, argnums=(0, 1, 2))
    def loss(optimizer, params, grads, dtype):
        params = params.astype(dtype)
        state = optimizer.init(params)
        for _ in range(2):
            params, state = optimizer.update(params, grads, state)
        return jnp.sum(params.astype(jnp.float32) * jnp.arange(8.0))

    found = jax.jit(loss, static_argnums=3)(optimizer, start, start, jnp.float32 if wrap is Quantize else jnp.bfloat16)
    exact = loss(rule, start, start, jnp.float32)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0.01)


@pytree
class Ahead(SGD):
    """Evaluated where the momentum leads to."""

    def eval_params(self, params, state):
        return jax.tree.map(lambda param, trace: param - trace, params, state.slots.trace)


@pytest.mark.parametrize("bits_per_slot", [16, 8])
def test_a_rule_that_reads_its_slots_to_evaluate(bits_per_slot):
    params, optimizer = jnp.ones((64, 64)), Quantize(Ahead(0.0, momentum=0.5), bits=bits_per_slot)
    params, state = optimizer.update(params, params, optimizer.init(params))
    assert bits(optimizer.eval_params(params, state)) == bits(jnp.zeros((64, 64)))


def test_the_last_step_that_there_is():
    params, optimizer = tree(jnp.bfloat16), Round(Quantize(Adam(), bits=8))
    last = jnp.int32(2**31 - 1)
    state = optimizer.init(params)
    state = state._replace(step=last, optimizer=state.optimizer._replace(step=last))
    params, state = jax.jit(optimizer.update)(params, given(jnp.bfloat16, 1), state)
    assert int(state.step) == int(state.optimizer.step) == 2**31 - 1
    assert all(np.isfinite(np.asarray(leaf, np.float32)).all() for leaf in jax.tree.leaves((params, optimizer.unpack(state))))


def test_names_in_a_checkpoint():
    params = {"w": jnp.ones((64, 128), jnp.bfloat16)}
    names = sorted(to_state_dict(Round(Quantize(Adam(), bits=8)).init(params)))
    slots = [f"optimizer/slots/{slot}/w/{part}" for slot in ("mu", "nu") for part in ("codes", "scales")]
    assert names == ["format_rules", "format_version", *slots, "optimizer/step", "remainder/w", "step"]


def test_which_slots_are_coded():
    leaves = {
        "large": jnp.ones((64, 128)), "small": jnp.ones((32, 127)), "narrow": jnp.ones((4099, 1)), "vector": jnp.ones(4096),
        "half": jnp.ones((64, 128), jnp.bfloat16), "complex": jnp.ones((64, 128), jnp.complex64), "scalar": jnp.float32(1),
    }  # fmt: skip
    coded = Quantize(SGD(momentum=0.9), bits=8).init(leaves).slots.trace
    assert {name for name, slot in coded.items() if isinstance(slot, Coded)} == {"large", "vector", "half"}
    halves = Quantize(SGD(momentum=0.9)).init(leaves).slots.trace
    assert {name: str(slot.dtype) for name, slot in halves.items() if slot.dtype != jnp.bfloat16} == {
        "complex": "complex64", "scalar": "float32"
    }  # fmt: skip


def test_pack_and_unpack():
    params = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(64, 128)), jnp.float32)}
    optimizer = Quantize(Adam(), bits=8)
    _, plain = Adam().update(params, params, Adam().init(params))
    packed = optimizer.pack(plain)
    assert isinstance(packed.slots.mu["w"], Coded)
    assert jax.tree.structure(packed) == jax.tree.structure(optimizer.init(params))
    unpacked = optimizer.unpack(packed)
    assert isinstance(unpacked, OptState)
    assert specs(unpacked) == specs(plain)
    assert bits(optimizer.pack(unpacked)) == bits(packed)


def test_state_bytes():
    params = {"w": jnp.ones((64, 128))}
    multi = lambda optimizer: MultiOptimizer({"all": optimizer}, {"all": ...}).describe(params).rows[0][5]  # noqa: E731
    assert [multi(Adam()), multi(Quantize(Adam())), multi(Quantize(Adam(), bits=8))] == [65536, 32768, 2 * (8192 + 64 * 4)]
    half = {"w": jnp.ones((64, 128), jnp.bfloat16)}
    state = Round(Quantize(Adam(), bits=8)).init(half)
    assert sum(leaf.nbytes for leaf in jax.tree.leaves((half, state))) == 16384 + 8192 + 2 * (8192 + 256) + 8


@pytest.mark.parametrize("make", [Quantize, Round])
def test_bad_settings(make):
    name = "bits" if make is Quantize else "remainder"
    for value in (4, 8.0 + 1, True, None):
        with pytest.raises(ValueError, match=rf"{make.__name__}: {name} must be .* got {value!r}"):
            make(SGD(), **{name: value})
    with pytest.raises(ValueError, match=rf"{make.__name__}: the optimizer accumulates; write Accumulate\({make.__name__}\("):
        make(Accumulate(SGD(), 2))
    with pytest.raises(TypeError, match=f"{make.__name__}: optimizer must be an Optimizer"):
        make(optax.sgd(0.1))


def test_compositions_that_mean_nothing():
    for inside in (Quantize(SGD(), bits=8), MultiOptimizer({"a": Clip(Quantize(SGD()), clip_norm=1.0)}, {"a": ...})):
        with pytest.raises(ValueError, match="Quantize: slots inside are stored in fewer bits already, by another Quantize"):
            Quantize(inside)
    with pytest.raises(ValueError, match=r"ScheduleFree: z has 32 bits or more, .* write Round\(ScheduleFree\(...\)\)"):
        ScheduleFree(Clip(Round(Adam(beta1=0.0)), clip_norm=1.0))


def test_states_of_another_width():
    params = tree(jnp.float32)
    eight, sixteen = Quantize(Adam(), bits=8), Quantize(Adam())
    for optimizer, other in ((sixteen, Adam()), (eight, Adam()), (eight, sixteen), (sixteen, eight)):
        with pytest.raises(ValueError, match=rf"does not belong to Quantize\(..., bits={optimizer.bits}\): it has a slot"):
            optimizer.update(params, params, other.init(params))
    half = {"w": jnp.ones(3, jnp.bfloat16)}
    for ours, theirs in ((0, 8), (8, 0), (8, 16), (16, 8)):
        with pytest.raises(ValueError, match=r"does not belong to this optimizer .*: the remainder of bfloat16\[3\] is"):
            Round(SGD(), remainder=ours).update(half, half, Round(SGD(), remainder=theirs).init(half))


def test_float16_parameters():
    with pytest.raises(ValueError, match="at 'a/w': Round takes no float16, whose sums overflow; train bfloat16"):
        Round(SGD()).init({"a": {"b": jnp.ones(2, jnp.bfloat16), "w": jnp.ones(2, jnp.float16)}})
