"""The table of what an optimizer will do, against states that were made and rates that are known."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from zoo import RULES

from mithril_opt import (
    AGC,
    EMA,
    SGD,
    SWA,
    Accumulate,
    Adam,
    AdamW,
    AddNoise,
    CentralizeGradients,
    ChainedScheduler,
    Clip,
    ConstantLR,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    CosineCyclesLR,
    CosineDecayLR,
    CosineHardRestartsLR,
    CyclicLR,
    ExponentialLR,
    Frozen,
    InverseSqrtLR,
    LambdaLR,
    LeafOptimizer,
    LinearLR,
    LinearWarmupScheduler,
    Lion,
    Lookahead,
    MixedPrecisionTrainer,
    MultiOptimizer,
    MultiStepLR,
    Muon,
    NoamLR,
    OneCycleLR,
    PerEpoch,
    PolynomialLR,
    Quantize,
    Record,
    ReduceLROnPlateau,
    Round,
    ScaleRate,
    Schedule,
    ScheduleFree,
    ScheduleFreeSGD,
    SequentialLR,
    StepLR,
    Switch,
    WarmupStableDecayLR,
    explain,
    from_optax,
    layer_decay,
    pytree,
)
from mithril_opt.core.fields import shown
from mithril_opt.tools.plan import the_leaves

MATRICES = {"decay_mask": lambda path, leaf: jnp.ndim(leaf) == 2}
WARMUP = LinearWarmupScheduler(10, 0.0, 0.1, after_scheduler=CosineDecayLR(0.1, decay_steps=90, min_lr=0.01))
PARAMS = {
    "embed": jnp.ones((8, 4)),
    "layer": {"w": jnp.ones((4, 4), jnp.bfloat16), "bias": jnp.ones(4), "calls": 3},
    "head": jnp.ones((4, 2)),
}
MATRIX = {"w": jnp.ones((4, 4))}
OPTIMIZER = MultiOptimizer(
    {
        "embed": SGD(learning_rate=0.5),
        "body": MultiOptimizer({"all": AdamW(learning_rate=WARMUP, weight_decay=0.2, **MATRICES)}, groups={"all": "*"}),
        "head": Frozen(),
    },
    groups={"embed": "embed", "body": "layer/*", "head": "head"},
)


REMEDY = "a schedule in epochs needs PerEpoch(schedule, steps_per_epoch), or its numbers times the steps per epoch"


def rows(table):
    return {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}


def warnings(table):
    return [line.removeprefix("warning: ") for line in table.footer if line.startswith("warning: ")]


def test_a_row_for_each_leaf_that_trains():
    table = rows(explain(OPTIMIZER, PARAMS, total_steps=100))
    assert list(table) == ["embed", "head", "layer/bias", "layer/w"]
    w = table["layer/w"]
    assert (w["shape"], w["dtype"], w["group"], w["optimizer"]) == ((4, 4), "bfloat16", "body/all", "AdamW")
    # The last update is made at step 99, the 89th of 90 of the cosine.
    last = 0.01 + 0.045 * (1 + np.cos(np.pi * 89 / 90))
    np.testing.assert_allclose([w["rate at start"], w["peak"], w["end"]], [0.0, 0.1, last], rtol=1e-5)
    assert [table[path]["decay"] for path in table] == pytest.approx([0.0, 0.0, 0.0, 0.2])
    assert [table["head"][name] for name in ("optimizer", "rate at start", "peak", "end")] == ["Frozen", 0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    "wrap", [lambda o: o, lambda o: MixedPrecisionTrainer(None, Accumulate(o, 2))], ids=["bare", "wrapped"]
)
def test_state_bytes_are_those_of_the_state(wrap):
    table, state = explain(wrap(OPTIMIZER), PARAMS, total_steps=100), wrap(OPTIMIZER).init(PARAMS)
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(state) if leaf.ndim)
    assert sum(row["state bytes"] for row in rows(table).values()) == total
    assert f"60 parameters, {total:,} bytes of state, 100 steps" in table.footer


def test_it_prints_only_when_asked(capsys):
    table = explain(OPTIMIZER, PARAMS, total_steps=100)
    assert capsys.readouterr().out == ""
    print(table)
    printed = capsys.readouterr().out
    assert printed == f"{table}\n" == f"{table!r}\n"
    assert printed.splitlines()[-5:] == [
        "head        (4, 2)  float32   head      Frozen                 0     0        0      0            0",
        "layer/bias  (4,)    float32   body/all  AdamW                  0   0.1  0.01003      0           32",
        "layer/w     (4, 4)  bfloat16  body/all  AdamW                  0   0.1  0.01003    0.2          128",
        "60 parameters, 160 bytes of state, 100 steps",
        "not trained: layer/calls",
    ]


def test_what_an_optimizer_does_not_tell_is_not_made_up():
    row = rows(explain(from_optax(optax.adam(0.1)), PARAMS, total_steps=100))["embed"]
    assert [row[name] for name in ("rate at start", "peak", "end", "decay")] == [None] * 4
    assert row["state bytes"] == 2 * PARAMS["embed"].nbytes


def test_abstract_parameters_and_long_runs():
    abstract = jax.eval_shape(lambda: {"w": jnp.ones((4, 4), jnp.bfloat16)})
    table = explain(AdamW(learning_rate=StepLR(1e-4, step_size=10**9, gamma=0.1)), abstract, total_steps=2**31 - 1)
    row = rows(table)["w"]
    np.testing.assert_allclose([row["rate at start"], row["peak"], row["end"]], [1e-4, 1e-4, 1e-6], rtol=1e-6)
    assert not warnings(table)


def test_no_address_is_printed():
    own = lambda path, leaf: True  # noqa: E731
    ramp = LambdaLR(0.1, lambda step: 1.0 + step)
    optimizer = Switch(ScaleRate(Clip(AdamW(ramp, decay_mask=own), clip_norm=ramp), lambda path, leaf: ramp), on=ramp)
    table = explain(MixedPrecisionTrainer(None, EMA(AGC(optimizer, clipping=ramp), decay=lambda step: 0.5)), PARAMS, 9)
    assert "<function" in str(table)
    assert " at 0x" not in str(table)
    with pytest.raises(ValueError, match=r"belongs to no group; .*<function") as raised:
        MultiOptimizer({"a": SGD(), "b": SGD()}, groups={"a": "w", "b": lambda path, leaf: False}).describe(PARAMS)
    assert " at 0x" not in str(raised.value)


def test_no_array_is_printed_whole():
    assert "11." not in shown(Listed(jnp.arange(24.0)))


# What is probably a mistake.


def test_a_sound_setup_gets_no_warnings():
    optimizer = MultiOptimizer(
        {"embed": Adam(learning_rate=WARMUP), "body": AdamW(learning_rate=WARMUP, **MATRICES)},
        groups={"embed": "embed", "body": ...},
    )
    assert not warnings(explain(optimizer, PARAMS, total_steps=100))
    assert not warnings(explain(AdamW(learning_rate=ReduceLROnPlateau(0.1), **MATRICES), {"w": PARAMS["head"]}, 100))


@pytest.mark.parametrize(("steps", "warned"), [(9, True), (11, False)])
def test_a_warm_up_longer_than_the_run(steps, warned):
    found = warnings(explain(OPTIMIZER, PARAMS, total_steps=steps))
    rises = "the rate of group 'body/all' still rises when the run ends: its warm-up is longer than the run"
    assert found == ([rises] if warned else [])
    alone = warnings(explain(SGD(learning_rate=WARMUP), PARAMS, total_steps=steps))
    assert alone == (["the rate still rises when the run ends: its warm-up is longer than the run"] if warned else [])


def test_decayed_biases_norm_scales_and_embeddings():
    params = {"embed": {"table": jnp.ones((4, 2))}, "norm": {"scale": jnp.ones((1, 2))}, "dense": {"b": jnp.ones(2)}}
    found = warnings(explain(AdamW(weight_decay=StepLR(0.1, step_size=10)), params, total_steps=100))
    assert sorted(found) == [
        "a bias or a norm scale should not decay: dense/b, norm/scale",
        "decay on an embedding makes the rows that are rarely used fade: embed/table",
    ]
    assert not warnings(explain(AdamW(weight_decay=0.0), params, total_steps=100))
    many = {f"b{i}": jnp.ones(2) for i in range(9)}
    assert warnings(explain(AdamW(), many, 100)) == [
        "a bias or a norm scale should not decay: b0, b1, b2, b3, b4, b5 and 3 more"
    ]


def test_a_mask_that_takes_no_leaf():
    misspelt, params = (lambda path, leaf: path.endswith("kernel")), {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}
    expected = ["nothing decays, since the decay_mask takes none of b, w"]
    assert warnings(explain(AdamW(decay_mask=misspelt), params, 100)) == expected
    both = MultiOptimizer({"a": AdamW(**MATRICES), "b": AdamW(**MATRICES)}, groups={"a": "w", "b": "b"})
    for sound in (AdamW(weight_decay=0.0, decay_mask=misspelt), AdamW(**MATRICES), both, SGD()):
        assert not warnings(explain(sound, params, 100))


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule.unit_steps])
@pytest.mark.parametrize(("dtype", "stuck"), [("bfloat16", 1.9e-3), ("float16", 2.4e-4)])
def test_a_rate_that_cannot_move_the_weights(rule, dtype, stuck):
    """The stuck rate is a little less than half the distance from 1 to the number below it."""
    params = {"w": jnp.ones((4, 4), dtype)}
    assert jnp.asarray(1 - stuck, dtype) == 1 != jnp.float32(1 - stuck)
    lost = lambda rate: [  # noqa: E731
        warning
        for warning in warnings(explain(rule(learning_rate=rate, weight_decay=0.0), params, 100))
        if "rounded" in warning
    ]
    (found,) = lost(stuck)
    hint = "keep them in float32, or as bfloat16 in Round: w"
    assert found == f"a rate of at most {stuck:.2g} is rounded away in {dtype} weights of this size; {hint}"
    assert not lost(stuck * 4)


def test_a_small_rate_moves_what_round_keeps():
    params = {"w": jnp.ones((4, 4), jnp.bfloat16)}
    assert warnings(explain(AdamW(1e-5), params, 100))
    assert not warnings(explain(EMA(Round(AdamW(1e-5))), params, 100))


@pytest.mark.parametrize("steps", [0, -1, 1.5, 2**31, None, True])
def test_numbers_of_steps_that_are_none(steps):
    with pytest.raises(ValueError, match=f"total_steps must be an integer from 1 to 2147483647, got {steps}"):
        explain(SGD(), PARAMS, total_steps=steps)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((PARAMS, SGD()), r"explain takes \(optimizer, params, total_steps\), but its second argument is an optimizer, SGD$"),
        ((PARAMS, MixedPrecisionTrainer(None, SGD())), "its second argument is an optimizer, MixedPrecisionTrainer$"),
        ((SGD(), SGD().init(MATRIX)), r"explain takes \(optimizer, .*its second argument is, or holds, a state"),
        ((SGD(), EMA(SGD()).init(MATRIX)), "its second argument is, or holds, a state"),
        ((SGD(), (MATRIX, SGD().init(MATRIX))), "its second argument is, or holds, a state"),
        ((MATRIX, SGD().init(MATRIX)), "its second argument is, or holds, a state"),
        ((optax.sgd(0.1), MATRIX), r"explain: optimizer must be an Optimizer, got Grad.*; from_optax\(...\) turns"),
        ((SGD, MATRIX), "explain: optimizer must be an Optimizer, got <class"),
        ((None, MATRIX), "explain: optimizer must be an Optimizer, got None"),
    ],
)
def test_arguments_that_are_others(arguments, message):
    with pytest.raises(TypeError, match=message):
        explain(*arguments, total_steps=10)


# Wrappers: what is around the rules.


@pytree
class Sign(LeafOptimizer):
    """A rule that takes the sign, and says so."""

    learning_rate: float = 0.01
    scale_free = True

    def init_leaf(self, param):
        return None

    def update_leaf(self, param, grad, slots, t):
        return self.learning_rate * jnp.sign(grad), slots


def sentences(table):
    start = 1 + table.footer.index(next(line for line in table.footer if "bytes of state" in line))
    return [line for line in table.footer[start:] if not line.startswith(("warning: ", "not trained: "))]


@pytest.mark.parametrize(
    ("wrap", "expected"),
    [
        (lambda o: Clip(o, clip_norm=2.0), "gradients clipped to a norm of 2 together"),
        (lambda o: Clip(o, clip_value=0.5), "each element of the gradients clipped to ±0.5"),
        (
            lambda o: Clip(o, clip_norm=StepLR(1.0, 3)),
            "gradients clipped to a norm of StepLR(base_lr=1.0, step_size=3, gamma=0.1)",
        ),
        (lambda o: MixedPrecisionTrainer(None, o, clip_norm=1.5), "gradients clipped to a norm of 1.5 together"),
        (lambda o: AGC(o), "gradients clipped to 0.01 of the norm of what they belong to"),
        (lambda o: CentralizeGradients(o), "gradients of kernels centered around their means"),
        (lambda o: AddNoise(o, eta=0.3), "noise of variance 0.3 / (1 + t)^0.55 added to the gradients"),
        (lambda o: Accumulate(o, every=4), "one update for every 4 gradients, with their mean"),
        (lambda o: EMA(o, decay=0.99), "eval_params are their moving average, decay 0.99"),
        (lambda o: SWA(o, start=10, every=5), "eval_params are their mean after 10, 15, … updates"),
        (lambda o: Record(o, size=9), "the last 9 updates recorded"),
        (lambda o: Quantize(o), "slots in 16 bits"),
        (lambda o: Round(o), "bfloat16 kept with 8 bits beside it"),
        (lambda o: Round(o, remainder=0), "bfloat16 rounded by dithering"),
    ],
)
def test_what_a_wrapper_says_of_itself(wrap, expected):
    (found,) = sentences(explain(wrap(SGD()), MATRIX, total_steps=100))
    assert found.startswith(f"all parameters: {expected}")
    assert not sentences(explain(SGD(), MATRIX, 100))


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda window: Clip(window, clip_norm=1.0), "gradients clipped to a norm of 1 together, each of the 4 of a window by"),
        (
            lambda window: Clip(window, clip_value=0.5),
            "each element of the gradients clipped to ±0.5, each of the 4 of a window",
        ),
        (lambda window: AGC(window), "gradients clipped to 0.01 of the norm of what they belong to, each of the 4 of a window"),
        (
            lambda window: MixedPrecisionTrainer(None, window, clip_norm=1.0),
            "gradients clipped to a norm of 1 together, each of",
        ),
    ],
)
def test_a_clip_outside_of_accumulate_is_said_to_clip_each_gradient(make, expected):
    found, window = sentences(explain(make(Accumulate(SGD(), every=4)), MATRIX, 100))
    assert found.startswith(f"all parameters: {expected}")
    assert window == "all parameters: one update for every 4 gradients, with their mean"


def test_a_clip_of_the_mean_is_none_of_each_gradient():
    assert sentences(explain(MixedPrecisionTrainer(None, Accumulate(Clip(SGD(), clip_norm=1.0), every=4)), MATRIX, 100)) == [
        "all parameters: one update for every 4 gradients, with their mean",
        "all parameters: gradients clipped to a norm of 1 together",
    ]
    apart = MultiOptimizer({"a": Accumulate(SGD(), every=4), "b": SGD()}, groups={"a": "a", "b": "b"})
    table = explain(Clip(apart, clip_norm=1.0), {"a": jnp.ones(2), "b": jnp.ones(2)}, 100)
    assert "all parameters: gradients clipped to a norm of 1 together, each of a window by itself" in sentences(table)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda number: AdamW(number), "AdamW: learning_rate must be a scalar"),
        (lambda number: AdamW(StepLR(number, 10)), "StepLR must return a scalar for a scalar step"),
        (lambda number: AdamW(LinearWarmupScheduler(2, 0.0, number)), "LinearWarmupScheduler must return a scalar for a"),
        (lambda number: Clip(SGD(), clip_norm=number), "Clip: clip_norm must be a scalar"),
        (lambda number: MixedPrecisionTrainer(None, SGD(), clip_norm=number), "Trainer: loss_scale must be a scalar"),
    ],
)
def test_a_sweep_is_not_explained_but_its_members_are(make, message):
    swept = jax.vmap(make)(jnp.array([0.25, 0.5]))
    with pytest.raises(ValueError, match=rf"^(Mixed.*)?{message}.*, got shape \(2,\)") as raised:
        explain(swept, MATRIX, 100)
    assert str(raised.value).endswith("jax.tree.map(lambda a: a[i], optimizers) takes one out")
    assert "Array" not in str(raised.value)
    assert str(explain(jax.tree.map(lambda leaf: leaf[1], swept), MATRIX, 100)) == str(explain(make(0.5), MATRIX, 100))


@pytree
class Listed(Schedule):
    """A schedule whose values are given one by one."""

    values: jax.Array

    def value(self, step):
        return self.values[step]


def test_a_schedule_of_an_array():
    optimizer = AdamW(learning_rate=Listed(jnp.array([0.5, 0.25, 1.0])), weight_decay=Listed(jnp.array([0.1, 0.2, 0.4])))
    row = rows(explain(optimizer, MATRIX, 2))["w"]
    assert [row[name] for name in ("rate at start", "peak", "end", "decay")] == pytest.approx([0.5, 0.5, 0.25, 0.2])


def test_whose_gradients_are_clipped():
    optimizer = MultiOptimizer(
        {"a": Clip(SGD(), clip_norm=1.0), "b": SGD(), "c": ScaleRate(Clip(SGD(), clip_norm=3.0), {"c": 0.5})},
        groups={"a": "a*", "b": "b", "c": "c"},
    )
    params = {"a1": jnp.ones(2), "a2": jnp.ones(2), "b": jnp.ones(2), "c": jnp.ones(2)}
    assert sentences(explain(MixedPrecisionTrainer(None, optimizer, clip_norm=9.0), params, 100)) == [
        "all parameters: gradients clipped to a norm of 9 together",
        "group 'a': gradients clipped to a norm of 1 together",
        "group 'c': gradients clipped to a norm of 3 together",
    ]
    inner = MultiOptimizer({"x": SGD(), "y": SGD()}, groups={"x": "a1", "y": ...})
    outer = MultiOptimizer({"in": Clip(inner, clip_norm=1.0), "out": SGD()}, groups={"in": "a*", "out": ...})
    assert sentences(explain(outer, params, 100)) == ["groups 'in/x', 'in/y': gradients clipped to a norm of 1 together"]


def test_a_momentum_inside_schedule_free():
    for rule in (AdamW(), SGD(momentum=0.9), AdamW(beta1=lambda step: 0.9)):
        (found,) = warnings(explain(ScheduleFree(rule), MATRIX, np.int64(100)))
        assert found == f"ScheduleFree is in the place of a momentum, and {type(rule).__name__} has one: w"
    for rule in (AdamW(beta1=0.0), SGD()):
        assert not warnings(explain(ScheduleFree(rule), MATRIX, 100))


def test_which_average_is_read():
    lookahead = EMA(Lookahead(SGD(), every=2))
    assert sentences(explain(lookahead, MATRIX, 100)) == [
        "all parameters: called back to slow weights after every 2 updates",
        "all parameters: eval_params are their moving average, decay 0.999",
    ]
    assert not warnings(explain(lookahead, MATRIX, 100))
    twice = explain(EMA(SWA(SGD(), start=1, every=1)), MATRIX, 100)
    assert sentences(twice) == ["all parameters: eval_params are their moving average, decay 0.999"]
    assert warnings(twice) == ["SWA of all parameters has no effect: eval_params are those of the EMA around it"]
    free = "all parameters: eval_params are the averages x"
    assert sentences(explain(ScheduleFreeSGD(), MATRIX, 100)) == [free]
    assert sentences(explain(ScheduleFree(SGD()), MATRIX, 100))[1:] == [free]
    assert free not in sentences(explain(EMA(ScheduleFreeSGD()), MATRIX, 100))
    assert not warnings(explain(EMA(ScheduleFree(SGD())), MATRIX, 100))
    groups = MultiOptimizer({"a": EMA(SGD()), "b": Lookahead(SGD())}, groups={"a": "a", "b": "b"})
    assert "group 'b': eval_params are their slow weights" in sentences(
        explain(groups, {"a": jnp.ones(2), "b": jnp.ones(2)}, 9)
    )


def test_rates_with_their_factors():
    depth = lambda path, leaf: {"embed": 0, "layer": 1, "head": 2}[path.split("/")[0]]  # noqa: E731
    table = rows(explain(ScaleRate(AdamW(learning_rate=WARMUP, **MATRICES), layer_decay(depth, 2, 0.5)), PARAMS, 100))
    assert [table[path]["peak"] for path in ("embed", "layer/w", "head")] == pytest.approx([0.025, 0.05, 0.1])
    held = ConstantLR(1.0, factor=0.0, total_iters=50)
    table = rows(explain(ScaleRate(SGD(learning_rate=WARMUP), {"embed": held, "layer/*": 0.0}), PARAMS, 100))
    assert table["embed"]["rate at start"] == 0.0
    assert 0.05 < table["embed"]["peak"] < 0.07
    assert (table["layer/w"]["peak"], table["head"]["peak"]) == (0.0, pytest.approx(0.1))


def test_a_switch_has_its_own_steps():
    optimizer = Switch(SGD(learning_rate=LinearWarmupScheduler(10, 0.0, 0.1)), on=lambda step: step >= 95)
    table = explain(optimizer, MATRIX, 100)
    assert rows(table)["w"]["end"] == pytest.approx(0.04)
    assert warnings(table) == ["the rate still rises when the run ends: its warm-up is longer than the run"]


def ramp(step):
    return 0.5 + step / 64


def sometimes(step):
    return (step >= 5) & (step % 3 != 0)


HELD = ConstantLR(1.0, factor=0.0, total_iters=20)
INNER = SGD(learning_rate=LinearWarmupScheduler(10, 0.0, 0.125, CosineDecayLR(0.125, decay_steps=40)))
TWO = MultiOptimizer({"a": Switch(ScaleRate(INNER, {"a": ramp}), on=lambda step: step >= 10), "b": INNER}, {"a": "a", "b": "b"})


@pytest.mark.parametrize(
    "optimizer",
    [
        pytest.param(ScaleRate(Switch(INNER, on=lambda step: step >= 10), {"a": HELD, "b": ramp}), id="around"),
        pytest.param(ScaleRate(TWO, {"a": ramp, "b": HELD}), id="groups"),
        pytest.param(Switch(ScaleRate(INNER, {"a": HELD, "b": ramp}), on=sometimes), id="inside", marks=pytest.mark.slow),
        pytest.param(Switch(EMA(ScaleRate(TWO, {"a": ramp})), on=sometimes), id="between", marks=pytest.mark.slow),
    ],
)
def test_the_rates_are_those_of_a_run(optimizer):
    params = {"a": jnp.float32(0.0), "b": jnp.float32(0.0)}
    grads = {"a": jnp.float32(-1.0), "b": jnp.float32(-1.0)}

    def step(carry, _):
        new, state = optimizer.update(*carry[:1], grads, carry[1])
        return (jax.tree.map(jnp.zeros_like, new), state), new

    _, moved = jax.lax.scan(step, (params, optimizer.init(params)), length=50)
    for leaf in the_leaves(optimizer, params, 50):
        explained = np.zeros(50)
        explained[leaf.plan.made[:-1]] = leaf.rates[:-1]
        np.testing.assert_allclose(explained, moved[leaf.path], rtol=1e-6)


@pytest.mark.parametrize(
    ("on", "said"),
    [
        (lambda step: step >= 40, "on from update 40"),
        (lambda step: (step >= 40) & (step < 60), "on in updates 40 to 59"),
        (lambda step: step < 40, "on until update 40"),
        (lambda step: (step - 1) % 4, "on in 75 of 100 updates, first in update 0"),
        (lambda step: step == 40, "on in update 40"),
        (lambda step: step < 0, "off throughout"),
    ],
)
def test_when_a_switch_is_on(on, said):
    assert sentences(explain(Switch(SGD(), on), MATRIX, 100)) == [f"all parameters: {said}"]


def test_a_switch_inside_another_is_on_in_updates_of_the_run():
    optimizer = Switch(Switch(SGD(), on=lambda step: step >= 10), on=lambda step: step >= 40)
    assert sentences(explain(optimizer, MATRIX, 100)) == [
        "all parameters: on from update 40",
        "all parameters: on from update 50",
    ]
    found = warnings(explain(Switch(Switch(SGD(), on=lambda step: step < 60), on=lambda step: step >= 40), MATRIX, 100))
    assert found == ["Switch of all parameters has no effect: it is on throughout the run"]
    assert warnings(explain(Switch(Lookahead(SGD()), on=lambda step: step < 0), MATRIX, 100)) == ["nothing trains"]


def test_a_long_run_is_looked_at_closely_where_something_changes():
    late = Switch(SGD(lambda step: 0.1 * (step < 400_004)), on=lambda step: (step >= 200_003) & (step < 1_234_567))
    table = explain(ScaleRate(late, {"w": lambda step: step >= 654_321}), MATRIX, 2_000_000)
    assert sentences(table) == [
        "all parameters: rate times a schedule, 0 until update 654,321",
        "all parameters: on in updates 200,003 to 1,234,566",
    ]
    ended = "the rate is 0 from update 400,004 of 1,034,564 on"
    assert warnings(table) == [f"{ended}; {REMEDY}", "nothing trains"]


def test_when_a_factor_is_zero():
    said = lambda factor: sentences(explain(ScaleRate(SGD(), factor), {"a": jnp.ones(2), "b": jnp.ones(2)}, 100))  # noqa: E731
    assert said({"a": ConstantLR(1.0, factor=0.0, total_iters=40)}) == ["a: rate times a schedule, 0 until update 40"]
    assert said({"a": lambda step: step < 40}) == ["a: rate times a schedule, 0 from update 40"]
    assert said(lambda path, leaf: lambda step: 1.0 + step / 99) == [
        "all parameters: rate times a schedule, 1 at the start and 2 at the end"
    ]
    assert not said({"a": 0.5})


# Wrappers without effect.


@pytest.mark.parametrize(
    ("wrap", "why"),
    [
        (lambda o: Clip(o, clip_norm=1.0), "Clip of all parameters has no effect: the steps of Sign hardly depend on the size"),
        (lambda o: Clip(o, clip_value=np.inf), "Clip of all parameters has no effect: its bound is infinite"),
        (lambda o: Clip(o, clip_norm=np.inf), "Clip of all parameters has no effect: its bound is infinite"),
        (
            lambda o: MixedPrecisionTrainer(None, o, clip_norm=np.inf),
            "clip_norm of the trainer has no effect: its bound is infinite",
        ),
        (lambda o: AGC(o), "AGC of all parameters has no effect: the steps of Sign hardly depend"),
        (
            lambda o: MixedPrecisionTrainer(None, o, clip_norm=1.0),
            "clip_norm of the trainer has no effect: the steps of Sign",
        ),
        (lambda o: Accumulate(o, every=1), "Accumulate of all parameters has no effect: its every is 1"),
        (lambda o: EMA(o, decay=0.0), "EMA of all parameters has no effect: its decay is 0"),
        (lambda o: SWA(o, start=101, every=1), "SWA of all parameters has no effect: its mean begins after 101 updates"),
        (lambda o: Lookahead(o, alpha=1.0), "Lookahead of all parameters has no effect: its alpha is 1"),
        (lambda o: Lookahead(o, every=101), "Lookahead of all parameters has no effect: it calls back after 101 updates"),
        (lambda o: Quantize(o, bits=8), "Quantize of all parameters has no effect: no leaf has 4096 elements"),
        (lambda o: Round(o), "Round of all parameters has no effect: no parameter is bfloat16"),
        (lambda o: AddNoise(o, eta=0.0), "AddNoise of all parameters has no effect: its eta is 0"),
        (lambda o: ScaleRate(o, {"w": 1.0}), "ScaleRate of all parameters has no effect: all its factors are 1"),
        (lambda o: ScaleRate(o, lambda path, leaf: 1.0), "ScaleRate of all parameters has no effect: all its factors are 1"),
        (lambda o: Switch(o, on=lambda step: step >= 0), "Switch of all parameters has no effect: it is on throughout the run"),
    ],
)
def test_a_wrapper_without_effect(wrap, why):
    (found,) = warnings(explain(wrap(Sign()), MATRIX, 100))
    assert found.startswith(why)


def test_a_clip_before_a_rule_that_takes_the_sign():
    for rule in Lion(), Muon():
        (found,) = warnings(explain(Clip(rule, clip_norm=1.0), MATRIX, 100))
        name = type(rule).__name__
        assert found == f"Clip of all parameters has no effect: the steps of {name} hardly depend on the size of a gradient"


@pytest.mark.parametrize(
    "make",
    [
        lambda: Clip(SGD(), clip_norm=1.0),
        lambda: Clip(Sign(), clip_value=1.0),
        lambda: AGC(Adam()),
        lambda: MixedPrecisionTrainer(None, SGD(), clip_norm=1.0),
        lambda: MixedPrecisionTrainer(None, Sign()),
        lambda: Clip(MultiOptimizer({"a": Sign(), "b": SGD()}, groups={"a": "w", "b": "v"}), clip_norm=1.0),
        lambda: SWA(SGD(), start=100, every=1),
        lambda: EMA(SGD(), decay=lambda step: 0.5),
        lambda: ScaleRate(SGD(), {"w": lambda step: 1.0}),
        lambda: CentralizeGradients(SGD()),
        lambda: Switch(SGD(), on=lambda step: step >= 1),
        lambda: AddNoise(SGD(), eta=lambda step: 0.0),
        lambda: Record(SGD()),
    ],
)
def test_a_wrapper_with_an_effect(make):
    assert not warnings(explain(make(), {"w": jnp.ones((4, 4)), "v": jnp.ones((2, 2))}, 100))


def test_nothing_to_centralize():
    found = warnings(explain(CentralizeGradients(SGD()), {"b": jnp.ones(3)}, 100))
    assert found == ["CentralizeGradients of all parameters has no effect: no leaf has two axes"]


def test_of_which_group():
    optimizer = MultiOptimizer({"a": Clip(Sign(), clip_norm=1.0), "b": Clip(SGD(), clip_norm=1.0)}, groups={"a": "w", "b": "v"})
    (found,) = warnings(explain(optimizer, {"w": jnp.ones(2), "v": jnp.ones(2)}, 100))
    assert found.startswith("Clip of group 'a' has no effect")


# Nothing trains.


@pytest.mark.parametrize(
    ("make", "params"),
    [
        (lambda: Frozen(), MATRIX),
        (lambda: SGD(learning_rate=0.0), MATRIX),
        (lambda: SGD(learning_rate=lambda step: 0.0), MATRIX),
        (lambda: ScaleRate(SGD(), {"w": 0.0}), MATRIX),
        (
            lambda: MultiOptimizer({"a": Frozen(), "b": SGD(0.0)}, groups={"a": "a", "b": "b"}),
            {"a": jnp.ones(2), "b": jnp.ones(2)},
        ),
        (lambda: SGD(), {"n": 3}),
        (lambda: SGD(), {}),
    ],
)
def test_nothing_trains(make, params):
    assert warnings(explain(make(), params, 100)) == ["nothing trains"]


def test_a_switch_that_is_never_on():
    table = explain(Switch(AdamW(), on=lambda step: step >= 100), MATRIX, 100)
    assert [rows(table)["w"][name] for name in ("rate at start", "peak", "end", "decay")] == [0.0] * 4
    assert warnings(table) == ["nothing trains"]
    assert "nothing trains" not in warnings(explain(Switch(SGD(), on=lambda step: step >= 99), MATRIX, 100))


def test_a_part_whose_rate_is_zero():
    optimizer = ScaleRate(SGD(), {"embed": 0.0, "layer/*": 0.5})
    assert warnings(explain(optimizer, PARAMS, 100)) == ["the rate is 0 throughout the run: embed"]
    assert not warnings(explain(from_optax(optax.sgd(0.1)), MATRIX, 100))


# A warm-up that ends at another rate.


COSINE = CosineDecayLR(0.2, decay_steps=90)


@pytest.mark.parametrize(
    ("schedule", "jump"),
    [
        (LinearWarmupScheduler(10, 0.0, 0.1, COSINE), (0.1, 0.2)),
        (LinearWarmupScheduler(10, 0.0, 0.3, lambda step: 0.03), (0.3, 0.03)),
        (PerEpoch(LinearWarmupScheduler(2, 0.0, 0.1, COSINE), 5), (0.1, 0.2)),
        (SequentialLR([LinearLR(0.1, 0.1, 1.0, 10), COSINE], [10]), (0.1, 0.2)),
        (SequentialLR([StepLR(0.1, 5), LinearWarmupScheduler(10, 0.0, 0.1, COSINE)], [5]), (0.1, 0.2)),
        (LinearWarmupScheduler(10, 0.0, 0.2, COSINE), None),
        (LinearWarmupScheduler(10, 0.0, 0.2), None),
        (LinearWarmupScheduler(0, 0.0, 0.1, COSINE), None),
        (SequentialLR([LinearLR(0.2, 0.1, 1.0, 10), COSINE], [10]), None),
        (SequentialLR([CosineAnnealingLR(0.2, T_max=10), COSINE], [10]), None),  # a restart
        (StepLR(0.1, 10), None),
    ],
)
def test_a_warm_up_that_ends_at_another_rate(schedule, jump):
    found = [text for text in warnings(explain(SGD(learning_rate=schedule), MATRIX, 100)) if "jumps" in text]
    assert found == ([] if jump is None else [f"the rate jumps where its warm-up ends: from {jump[0]:g} to {jump[1]:g}"])
    multi = MultiOptimizer({"all": SGD(learning_rate=schedule)}, groups={"all": "*"})
    found = [text for text in warnings(explain(multi, MATRIX, 100)) if "jumps" in text]
    assert [text.startswith("the rate of group 'all' jumps") for text in found] == ([] if jump is None else [True])


def test_an_abstract_model_and_a_trainer_with_everything():
    optimizer = Record(EMA(ScaleRate(Accumulate(Clip(AdamW(), clip_norm=1.0), every=2), {"w": 0.5})))
    abstract = jax.eval_shape(lambda: MATRIX)
    table = explain(MixedPrecisionTrainer(None, optimizer), abstract, 100)
    assert rows(table)["w"]["state bytes"] == 4 * 4 * 4 * 4  # mu, nu, the mean of gradients, the average
    assert len(sentences(table)) == 4


# A schedule for a shorter run.


def after_five(schedule):
    return LinearWarmupScheduler(5, 0.0, 0.1, schedule)


@pytest.mark.parametrize(
    ("schedule", "found"),
    [
        (after_five(CosineDecayLR(0.1, 95)), "is 0 from update 100 of 10,000 on"),
        (lambda step: 0.1 * (step < 5000), "is 0 from update 5,000 of 10,000 on"),
        (StepLR(0.1, 30), "is less than a millionth of its peak from update 180 of 10,000 on"),
        (ExponentialLR(0.1, 0.99), "is less than a millionth of its peak from update 1,375 of 10,000 on"),
        (MultiStepLR(0.1, [30, 60, 80]), "stays at 0.0001 from update 80 of 10,000 on, after a peak of 0.1"),
        (after_five(CosineDecayLR(0.1, 95, min_lr=0.01)), "stays at 0.01 from update 100 of 10,000 on, after a peak of 0.1"),
        (lambda step: jnp.where(step < 1000, 0.1, 0.05), "stays at 0.05 from update 1,000 of 10,000 on, after a peak of 0.1"),
        (OneCycleLR(0.1, 100), "stays at 4e-07 from update 99 of 10,000 on, after a peak of 0.1"),
        (CosineAnnealingLR(0.1, T_max=100), "falls and rises again 50 times, beyond the end of its cosine"),
        (CosineAnnealingLR(0.1, T_max=7000), "falls and rises again once, beyond the end of its cosine"),
        (after_five(CosineAnnealingLR(0.1, T_max=95)), "falls and rises again 52 times, beyond the end of its cosine"),
        (PerEpoch(CosineAnnealingLR(0.1, T_max=50), 50), "falls and rises again 2 times, beyond the end of its cosine"),
        (
            ChainedScheduler([CosineAnnealingLR(0.1, T_max=2000), ConstantLR(1.0, 0.5, 5)]),
            "falls and rises again 2 times, beyond the end of its cosine",
        ),
        (
            SequentialLR([CosineAnnealingLR(0.1, T_max=2000), CosineAnnealingLR(0.1, T_max=1000)], [4000]),
            "falls and rises again 4 times, beyond the end of its cosine",
        ),
    ],
)
def test_a_schedule_that_is_made_for_a_shorter_run(schedule, found):
    assert warnings(explain(SGD(schedule), MATRIX, 10_000)) == [f"the rate {found}; {REMEDY}"]


@pytest.mark.parametrize(
    "schedule",
    [
        after_five(CosineDecayLR(0.1, 95)),
        after_five(CosineDecayLR(0.1, 46)),
        CosineAnnealingLR(0.1, T_max=100),
        CosineAnnealingLR(0.1, T_max=81),
        PerEpoch(CosineAnnealingLR(0.1, T_max=10), 10),
        PerEpoch(StepLR(0.1, 3), 10),
        ExponentialLR(0.1, 0.76),  # 1e-12 at the end
        pytest.param(PolynomialLR(0.1, total_iters=100, power=3.0), marks=pytest.mark.slow),
        lambda step: jnp.where(step < 20, -0.1, -0.2),
        after_five(InverseSqrtLR(0.1, timescale=5)),
        pytest.param(NoamLR(64, warmup_steps=5), marks=pytest.mark.slow),
        MultiStepLR(0.1, [3, 11]),
        lambda step: 0.1 * (step < 51),
        lambda step: jnp.where(step < 5, 0.1, 0.06),
        lambda step: jnp.where(step < 11, 0.1, 0.01),
        OneCycleLR(0.1, total_steps=100),
        pytest.param(WarmupStableDecayLR(0.1, 5, 75, 20), marks=pytest.mark.slow),
        CyclicLR(0.01, 0.1, step_size_up=3),
        pytest.param(CosineAnnealingWarmRestarts(0.1, T_0=10), marks=pytest.mark.slow),
        pytest.param(CosineHardRestartsLR(0.1, 100, num_cycles=4), marks=pytest.mark.slow),
        pytest.param(CosineCyclesLR(0.1, 100, num_cycles=3.0), marks=pytest.mark.slow),
        SequentialLR([CosineAnnealingLR(0.1, T_max=50), CosineAnnealingLR(0.1, T_max=50)], [50]),  # a restart
    ],
)
def test_a_schedule_that_is_made_for_the_run(schedule):
    assert not warnings(explain(SGD(schedule), MATRIX, 100))


@pytest.mark.parametrize("steps", [1, 100, 120, 130, 300, 320, 326, 330, 1000])
@pytest.mark.parametrize("waves", [0.5, 1.0, 1.5, 2.25])
def test_how_often_a_cosine_rises_beyond_its_end(steps, waves):
    risen = np.cos(2 * np.pi * waves * np.arange(1, steps + 1) / 100) >= np.cos(1.25 * np.pi)
    beyond = risen[1:] & ~risen[:-1] & (np.arange(2, steps + 1) > 100)
    assert CosineCyclesLR(0.1, 100, num_cycles=waves).rises_again(steps) == np.sum(beyond)
    if waves == 0.5:
        assert CosineAnnealingLR(0.1, T_max=100).rises_again(steps) == np.sum(beyond)


def test_how_often_a_cosine_rises_inside_another_schedule():
    cosine = CosineAnnealingLR(0.1, T_max=4)
    assert [PerEpoch(cosine, 10).rises_again(steps) for steps in (40, 41)] == [0, 1]  # the fifth epoch begins at step 40
    assert SequentialLR([cosine, cosine], [1000]).rises_again(4) == 0
    assert LinearWarmupScheduler(1000, 0.0, 0.1, cosine).rises_again(100) == 0


def test_what_is_held_on_purpose_has_not_ended():
    params, late = {"a": jnp.ones(2), "b": jnp.ones(2)}, ConstantLR(1.0, factor=0.0, total_iters=60)
    held = ScaleRate(SGD(after_five(CosineDecayLR(0.1, 95))), {"a": late, "b": lambda step: step < 20})
    assert not warnings(explain(held, params, 100))
    for rate, on in (
        (CosineDecayLR(0.1, 40), lambda step: step >= 60),
        (CosineDecayLR(0.1, 20), lambda step: step < 20),
        (CosineAnnealingLR(0.1, T_max=20), lambda step: step < 20),
    ):
        assert not warnings(explain(Switch(SGD(rate), on), params, 100))


def test_a_schedule_that_ends_early_in_a_switch():
    late = Switch(SGD(CosineDecayLR(0.1, 10)), on=lambda step: step >= 60)
    optimizer = MultiOptimizer({"a": late, "b": SGD()}, groups={"a": "w", "b": ...})
    found = warnings(explain(optimizer, {"w": jnp.ones(2), "v": jnp.ones(2)}, 100))
    assert found == [f"the rate of group 'a' is 0 from update 10 of 40 on; {REMEDY}"]
