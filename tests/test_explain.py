"""The table of what an optimizer will do, against states that were made and rates that are known."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from zoo import RULES

from mithril_opt import (
    SGD,
    Accumulate,
    Adam,
    AdamW,
    CosineDecayLR,
    Frozen,
    LinearWarmupScheduler,
    MixedPrecisionTrainer,
    MultiOptimizer,
    ReduceLROnPlateau,
    StepLR,
    explain,
    from_optax,
)

MATRICES = {"decay_mask": lambda path, leaf: jnp.ndim(leaf) == 2}
WARMUP = LinearWarmupScheduler(10, 0.0, 0.1, after_scheduler=CosineDecayLR(0.1, decay_steps=90, min_lr=0.01))
PARAMS = {
    "embed": jnp.ones((8, 4)),
    "layer": {"w": jnp.ones((4, 4), jnp.bfloat16), "bias": jnp.ones(4), "calls": 3},
    "head": jnp.ones((4, 2)),
}
OPTIMIZER = MultiOptimizer(
    {
        "embed": SGD(learning_rate=0.5),
        "body": MultiOptimizer({"all": AdamW(learning_rate=WARMUP, weight_decay=0.2, **MATRICES)}, groups={"all": "*"}),
        "head": Frozen(),
    },
    groups={"embed": "embed", "body": "layer/*", "head": "head"},
)


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


def test_it_prints_what_it_returns(capsys):
    table = explain(OPTIMIZER, PARAMS, total_steps=100)
    printed = capsys.readouterr().out
    assert printed == f"{table}\n"
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


# What is surely wrong.


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
    assert found == f"a rate of at most {stuck:.2g} is rounded away in {dtype} weights of this size; keep them in float32: w"
    assert not lost(stuck * 4)


@pytest.mark.parametrize("steps", [0, -1, 1.5, 2**31, None])
def test_numbers_of_steps_that_are_none(steps):
    with pytest.raises(ValueError, match=f"total_steps must be an integer from 1 to 2147483647, got {steps}"):
        explain(SGD(), PARAMS, total_steps=steps)
