"""Accumulation under the trainer: a window is committed whole or dropped whole, with one backoff."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from steps import PARAMS, drive, gradients, trainer_of
from zoo import WARMUP, bits, groups

from mithril_opt import SGD, Accumulate, Adam, Frozen


def window_trainer(every=4, **settings):
    return trainer_of(Accumulate(Adam(learning_rate=WARMUP), every), **{"loss_scale": 2.0**10, **settings})


def test_gradients_are_unscaled_before_they_are_summed():
    params, state, scales, success = drive(window_trainer(growth_interval=1), "T" * 8)
    alone = Accumulate(Adam(learning_rate=WARMUP), 4)
    expected, expected_state = PARAMS, alone.init(PARAMS)
    for seed in range(1, 9):
        expected, expected_state = alone.update(expected, gradients(seed), expected_state)
    for a, b in zip(jax.tree.leaves((params, state.optimizer)), jax.tree.leaves((expected, expected_state)), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-6)
    assert success.all()
    np.testing.assert_array_equal(scales.scale / 2**10, [1, 1, 1, 2, 2, 2, 2, 4])


# letters, the scale after each step over the first one, the successes
WINDOWS = {
    "clean": ("TTTT", [1] * 4, "TTTT"),
    "first": ("FTTT", [1, 1, 1, 0.5], "FFFF"),
    "second": ("TFTT", [1, 1, 1, 0.5], "TFFF"),
    "last": ("TTTF", [1, 1, 1, 0.5], "TTTF"),
    "all": ("FFFF", [1, 1, 1, 0.5], "FFFF"),
    "two-windows": ("TFFTFTTT", [1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.25], "TFFFFFFF"),
    "bad-batch": ("TNTT", [1] * 4, "TFFF"),
    "bad-batch-last": ("TTTN", [1] * 4, "TTTF"),
    "bad-loss-finite-gradients": ("LTTT", [1] * 4, "FFFF"),
    "overflow-outweighs-a-bad-batch": ("NTFT", [1, 1, 1, 0.5], "FFFF"),
    "in-either-order": ("FTTN", [1, 1, 1, 0.5], "FFFF"),
}


@pytest.mark.parametrize("name", WINDOWS)
def test_one_bad_batch_drops_its_window_with_one_backoff(name):
    letters, scales, successes = WINDOWS[name]
    trainer = window_trainer()
    start, state, *_ = drive(trainer, "TTTT")
    params, after, history, success = drive(trainer, letters, start, state, seed=9)
    np.testing.assert_array_equal(history.scale / 2**10, scales)
    assert "".join("FT"[int(flag)] for flag in success) == successes
    if name == "clean":
        return
    assert bits(params) == bits(start)
    assert bits(after.optimizer.optimizer) == bits(state.optimizer.optimizer)
    assert int(after.optimizer.verdict) == 0
    assert (int(after.optimizer.micro_step), int(after.loss_scale.good_steps)) == (0, 0 if "F" in letters else 1)
    assert int(after.loss_scale.bad_input) == sum(letter in "NL" for letter in letters)
    undisturbed = drive(trainer, "TTTT", start, state, seed=20)
    again = drive(trainer, "TTTT", params, after, seed=20)
    assert bits((again[0], again[1].optimizer)) == bits((undisturbed[0], undisturbed[1].optimizer))
    assert bits(again[0]) != bits(start)


def test_growth_counts_windows():
    *_, scales, _ = drive(window_trainer(every=2, growth_interval=2), "TTTTTTTT")
    np.testing.assert_array_equal(scales.scale / 2**10, [1, 1, 1, 2, 2, 2, 2, 4])
    np.testing.assert_array_equal(scales.good_steps, [0, 1, 1, 0, 0, 1, 1, 0])


def test_hysteresis_counts_windows():
    *_, scales, _ = drive(window_trainer(every=2, hysteresis=2), "FFTFTTFT")
    np.testing.assert_array_equal(scales.scale / 2**10, [1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.25])


def test_a_dropped_window_is_one_skipped_update():
    trainer = window_trainer(min_loss_scale=2.0**10)
    _, state, scales, _ = drive(trainer, "FTTTTFFTTTTT")
    np.testing.assert_array_equal(scales.consecutive_skips, [0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 0])
    trainer.check(state, PARAMS)
    assert (int(state.loss_scale.attempts), int(state.loss_scale.skipped)) == (12, 7)


def test_micro_steps_under_the_trainer_leave_everything_but_the_mean():
    trainer = window_trainer()
    start, state, *_ = drive(trainer, "TTTT")
    for letters in ("T", "TT", "TF", "N"):
        params, after, *_ = drive(trainer, letters, start, state, seed=7)
        assert bits((params, after.optimizer.optimizer)) == bits((start, state.optimizer.optimizer))
        assert float(after.loss_scale.scale) == float(state.loss_scale.scale)


def test_only_the_member_that_overflowed_drops_its_window_under_vmap():
    trainer = trainer_of(Accumulate(SGD(learning_rate=1.0), 2), loss_scale=4.0)

    def window(error):
        params, state = jnp.zeros(2), trainer.init(jnp.zeros(2))
        for grad in (jnp.full(2, 4.0) + error, jnp.full(2, 12.0)):
            params, state, success = trainer.update(params, grad, state)
        return params, state.loss_scale.scale, success

    params, scales, success = jax.jit(jax.vmap(window))(jnp.array([0.0, jnp.inf, 0.0]))
    np.testing.assert_array_equal(params, [[-2.0] * 2, [0.0] * 2, [-2.0] * 2])
    np.testing.assert_array_equal(scales, [4.0, 2.0, 4.0])
    np.testing.assert_array_equal(success, [True, False, True])


def test_in_mid_window_the_trainers_state_survives_storage():
    trainer = window_trainer()
    params, state, *_ = drive(trainer, "TTTTTF")
    leaves, structure = jax.tree.flatten(state)
    restored = structure.unflatten([jnp.asarray(np.asarray(leaf)) for leaf in leaves])
    assert bits(drive(trainer, "TTTTTT", params, restored)) == bits(drive(trainer, "TTTTTT", params, state))


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("letters", ["TTTTFTTT", "TFTTFTTT", "FTTTFFTT"])
def test_groups_of_one_length_have_one_window(letters, frozen):
    """As `Accumulate` around the groups: an overflow drops the window of all of them, and the scale is constant inside it."""
    embedding = Frozen() if frozen else Adam()
    apart = groups(embedding if frozen else Accumulate(embedding, 4), Accumulate(SGD(learning_rate=1.0), 4))
    whole = Accumulate(groups(embedding, SGD(learning_rate=1.0)), 4)
    (params, state, *history), (expected, outer, *same) = (
        drive(trainer_of(optimizer, loss_scale=2.0), letters) for optimizer in (apart, whole)
    )
    assert bits(params) == bits(expected)
    assert bits(history) == bits(same)
    assert (
        int(state.optimizer.step) == int(outer.optimizer.optimizer.step) == ("F" not in letters[:4]) + ("F" not in letters[4:])
    )


@pytest.mark.parametrize("second", [Adam(), Accumulate(Adam(), 3)])
def test_groups_of_different_lengths_are_refused(second):
    trainer = trainer_of(groups(Accumulate(SGD(learning_rate=1.0), 2), second), loss_scale=2.0)
    with pytest.raises(ValueError, match=r"windows of different lengths, \[.*2.*\].*write Accumulate\(MultiOptimizer\(...\)"):
        drive(trainer, "T")
