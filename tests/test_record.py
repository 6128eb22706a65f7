"""The record of the last updates: that it is true, costs no second norm, and can be read later."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from steps import PARAMS, drive, gradients, trainer_of
from zoo import WARMUP, bits, groups, unrecorded

from mithril_opt import (
    AGC,
    EMA,
    SGD,
    Accumulate,
    Adam,
    AdamW,
    AddNoise,
    CentralizeGradients,
    Clip,
    Frozen,
    MultiOptimizer,
    Record,
    ScaleRate,
    Switch,
    from_optax,
    from_state_dict,
    plot_record,
    read_record,
    to_state_dict,
)


def norm(tree):
    """The 2-norm in float64."""
    return np.sqrt(sum(np.sum(np.abs(np.asarray(leaf, np.complex128)) ** 2) for leaf in jax.tree.leaves(tree)))


def table(optimizer, state, params=None):
    """The rows as dictionaries."""
    read = read_record(optimizer, state, params)
    return [dict(zip(read.columns, row, strict=True)) for row in read.rows]


def run(optimizer, steps, params=PARAMS, state=None, seed=1):
    state, update = optimizer.init(params) if state is None else state, jax.jit(optimizer.update)
    for i in range(steps):
        params, state = update(params, gradients(seed + i), state)
    return params, state


def test_every_row_is_what_happened():
    optimizer = Record(AdamW(learning_rate=WARMUP), size=8)
    params, state = PARAMS, optimizer.init(PARAMS)
    expected = []
    for seed in range(5):
        old, rate = params, float(AdamW(learning_rate=WARMUP).at(seed).learning_rate)
        params, state = optimizer.update(params, gradients(seed), state)
        moved = jax.tree.map(lambda new, before: np.float64(new) - np.float64(before), params, old)
        expected.append((seed, rate, norm(gradients(seed)), norm(moved), norm(old), norm(moved) / norm(old)))
    rows = table(optimizer, state)
    names = ("step", "learning_rate", "gradient norm", "update norm", "parameter norm", "ratio")
    np.testing.assert_allclose([[row[name] for name in names] for row in rows], expected, rtol=2e-5)
    assert {(row["clipped"], row["outcome"], row["first bad leaf"]) for row in rows} == {("no", "applied", None)}


def test_it_changes_nothing_else():
    for inner in (AdamW(learning_rate=WARMUP), groups(Frozen(), Adam()), Accumulate(SGD(0.1), every=2)):
        (params, state), (expected, alone) = run(Record(inner), 5), run(inner, 5)
        assert bits(params) == bits(expected)
        assert bits(state.optimizer) == bits(alone)


def test_it_has_no_derivative():
    optimizer, params = Record(Clip(SGD(), clip_norm=1.0)), jnp.zeros(2)
    recorded = lambda grads: optimizer.update(params, grads, optimizer.init(params))[1].history  # noqa: E731
    loss = lambda grads: sum(jnp.sum(column) for column in (recorded(grads).grad_norm, recorded(grads).update_norm))  # noqa: E731
    np.testing.assert_array_equal(jax.grad(loss)(jnp.ones(2)), 0)


def test_the_ring_keeps_the_last_rows_in_order():
    optimizer = Record(SGD(learning_rate=0.1), size=3)
    for steps, kept in ((0, []), (2, [0, 1]), (3, [0, 1, 2]), (7, [4, 5, 6])):
        assert [row["step"] for row in table(optimizer, run(optimizer, steps)[1])] == kept


def test_only_every_kth_update_is_kept():
    optimizer = Record(SGD(learning_rate=0.1), every=3, size=4)
    assert [row["step"] for row in table(optimizer, run(optimizer, 8)[1])] == [0, 3, 6]


def test_rates_of_groups_by_name():
    optimizer = Record(groups(SGD(learning_rate=0.5), Adam(learning_rate=WARMUP)))
    row = table(optimizer, run(optimizer, 3)[1])[2]
    assert [name for name in row if name in ("body", "embedding")] == ["body", "embedding"]
    assert (row["embedding"], row["body"]) == pytest.approx((0.5, 0.067), rel=1e-3)
    silent = Record(from_optax(optax.sgd(0.1)))
    assert "learning_rate" not in table(silent, run(silent, 1)[1])[0]


def test_frozen_leaves_do_not_count():
    optimizer = Record(groups(Frozen(), SGD(learning_rate=1.0)))
    row = table(optimizer, run(optimizer, 1)[1])[0]
    assert row["gradient norm"] == pytest.approx(norm(gradients(1)["body"]), rel=1e-6)
    assert row["update norm"] == pytest.approx(norm(gradients(1)["body"]), rel=1e-6)


# Clipping.


@pytest.mark.parametrize(("bound", "clipped"), [(0.5, "yes"), (1e6, "no")])
def test_the_norm_is_that_before_clipping(bound, clipped):
    inside = Record(Clip(SGD(learning_rate=1.0), clip_norm=bound))
    row = table(inside, run(inside, 1)[1])[0]
    assert (row["gradient norm"], row["clipped"]) == (pytest.approx(norm(gradients(1)), rel=1e-6), clipped)
    trainer = trainer_of(Record(SGD(learning_rate=1.0)), clip_norm=bound, loss_scale=2.0**9)
    _, state, *_ = drive(trainer, "T")
    row = table(trainer, state)[0]
    assert (row["gradient norm"], row["clipped"]) == (pytest.approx(norm(gradients(1)), rel=1e-6), clipped)
    assert row["update norm"] == pytest.approx(min(bound, norm(gradients(1))), rel=1e-5)
    assert float(trainer.metrics(state)["grad_norm"]) == row["gradient norm"]


def test_who_clips_is_found_through_wrappers():
    for wrap in (lambda o: EMA(o), lambda o: ScaleRate(o, {"embed": 0.5}), lambda o: Clip(o, clip_norm=1e6)):
        optimizer = Record(wrap(Clip(SGD(learning_rate=1.0), clip_norm=lambda step: 0.5)))
        assert table(optimizer, run(optimizer, 1)[1])[0]["clipped"] == "yes"


@pytest.mark.parametrize(
    ("wrap", "expected"),
    [
        (lambda clip: Accumulate(clip(0.5), every=2), ["no", None]),  # of the mean that it clips nothing is known
        (lambda clip: Clip(Accumulate(clip(0.5), every=2), clip_norm=1e6), ["no", None]),
        (lambda clip: Clip(Accumulate(clip(0.5), every=2), clip_norm=0.1), ["yes", "yes"]),
        (lambda clip: Accumulate(Clip(SGD(1.0), clip_value=0.5), every=2), ["no", "no"]),
        (lambda clip: groups(clip(0.5), SGD(1.0)), [None, None]),
    ],
)
def test_a_clip_of_other_gradients_is_not_known(wrap, expected):
    optimizer = Record(wrap(lambda bound: Clip(SGD(1.0), clip_norm=bound)), size=2)
    assert [row["clipped"] for row in table(optimizer, run(optimizer, 2)[1])] == expected


@pytest.mark.parametrize(("bound", "expected"), [(1e6, ["no", None, "no", "no"]), (0.1, ["yes", "yes", "no", "yes"])])
def test_a_clip_of_other_gradients_is_not_known_under_the_trainer(bound, expected):
    window = Record(Accumulate(Clip(SGD(1.0), clip_norm=0.5), every=2), size=4)
    trainer = trainer_of(window, clip_norm=bound, loss_scale=2.0)
    rows = table(trainer, drive(trainer, "TTFT")[1])
    assert [row["clipped"] for row in rows] == expected


@pytest.mark.parametrize(
    "wrap",
    [
        lambda o: AGC(o, clipping=1e-6),
        lambda o: Clip(o, clip_value=1e-6),
        lambda o: CentralizeGradients(o),
        lambda o: AddNoise(o, eta=0.0),
    ],
)
def test_a_norm_that_something_else_has_changed_says_nothing_of_a_clip(wrap):
    optimizer = Record(wrap(Clip(SGD(learning_rate=1.0), clip_norm=0.5)))
    assert table(optimizer, run(optimizer, 1)[1])[0]["clipped"] is None


def test_a_clip_in_a_switch_that_is_off():
    optimizer = Record(Switch(Clip(SGD(learning_rate=1.0), clip_norm=0.5), on=lambda step: step < 0))
    assert table(optimizer, run(optimizer, 1)[1])[0]["clipped"] == "no"


@pytest.mark.parametrize(("values", "clipped"), [([3e38] * 4, "yes"), ([jnp.inf, 1.0], "no"), ([0.25] * 4, "no")])
def test_clips_of_norms_that_no_float32_holds(values, clipped):
    optimizer, params = Record(Clip(SGD(), clip_norm=1.0)), jnp.ones(len(values))
    assert table(optimizer, optimizer.update(params, jnp.array(values), optimizer.init(params))[1])[0]["clipped"] == clipped


def test_without_the_trainer_the_norm_is_taken_anew():
    optimizer = Record(SGD(learning_rate=0.1))
    params, state, *_ = drive(trainer_of(optimizer, loss_scale=2.0), "T")
    _, state = optimizer.update(params, gradients(7), state.optimizer)
    assert [row["gradient norm"] for row in table(optimizer, state)] == pytest.approx([*map(norm, map(gradients, (1, 7)))])


def test_in_a_group_it_is_about_the_group():
    optimizer = groups(SGD(0.1), Record(SGD(0.1)))
    trainer = trainer_of(optimizer, loss_scale=2.0)
    _, state, *_ = drive(trainer, "TF")
    part, own = state.optimizer.slots["body"], {"body": PARAMS["body"]}
    rows = table(optimizer.optimizers["body"], part, own)
    assert [row["gradient norm"] for row in rows] == pytest.approx([norm(gradients(1)["body"]), jnp.nan], nan_ok=True)
    assert [(row["outcome"], row["first bad leaf"]) for row in rows] == [("applied", None), ("overflow", None)]
    with pytest.raises(ValueError, match=r"one in a group is read with .* state.slots\[name\]"):
        read_record(trainer, state)


def norms_of_gradients(optimizer):
    """How many sums a compiled step has that are for the norm of the gradients: on CPUs these are in float64."""
    text = jax.jit(optimizer.update).lower(PARAMS, gradients(1), optimizer.init(PARAMS)).compile().as_text()
    return sum(" reduce(" in line and "f64[" in line for line in text.splitlines())


@pytest.mark.parametrize(
    "make",
    [
        lambda record: trainer_of(record(SGD(0.1))),
        lambda record: trainer_of(record(EMA(AdamW())), clip_norm=1.0),
        lambda record: trainer_of(EMA(record(Accumulate(AdamW(), every=2)))),
        lambda record: record(Clip(AdamW(), clip_norm=1.0)),
        lambda record: record(ScaleRate(Clip(AdamW(), clip_norm=1.0), {"embed": 0.5})),
    ],
)
def test_there_is_no_second_norm_of_the_gradients(make):
    """Under the trainer it is the trainer's, and around a clip the clip's: the compiler finds that they are the same."""
    assert norms_of_gradients(make(Record)) == norms_of_gradients(make(lambda inner: inner)) == 2


# What was skipped.


def test_skipped_steps_are_recorded_and_nothing_else_moves():
    trainer = trainer_of(Record(Adam(learning_rate=0.1), every=2, size=8), loss_scale=2.0**9)
    params, state, *_ = drive(trainer, "TTT")
    after, skipped, *_ = drive(trainer, "FNL", params, state)
    assert bits(after) == bits(params)
    assert bits(unrecorded(skipped.optimizer)) == bits(unrecorded(state.optimizer))
    rows = table(trainer, skipped, PARAMS)
    assert [row["outcome"] for row in rows] == ["applied", "applied", "overflow", "bad input", "bad input"]
    assert [row["step"] for row in rows] == [0, 2, 3, 3, 3]
    assert [row["first bad leaf"] for row in rows] == [None, None, "body/w", "body/w", None]
    assert [row["update norm"] for row in rows[2:]] == [0.0, 0.0, 0.0]
    assert [row["parameter norm"] for row in rows[2:]] == [None] * 3
    assert not np.isfinite(rows[2]["gradient norm"])
    assert table(trainer, skipped)[2]["first bad leaf"] == 0


def test_a_float16_overflow_of_a_parameter():
    trainer = trainer_of(Record(SGD(learning_rate=1.0)), loss_scale=1.0, dynamic_loss_scaling=False)
    params = {"w": jnp.asarray([6e4], jnp.float16)}
    _, state, success = trainer.update(params, {"w": jnp.asarray([-1e4])}, trainer.init(params))
    assert not bool(success)
    assert [row["outcome"] for row in table(trainer, state)] == ["bad input"]


def test_parts_of_a_window():
    optimizer = Record(Accumulate(SGD(learning_rate=0.1), every=3), size=8)
    trainer = trainer_of(optimizer, loss_scale=2.0)
    _, state, *_ = drive(trainer, "TTTTFT")
    rows = table(trainer, state)
    assert [row["outcome"] for row in rows] == ["accumulated"] * 2 + ["applied", "accumulated", "overflow", "overflow"]
    assert [row["step"] for row in rows] == [0, 0, 0, 1, 1, 1]
    assert [row["update norm"] > 0 for row in rows] == [False, False, True, False, False, False]
    inside = trainer_of(Accumulate(Record(SGD(learning_rate=1.0)), every=2), loss_scale=2.0)
    _, state, *_ = drive(inside, "TT")
    mean = jax.tree.map(lambda a, b: (a + b) / 2, gradients(1), gradients(2))
    assert [row["gradient norm"] for row in table(inside, state)] == pytest.approx([norm(mean)], rel=1e-6)


def test_without_a_trainer_a_gradient_that_is_not_finite_is_named():
    optimizer = Record(SGD(learning_rate=0.1))
    grads = jax.tree.map(lambda leaf: leaf.at[0, 0].set(jnp.nan), {**gradients(1)})
    _, state = optimizer.update(PARAMS, {**grads, "body": gradients(1)["body"]}, optimizer.init(PARAMS))
    assert table(optimizer, state, PARAMS)[0]["first bad leaf"] == "embed"
    assert table(optimizer, state, PARAMS)[0]["outcome"] == "applied"


# Reading it later.


def test_it_is_read_from_a_checkpoint_after_a_crash():
    trainer = trainer_of(EMA(Record(Adam(learning_rate=0.1), size=4)), loss_scale=2.0)
    _, state, *_ = drive(trainer, "TTFT")
    saved = {name: np.asarray(value) for name, value in to_state_dict(state).items()}
    assert "optimizer/optimizer/history/grad_norm" in saved
    restored = from_state_dict(jax.eval_shape(trainer.init, PARAMS), saved)
    assert str(read_record(trainer, restored, PARAMS)) == str(read_record(trainer, state, PARAMS))
    assert len(str(read_record(trainer, restored)).splitlines()) == 5


def test_the_loop_may_end_in_an_exception():
    optimizer = Record(SGD(learning_rate=0.5))
    params, state = PARAMS, optimizer.init(PARAMS)
    try:
        for seed in range(10):
            params, state = optimizer.update(params, gradients(seed), state)
            assert seed < 3
    except AssertionError:
        pass
    assert [row["step"] for row in table(optimizer, state)] == [0, 1, 2, 3]


def test_in_a_scan_and_under_vmap():
    optimizer = Record(SGD(learning_rate=0.1), size=4)
    grads = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[gradients(seed) for seed in range(6)])
    body = lambda carry, grad: (optimizer.update(carry[0], grad, carry[1]), None)  # noqa: E731
    (_, state), _ = jax.lax.scan(body, (PARAMS, optimizer.init(PARAMS)), grads)
    assert str(read_record(optimizer, state)) == str(read_record(optimizer, run(optimizer, 6, seed=0)[1]))
    train = lambda rate: run(Record(SGD(learning_rate=rate), size=4), 2)[1]  # noqa: E731
    swept = jax.vmap(train)(jnp.array([0.1, 0.2]))
    second = jax.tree.map(lambda leaf: leaf[1], swept)
    np.testing.assert_allclose(second.history.update_norm, train(jnp.float32(0.2)).history.update_norm, rtol=1e-6)


def test_the_picture():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    trainer = trainer_of(Record(SGD(learning_rate=0.1)), clip_norm=0.5, loss_scale=2.0)
    _, state, *_ = drive(trainer, "TTFNT")
    figure, ax = plt.subplots()
    assert plot_record(trainer, state, ax) is ax
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        "gradients",
        "updates",
        "parameters",
        "clipped",
        "skipped",
    ]
    line = ax.get_lines()[0]
    np.testing.assert_array_equal(line.get_xdata(), [0, 1, 2, 2, 2])
    np.testing.assert_allclose(line.get_ydata()[:2], [norm(gradients(1)), norm(gradients(2))], rtol=1e-6)
    assert ax.get_yscale() == "log"
    figure.canvas.draw()
    plt.close(figure)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Record(SGD(), every=0), ValueError, "Record: every must be an integer of at least 1"),
        (lambda: Record(SGD(), size=0), ValueError, "Record: size must be an integer of at least 1, got 0"),
        (lambda: Record(SGD(), size=2.5), ValueError, "Record: size must be an integer of at least 1, got 2.5"),
        (lambda: Record("sgd"), TypeError, "Record: optimizer must be an Optimizer"),
        (lambda: read_record(SGD(), SGD().init(PARAMS)), ValueError, "SGD: there is no Record around the optimizer"),
        (lambda: read_record(trainer_of(), trainer_of().init(PARAMS)), ValueError, "there is no Record around the optimizer"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_the_names_of_groups_are_no_parameters():
    """Groups that are called as the parameters are: rates are not mistaken for slots of theirs."""
    params = {"a": jnp.ones(64), "b": jnp.ones(64)}
    optimizer = Record(MultiOptimizer({"a": SGD(), "b": SGD()}, groups={"a": "a", "b": "b"}))
    wrapped = MultiOptimizer({"all": optimizer}, groups={"all": ...})
    assert [row[-1] for row in wrapped.describe(params).rows] == [0, 0]
