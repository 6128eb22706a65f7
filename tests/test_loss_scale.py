"""The loss scale: when it moves, when it does not, and that its state is nothing but arrays."""

import io
import json
import pathlib
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from steps import drive, trainer_of
from zoo import bits, specs

from mithril_opt import LossScale

with np.load(pathlib.Path(__file__).parent / "data" / "torch_grad_scaler.npz") as file:
    TORCH = dict(file)


@jax.jit
def moved(rule, state, finite, input_finite):
    return rule.count(rule.adjust(state, finite, input_finite), finite, input_finite)


def follow(rule, letters):
    """The states of `rule` after each of `letters`: T finite, F overflow, N non-finite loss."""
    state, states = rule.init(), []
    for letter in letters:
        state = moved(rule, state, letter == "T", letter != "N")
        states.append(state)
    return jax.tree.map(lambda *leaves: np.stack(leaves), *states)


SEQUENCES = {
    "grow-and-back-off": (dict(initial=4, backoff_factor=0.25, growth_interval=2), "TTF", [4, 8, 2], [1, 0, 0]),
    "grow-every-second": (dict(initial=2, growth_interval=2), "T" * 8, [2, 4, 4, 8, 8, 16, 16, 32], [1, 0] * 4),
    "growth-on-the-nth": (dict(initial=2, growth_interval=3), "T" * 9, [2, 2, 4, 4, 4, 8, 8, 8, 16], [1, 2, 0] * 3),
    "four-overflows": (dict(initial=400), "FFFF", [200, 100, 50, 25], [0] * 4),
    "at-the-minimum": (dict(initial=2), "FFFFFT", [1] * 6, [0] * 5 + [1]),
    "below-one": (dict(initial=1, minimum=0.2), "FFFF", [0.5, 0.25, 0.2, 0.2], [0] * 4),
    "at-the-maximum": (dict(initial=2**24, growth_interval=1), "T" * 5, [2**24] * 5, [0] * 5),
    "up-to-the-maximum": (dict(initial=2, maximum=5, growth_interval=1), "TTFT", [4, 5, 2.5, 5], [0] * 4),
    "growth-past-float32": (dict(initial=4, growth_factor=3e38, growth_interval=1), "TT", [2**24] * 2, [0] * 2),
    "hysteresis": (
        dict(initial=1024, hysteresis=2, growth_interval=3),
        "FFFTTTFFF",
        [1024, 512, 256, 256, 256, 512, 512, 256, 128],
        [0, 0, 0, 1, 2, 0, 0, 0, 0],
    ),
    # Torch and Megatron refill the budget at a growth; finite steps alone do not.
    "hysteresis-is-not-refilled-by-finite-steps": (
        dict(initial=8, hysteresis=3),
        "FTFTFTF",
        [8, 8, 8, 8, 4, 4, 2],
        [0, 1, 0, 1, 0, 1, 0],
    ),
    "an-overflow-restarts-the-interval": (dict(initial=8, growth_interval=3), "TTFTTT", [8, 8, 4, 4, 4, 8], [1, 2, 0, 1, 2, 0]),
    "a-tolerated-overflow-too": (
        dict(initial=8, growth_interval=3, hysteresis=2),
        "TTFTTT",
        [8, 8, 8, 8, 8, 16],
        [1, 2, 0, 1, 2, 0],
    ),
    "bad-input-changes-nothing": (
        dict(initial=8, growth_interval=3),
        "TNTNNTN",
        [8, 8, 8, 8, 8, 16, 16],
        [1, 1, 2, 2, 2, 0, 0],
    ),
    "bad-input-spends-no-hysteresis": (dict(initial=8, hysteresis=2), "NNNFNF", [8, 8, 8, 8, 8, 4], [0] * 6),
    "static": (dict(initial=128, dynamic=False, growth_interval=2), "TTFTTN", [128] * 6, [1, 0, 0, 1, 0, 0]),
}


@pytest.mark.parametrize("name", SEQUENCES)
def test_sequence(name):
    rule, letters, scales, good_steps = SEQUENCES[name]
    states = follow(LossScale(**rule), letters)
    np.testing.assert_array_equal(states.scale, np.array(scales, np.float32))
    np.testing.assert_array_equal(states.good_steps, good_steps)


def test_counters():
    states = follow(LossScale(), "TTFNFNNTTF")
    np.testing.assert_array_equal(states.consecutive_skips, [0, 0, 1, 2, 3, 4, 5, 0, 0, 1])
    np.testing.assert_array_equal(states.skipped, [0, 0, 1, 2, 3, 4, 5, 5, 5, 6])
    np.testing.assert_array_equal(states.bad_input, [0, 0, 0, 1, 1, 2, 3, 3, 3, 3])
    np.testing.assert_array_equal(states.attempts, range(1, 11))


def test_every_sequence_of_torch_step_by_step():
    """Through whole trainers, one per sequence, swept with vmap over their settings."""
    assert json.loads(str(TORCH["description"]))["torch"]
    assert len(TORCH["finite"]) >= 60

    def histories(setting, finite):
        trainer = trainer_of(
            **dict(zip(("loss_scale", "growth_factor", "backoff_factor"), setting, strict=False)),
            growth_interval=setting[3].astype(jnp.int32), min_loss_scale=2.0**-126, max_loss_scale=2.0**126,
        )  # fmt: skip

        def body(carry, finite):
            params, state, success = trainer.update(carry[0], jnp.where(finite, 1.0, jnp.inf), carry[1])
            return (params, state), (state.loss_scale.scale, state.loss_scale.good_steps, success)

        return jax.lax.scan(body, (jnp.float32(0), trainer.init(jnp.float32(0))), finite)[1]

    scale, tracker, success = jax.jit(jax.vmap(histories))(TORCH["settings"].astype(np.float32), TORCH["finite"])
    np.testing.assert_array_equal(scale, TORCH["scale"])
    np.testing.assert_array_equal(tracker, TORCH["tracker"])
    np.testing.assert_array_equal(success, TORCH["finite"])


def test_settles_where_a_rule_of_consecutive_overflows_would_not():
    """Every other batch overflows above 2¹⁴: a budget that finite steps refill would skip 1000 of 2000 steps."""
    rule = LossScale(initial=2.0**16, hysteresis=2)

    def body(state, heavy):
        finite = ~heavy | (state.scale <= 2.0**14)
        return rule.count(rule.adjust(state, finite, True), finite, jnp.bool(True)), None

    state, _ = jax.jit(lambda s: jax.lax.scan(body, s, jnp.arange(2000) % 2 == 0))(rule.init())
    assert (float(state.scale), int(state.skipped)) == (2.0**14, 3)


def reference(rule, letters):
    """The rule once more, in Python."""
    scale, good, budget = rule.initial, 0, rule.hysteresis
    for letter in letters:
        if letter == "T":
            good += 1
            if good == rule.growth_interval:
                scale, good, budget = min(scale * rule.growth_factor, rule.maximum), 0, rule.hysteresis
        elif letter == "F":
            good, budget = 0, max(budget - 1, 0)
            scale = max(scale * rule.backoff_factor, rule.minimum) if budget == 0 else scale
        yield scale if rule.dynamic else rule.initial, good, budget


@jax.jit
def scanned(rule, finite, input_finite):
    body = lambda state, flags: (rule.adjust(state, *flags),) * 2  # noqa: E731
    return jax.lax.scan(body, rule.init(), (finite, input_finite))[1]


@settings(max_examples=150, deadline=None)
@given(
    letters=st.text("TTTFN", min_size=40, max_size=40),
    interval=st.integers(1, 6),
    hysteresis=st.integers(1, 4),
    powers=st.tuples(st.integers(-3, 2), st.integers(2, 6), st.integers(6, 9)),
    dynamic=st.booleans(),
)
def test_any_sequence_follows_the_rule(letters, interval, hysteresis, powers, dynamic):
    low, first, high = (2.0**power for power in powers)
    rule = LossScale(first, dynamic, minimum=low, maximum=high, growth_interval=interval, hysteresis=hysteresis)
    good, clean = np.array([letter == "T" for letter in letters]), np.array([letter != "N" for letter in letters])
    states = scanned(rule, good, clean)
    ours = zip(*(np.asarray(column).tolist() for column in (states.scale, states.good_steps, states.hysteresis)), strict=True)
    assert list(ours) == list(reference(rule, letters))


def test_the_state_is_strongly_typed_scalars_that_share_no_buffer():
    state = LossScale(initial=jnp.float32(4), hysteresis=jnp.int32(2)).init()
    assert state._fields == (
        "scale",
        *("good_steps", "hysteresis", "consecutive_skips", "skipped", "bad_input", "attempts", "last_bad_leaf"),
        "grad_norm",
    )
    assert specs(state)[1] == [((), jnp.float32, False), *[((), jnp.int32, False)] * 7, ((), jnp.float32, False)]
    assert len({leaf.unsafe_buffer_pointer() for leaf in state}) == 9


def test_the_state_owns_its_buffers_even_if_the_settings_are_arrays():
    rule = LossScale(initial=jnp.float32(4), hysteresis=jnp.int32(2))
    jax.jit(lambda state: rule.adjust(state, True, True), donate_argnums=0)(rule.init())
    assert float(rule.init().scale) == 4.0


def test_counters_saturate():
    rule = LossScale()
    last = jax.tree.map(lambda leaf: jnp.full_like(leaf, 2**31 - 1), rule.init())._replace(scale=jnp.float32(8))
    skipped = rule.count(rule.adjust(last, False, False), jnp.bool(False), jnp.bool(False))
    assert {int(leaf) for leaf in skipped if leaf.dtype == jnp.int32} == {2**31 - 1}
    assert int(rule.adjust(last._replace(good_steps=jnp.int32(2**31 - 1)), True, True).good_steps) == 0


def to_numpy_and_back(state):
    leaves, structure = jax.tree.flatten(state)
    file = io.BytesIO()
    np.savez(file, *map(np.asarray, leaves))
    file.seek(0)
    with np.load(file) as arrays:
        return structure.unflatten([jnp.asarray(arrays[f"arr_{i}"]) for i in range(len(leaves))])


ROUND_TRIPS = {
    "jit": jax.jit(lambda state: state),
    "tree-map": lambda state: jax.tree.map(lambda leaf: leaf, state),
    "numpy": to_numpy_and_back,
    "pickle": lambda state: pickle.loads(pickle.dumps(state)),
    "vmap": lambda state: jax.tree.map(lambda leaf: leaf[0], jax.vmap(lambda s, _: s, (None, 0))(state, jnp.arange(2))),
}


@pytest.mark.parametrize("name", ROUND_TRIPS)
def test_a_state_that_was_put_away_has_the_same_future(name):
    """In the middle of a growth interval, with part of the hysteresis spent."""
    trainer = trainer_of(loss_scale=64.0, growth_interval=4, hysteresis=2)
    params, state, *_ = drive(trainer, "TFNTT")
    restored = ROUND_TRIPS[name](state)
    assert specs(restored) == specs(state)
    assert bits(drive(trainer, "TTFFT", params, restored)) == bits(drive(trainer, "TTFFT", params, state))


@pytest.mark.parametrize(
    "passed",
    [
        lambda rule: jax.tree.unflatten(jax.tree.structure(rule), jax.tree.leaves(rule)),
        lambda rule: jax.tree.map(lambda number: number, rule),
        lambda rule: pickle.loads(pickle.dumps(rule)),
        jax.jit(lambda rule: rule),
    ],
)
def test_no_setting_is_lost_on_the_way(passed):
    rule = LossScale(64.0, True, 4.0, 0.25, 3, 32.0, 256.0, 2)
    assert passed(rule) == rule
    np.testing.assert_array_equal(follow(passed(rule), "FFFTTTTTTTT").scale[[0, 1, 2, 5, 8]], [64, 32, 32, 128, 256])


BAD_SETTINGS = [
    (dict(loss_scale=0), "loss_scale must be a number in (0, inf), got 0"),
    (dict(loss_scale=-2.0), "loss_scale must be a number in (0, inf), got -2.0"),
    (dict(loss_scale=float("inf")), "loss_scale must be a number in (0, inf), got inf"),
    (dict(loss_scale=float("nan")), "loss_scale must be a number in (0, inf), got nan"),
    (dict(loss_scale="128"), "loss_scale must be a number in (0, inf), got '128'"),
    (dict(loss_scale=lambda step: 2.0), "loss_scale must be a number in (0, inf), got <function"),
    (dict(growth_factor=1.0), "growth_factor must be a number in (1, inf), got 1.0"),
    (dict(growth_factor=float("inf")), "growth_factor must be a number in (1, inf), got inf"),
    (dict(backoff_factor=1.0), "backoff_factor must be a number in (0, 1), got 1.0"),
    (dict(backoff_factor=0.0), "backoff_factor must be a number in (0, 1), got 0.0"),
    (dict(growth_interval=0), "growth_interval must be an integer of at least 1, got 0"),
    (dict(growth_interval=2.5), "growth_interval must be an integer of at least 1, got 2.5"),
    (dict(growth_interval=True), "growth_interval must be an integer of at least 1, got True"),
    (dict(hysteresis=0), "hysteresis must be an integer of at least 1, got 0"),
    (dict(min_loss_scale=0.0), "min_loss_scale must be a number in [1.17549e-38, inf), got 0.0"),
    (dict(min_loss_scale=1e-40), "min_loss_scale must be a number in [1.17549e-38, inf), got 1e-40"),
    (dict(min_loss_scale=2.0**16), "(a trainer's min_loss_scale, loss_scale, max_loss_scale), got 65536.0, 32768.0"),
    (dict(loss_scale=2.0**25), "minimum ≤ initial ≤ maximum"),
    (dict(max_loss_scale=2.0**127), "max_loss_scale must be a number in (0, 8.50706e+37], got 1.70141"),
    (dict(clip_norm=-1.0), "clip_norm must be a number in [0, inf], got -1.0"),
    (dict(clip_norm=float("nan")), "clip_norm must be a number in [0, inf], got nan"),
]  # fmt: skip


@pytest.mark.parametrize("policy", ["float16", "bfloat16"])
@pytest.mark.parametrize(("setting", "message"), BAD_SETTINGS)
def test_bad_settings_raise_at_construction(setting, message, policy):
    with pytest.raises((ValueError, TypeError)) as error:
        trainer_of(policy=policy, **setting)
    assert message in str(error.value)


def test_ranges_are_checked_on_python_numbers_only():
    scales = jax.jit(lambda factor: LossScale(growth_factor=factor, growth_interval=1).init().scale)(0.5)
    assert float(scales) == 2.0**15


def test_the_defaults():
    rule = LossScale()
    numbers = (rule.initial, rule.growth_factor, rule.backoff_factor, rule.growth_interval, rule.minimum, rule.maximum)
    assert (*numbers, rule.hysteresis, rule.dynamic) == (2.0**15, 2.0, 0.5, 2000, 1.0, 2.0**24, 1, True)
    assert trainer_of().scaling == rule
