"""What may be moved from PyTorch into which optimizer, and what is said of that which may not."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from interop import assert_close
from oracles import torch_runs as oracle
from torch_checkpoints import (
    NAMES,
    ORDER,
    SCALING,
    TURNED,
    moved,
    params_of,
    plateau,
    scaler_of,
    scheduler_of,
    state_dict,
    two_groups,
    warmup,
)
from zoo import bits, specs

from mithril_opt import (
    EMA,
    SGD,
    Accumulate,
    AdaGrad,
    AdamW,
    Clip,
    Frozen,
    LinearWarmupScheduler,
    MixedPrecisionTrainer,
    MultiOptimizer,
    PerEpoch,
    Quantize,
    ReduceLROnPlateau,
    ScaleRate,
    Schedule,
    SequentialLR,
    StepLR,
    pytree,
    scaler_to_torch,
    scheduler_to_torch,
    state_from_torch,
    state_to_torch,
)


def back(optimizer, state, run="warmup", names=ORDER):
    return state_to_torch(optimizer, params_of(run), state, state_dict(run), names, TURNED)


def one_rule(factor=3.0, **settings):
    """One AdamW for both groups: a mask for the decay and factors for the rate."""
    settings = {"weight_decay": 0.1, "decay_mask": lambda path, leaf: path.endswith("w"), **settings}
    return ScaleRate(AdamW(**{"learning_rate": warmup(0.01), **settings}), {("*/b", "embed"): factor})


def test_any_groups_will_do_that_train_each_parameter_as_it_was():
    state = moved(one_rule())
    assert bits(back(one_rule(), state)) == bits(state_dict("warmup"))
    assert bits(state.slots.mu["embed"]) == bits(moved(two_groups(warmup)).slots["rest"].mu["embed"])
    with pytest.raises(
        ValueError, match=r"'body/b' has weight_decay = 0 in PyTorch, but 0.1\d* in the next update here. names"
    ):
        moved(one_rule(decay_mask=None))
    with pytest.raises(ValueError, match=r"'body/b' has weight_decay = 0 in PyTorch, but 0.1"):
        back(one_rule(decay_mask=None), state)
    uneven = ScaleRate(one_rule(), {"head/*": 2.0})
    with pytest.raises(
        ValueError, match=r"'body/w' and 'head/w' are in one parameter group .* rates are 0.00\d+ and 0.014; names must follow"
    ):
        back(uneven, state)


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda inner: Clip(inner, clip_norm=1.0),
        EMA,
        pytest.param(Quantize, marks=pytest.mark.slow),
        lambda inner: Accumulate(inner, every=2),
    ],
)
def test_what_a_wrapper_keeps_starts_afresh(wrapped):
    inner, params = two_groups(warmup), params_of("warmup")
    optimizer, expected = wrapped(inner), moved(inner)
    state = moved(optimizer)
    assert specs(state) == specs(optimizer.init(params))
    inside = optimizer.inner(optimizer.unpack(state))
    assert_close(inside, expected, rtol=2.0**-7 if wrapped is Quantize else 0, atol=0)
    assert bits(optimizer.with_inner(state, None)) == bits(optimizer.with_inner(optimizer.init(params), None)) or not inside
    assert_close(back(optimizer, state)["state"], back(inner, expected)["state"], rtol=2.0**-7, atol=0)


def test_a_window_that_is_open_cannot_be_moved_back():
    optimizer = Accumulate(two_groups(warmup), every=2)
    state = moved(optimizer)._replace(micro_step=jnp.int32(1))
    with pytest.raises(ValueError, match=r"Accumulate is in mid-window, and its 1 gradients would be lost"):
        back(optimizer, state)


@pytest.mark.parametrize("known", [True, False])
def test_frozen_parameters_may_be_in_torchs_optimizer_or_not(known):
    rules, saved = two_groups(warmup).optimizers, state_dict("warmup")
    optimizer = MultiOptimizer({**rules, "fixed": Frozen()}, groups={"fixed": "embed", "decayed": "*/w", "rest": "*/b"})
    del saved["state"][2]  # that of the embedding
    if not known:
        saved["param_groups"][1]["params"] = [3, 4]
    names = ORDER if known else [name for name in ORDER if name != "embed"]
    state, params = moved(optimizer, saved=saved, names=names), params_of("warmup")
    assert specs(state) == specs(optimizer.init(params))
    assert bits(state_to_torch(optimizer, params, state, saved, names, TURNED)) == bits(saved)
    with pytest.raises(ValueError, match="PyTorch has no state for embed, which never got a gradient"):
        moved(two_groups(warmup), saved={**saved, "param_groups": state_dict("warmup")["param_groups"]})
    with pytest.raises(ValueError, match="Frozen has no counterpart in PyTorch"):
        moved(optimizer)


# The order of the names.


def test_names_in_another_order_than_that_of_the_groups():
    order = [*NAMES.values()]
    with pytest.raises(
        ValueError,
        match=r"'body/\w' has lr = .* names follow the order of the parameter groups, the state is saved after scheduler",
    ):
        moved(two_groups(warmup), names=order, saved={**state_dict("warmup"), "state": {}})
    with pytest.raises(ValueError, match=r"'exp_avg' of '.*' has shape"):
        moved(two_groups(warmup), names=order)
    with pytest.raises(
        ValueError, match=r"no state of torch.optim.\w+, whose .*; by names it is that of 'head/w', and names must"
    ):
        moved(
            two_groups(warmup, rest=SGD),
            saved={"sgd": state_dict("two_optimizers", 1), "adamw": state_dict("two_optimizers")},
            names=["head/w", "body/w", "embed", "head/b", "body/b"],
        )


def test_names_of_a_dictionary_are_looked_up_where_torch_knows_them():
    saved, optimizer = state_dict("warmup"), two_groups(warmup)
    ordered = {name: NAMES[name] for group in oracle.GROUPS for name in group["names"]}
    assert bits(moved(optimizer, names=ordered)) == bits(moved(optimizer))
    for group, own in zip(saved["param_groups"], oracle.GROUPS, strict=True):
        group["param_names"] = own["names"]
    assert bits(moved(optimizer, saved=saved, names=NAMES)) == bits(moved(optimizer))
    with pytest.raises(ValueError, match=r"names has no path for embed.weight of PyTorch's optimizer; it has body.weight"):
        moved(optimizer, saved=saved, names={name: path for name, path in NAMES.items() if path != "embed"})
    with pytest.raises(ValueError, match=r"names must be a list of paths or a dictionary .*, got 'embed'"):
        moved(optimizer, names="embed")


# Rates and schedules.


def test_another_rate_is_an_error_that_shows_how_to_go_on():
    saved, other = state_dict("warmup"), two_groups(lambda peak: 1e-4)
    with pytest.raises(ValueError, match=r"has lr = 0.0\d+ in PyTorch, but 0.0001 in") as caught:
        moved(other, saved=saved)
    line = str(caught.value).partition("from here on: ")[2]
    exec(line, {"state_dict": saved})
    assert "lr" not in saved["param_groups"][1]
    assert "MultiOptimizer" not in str(caught.value)
    assert bits(moved(other, saved=saved)) == bits(moved(two_groups(warmup)))


@pytest.mark.parametrize(
    ("schedule", "rate"), [(PerEpoch(StepLR(0.5, 1, gamma=0.5), 4), 0.25), (StepLR(0.5, 4, gamma=0.5), 0.25)]
)
def test_a_scheduler_of_epochs_or_of_updates(schedule, rate):
    saved = {"state": {0: {"step": 6.0, "exp_avg": np.ones(2), "exp_avg_sq": np.ones(2)}}}
    group = {"params": [0], "lr": rate, "weight_decay": 0.01, "betas": (0.9, 0.999), "amsgrad": False}
    optimizer, params = AdamW(learning_rate=schedule), {"w": jnp.ones(2)}
    state = state_from_torch(optimizer, params, {**saved, "param_groups": [group]}, ["w"])
    assert optimizer.get_learning_rate(state) == rate
    with pytest.raises(ValueError, match=r"has lr = 0.5 in PyTorch, but 0.25 in the next update here"):
        state_from_torch(optimizer, params, {**saved, "param_groups": [{**group, "lr": 0.5}]}, ["w"])


def test_one_rule_for_groups_with_other_rates_and_decays():
    remedy = "names follow .* PyTorch's groups differ in {}: give each a group of a MultiOptimizer. If it"
    with pytest.raises(ValueError, match=r"'body/b' has lr = .*" + remedy.format("lr")):
        moved(one_rule(factor=1.0))
    with pytest.raises(
        ValueError,
        match=r"'body/b' has lr = .* parameter groups, .* its length included, and a step .* \+ skipped\)\. If it shall",
    ):
        moved(one_rule(learning_rate=warmup(0.02)))
    with pytest.raises(ValueError, match=r"'body/b' has weight_decay = 0 .*" + remedy.format("weight_decay")):
        moved(one_rule(decay_mask=None))
    saved = state_dict("warmup")
    saved["param_groups"][1]["betas"] = (0.9, 0.95)
    with pytest.raises(ValueError, match=r"'body/b' has betas = \(0.9, 0.95\) .*" + remedy.format("betas")):
        moved(one_rule(), saved=saved)


def test_the_rate_of_the_step_before_is_another_one():
    """Of a schedule of 100,000 steps."""
    schedule = lambda peak: lambda k: peak * (0.7 + (k - 7) / 100_000)  # noqa: E731
    with pytest.raises(ValueError, match=r"after 6 updates 'body/b' has lr = 0.021 in PyTorch, but 0.0209\d+ in the next"):
        moved(two_groups(schedule))


def test_momentum_that_is_missing_is_0_and_counts_that_are_missing_are_an_error():
    saved = {"adamw": state_dict("two_optimizers"), "sgd": state_dict("two_optimizers", 1)}
    del saved["sgd"]["state"][1]
    state = moved(two_groups(warmup, rest=SGD), "two_optimizers", saved)
    assert not state.slots["rest"].trace["head"]["b"].any()
    assert state.slots["rest"].trace["body"]["b"].any()
    for entry in saved["adamw"]["state"].values():
        del entry["step"]
    with pytest.raises(
        ValueError, match=r"the state of torch.optim.SGD does not count its updates; give their number as step="
    ):
        moved(two_groups(warmup, rest=SGD), "two_optimizers", saved)
    assert moved(two_groups(warmup, rest=SGD), "two_optimizers", saved, step=6).step == 6
    with pytest.raises(ValueError, match=r"the state of torch.optim.Adagrad does not count its updates"):
        state_from_torch(AdaGrad(), {"w": jnp.ones(2)}, {"state": {0: {"sum": np.ones(2)}}, "param_groups": []}, ["w"])


def test_rates_near_0_may_differ_by_a_millionth_of_the_first():
    saved, last = state_dict("warmup"), two_groups(lambda peak: peak * 1e-7)
    for group in saved["param_groups"]:
        group["lr"] = 0.0
    moved(last, saved=saved)
    del saved["param_groups"][0]["initial_lr"]
    with pytest.raises(ValueError, match=r"'body/w' has lr = 0 in PyTorch, but 1\S*e-09 in the next update here"):
        moved(last, saved=saved)


def test_numbers_and_what_does_not_train_among_the_parameters():
    params, optimizer = {"count": 3, "scale": 1.0}, AdamW(decay_mask=lambda path, leaf: leaf.ndim > 1)
    saved = {"state": {0: {"step": np.float32(2), "exp_avg": np.float32(1), "exp_avg_sq": np.float32(1)}}}
    saved["param_groups"] = [{"params": [0], "betas": (0.9, 0.999), "amsgrad": False, "lr": 1e-3, "weight_decay": 0}]
    state = state_from_torch(optimizer, params, saved, ["scale"])
    assert specs(state) == specs(optimizer.init(params))
    assert bits(state_to_torch(optimizer, params, state, saved, ["scale"])["state"]) == bits(saved["state"])


def of_plateau(schedule, scheduler, rate=0.005, step=6):
    """An SGD, and its state moved from one of PyTorch's that follows a metric."""
    optimizer, params = SGD(learning_rate=schedule), {"w": jnp.ones(2)}
    group = {"params": [0], "momentum": 0.0, "dampening": 0.0, "nesterov": False, **({} if rate is None else {"lr": rate})}
    saved = {"state": {}, "param_groups": [group]}
    return optimizer, state_from_torch(optimizer, params, saved, ["w"], step=step, scheduler=scheduler)


def test_the_memory_of_a_plateau():
    seen = {**scheduler_of("plateau"), "cooldown_counter": 3}
    memory = of_plateau(plateau(0.01), seen)[1].schedules["learning_rate"]
    assert [value.item() for value in memory] == [np.float32(0.8), 1, 3, 1]
    fresh = of_plateau(plateau(0.01), {**seen, "best": math.inf, "num_bad_epochs": 0, "cooldown_counter": 0}, 0.01)
    assert bits(fresh[1].schedules) == bits(fresh[0].init({"w": jnp.ones(2)}).schedules)
    at_bottom = of_plateau(plateau(0.01), seen, 0.001)[1].schedules["learning_rate"]
    assert at_bottom.num_reductions == 4  # 0.005, 0.0025, 0.00125, 0.001
    maximum = ReduceLROnPlateau(0.01, mode="max", factor=0.5)
    best = of_plateau(maximum, {**seen, "mode": "max", "best": -math.inf})[1].schedules["learning_rate"].best
    assert best == maximum.init().best


def test_a_plateau_under_factors_of_the_rate():
    rule = AdamW(learning_rate=plateau(0.01), weight_decay=0.1, decay_mask=lambda path, leaf: path.endswith("w"))
    optimizer = ScaleRate(rule, {("*/b", "embed"): 3.0})
    state = moved(optimizer, "plateau", scheduler=scheduler_of("plateau"))
    assert state.schedules["learning_rate"].num_reductions == 1
    saved = state_dict("plateau")
    saved["param_groups"][0]["lr"] = 0.0
    state = moved(ScaleRate(optimizer, {"*/w": 0.0}), "plateau", saved, scheduler=scheduler_of("plateau"))
    assert state.schedules["learning_rate"].num_reductions == 1
    held = ScaleRate(optimizer, {"*": 0.0})
    with pytest.raises(ValueError, match="the reduced rate, 'lr' in the param_groups of PyTorch's optimizer, is missing"):
        moved(held, "plateau", scheduler=scheduler_of("plateau"))


@pytest.mark.parametrize(("step", "rate", "reductions"), [(2, 0.002, 0), (6, 0.005, 1)])
def test_a_plateau_after_a_warm_up(step, rate, reductions):
    schedule = LinearWarmupScheduler(5, 0.0, 0.005, after_scheduler=PerEpoch(plateau(0.01), 2))
    optimizer, state = of_plateau(schedule, scheduler_of("plateau"), rate, step)
    assert state.schedules["learning_rate"].num_reductions == reductions
    np.testing.assert_allclose(optimizer.get_learning_rate(state), rate, rtol=1e-6)


def test_schedulers_that_are_missing_or_have_no_use():
    scheduler = scheduler_of("plateau")
    with pytest.raises(ValueError, match=r"AdamW: its learning_rate follows a metric, .* scheduler=scheduler.state_dict"):
        moved(two_groups(plateau), "plateau")
    with pytest.raises(ValueError, match=r"what PyTorch's ReduceLROnPlateau has seen is needed.*; got \['_get_lr"):
        moved(two_groups(plateau), "plateau", scheduler=scheduler_of("warmup"))
    with pytest.raises(ValueError, match=r"no learning rate here follows a metric, .*: leave scheduler out"):
        moved(two_groups(warmup), scheduler=scheduler)
    with pytest.raises(ValueError, match=r"has reduced the rate to 0.005, but here it goes 0.02, 0.006\d*, 0.0018\d*, …: see"):
        of_plateau(ReduceLROnPlateau(0.02, factor=0.3), scheduler)
    with pytest.raises(ValueError, match=r"the reduced rate, 'lr' in the param_groups of PyTorch's optimizer, is missing"):
        of_plateau(plateau(0.01), scheduler, None)
    with pytest.raises(ValueError, match=r"has mode 'max'; write ReduceLROnPlateau\(..., mode='max'\)"):
        of_plateau(plateau(0.01), {**scheduler, "mode": "max"})
    with pytest.raises(ValueError, match=r"SGD: \['momentum'\] follow a metric, but in PyTorch only a learning rate does"):
        state_from_torch(
            SGD(momentum=plateau(0.9)),
            {"w": jnp.ones(2)},
            {"state": {}, "param_groups": []},
            ["w"],
            step=1,
            scheduler=scheduler,
        )


@pytree
class Halving(Schedule):
    """A schedule with a memory that is not PyTorch's: the rate halves with every metric."""

    def init(self):
        return jnp.float32(1)

    def observe(self, memory, metric, step):
        return memory / 2

    def value_given(self, step, memory):
        return memory


@pytest.mark.parametrize("given", [None, scheduler_of("plateau")])
@pytest.mark.parametrize(("schedule", "found"), [(Halving(), 0), (SequentialLR([plateau(0.01), plateau(0.01)], [9]), 2)])
def test_memories_that_are_not_torchs(schedule, found, given):
    with pytest.raises(ValueError, match=rf"follows a metric, but only one ReduceLROnPlateau can be moved; it has {found}"):
        of_plateau(schedule, given)


def test_schedulers_of_several_optimizers():
    first, second = ({**scheduler_of("plateau"), "best": best} for best in (0.5, 0.25))
    optimizer = two_groups(plateau, rest=SGD)
    saved = {"adamw": state_dict("two_optimizers"), "sgd": state_dict("two_optimizers", 1)}
    for one, rate in (("adamw", 0.005), ("sgd", 0.0075)):
        saved[one]["param_groups"][0]["lr"] = rate
    state = moved(optimizer, "two_optimizers", saved, scheduler={"adamw": first, "sgd": second})
    memories = [state.schedules[name]["learning_rate"] for name in ("decayed", "rest")]
    assert [(memory.best.item(), memory.num_reductions.item()) for memory in memories] == [(0.5, 1), (0.25, 2)]
    with pytest.raises(ValueError, match="a ReduceLROnPlateau of PyTorch has seen one series of metrics, but this state 2"):
        scheduler_to_torch(state, first)
    with pytest.raises(ValueError, match=r"SGD: its learning_rate follows a metric, .*; got None"):
        moved(optimizer, "two_optimizers", saved, scheduler={"adamw": first})


# The loss scale.


def test_scalers_that_are_missing_or_move_by_another_rule():
    optimizer, scaler = two_groups(warmup), scaler_of("warmup")
    trainer = lambda **settings: MixedPrecisionTrainer(None, optimizer, **{**SCALING, **settings})  # noqa: E731
    for missing in (None, {"scale": 1.0}):
        with pytest.raises(
            ValueError, match=r"scale is needed.* scaler=scaler.state_dict\(\)\), or scaler={} for .* afresh; got"
        ):
            moved(trainer(), scaler=missing)
    with pytest.raises(
        ValueError, match=r"has growth_interval=4, the trainer 2000: MixedPrecisionTrainer\(..., growth_interval=4"
    ):
        moved(trainer(growth_interval=2000), scaler=scaler)
    with pytest.raises(ValueError, match=r"scale is 2048, but the trainer's is from 1 to 1024: .*\(..., max_loss_scale=2048\)"):
        moved(trainer(loss_scale=2.0, max_loss_scale=1024.0), scaler=scaler)
    with pytest.raises(ValueError, match="scales no loss; leave scaler out"):
        moved(trainer(policy="bfloat16"), scaler=scaler)
    with pytest.raises(ValueError, match=r"a loss scale belongs to a trainer; give MixedPrecisionTrainer\(None, optimizer\)"):
        moved(optimizer, scaler=scaler)
    with pytest.raises(ValueError, match="state must be what the trainer's init returned"):
        scaler_to_torch(moved(optimizer), scaler)
    fixed = trainer(dynamic_loss_scaling=False, growth_interval=2000)
    assert moved(fixed, scaler=scaler).loss_scale.scale == 2048
    switched_off = moved(trainer(), scaler={})  # GradScaler(enabled=False).state_dict()
    assert bits(switched_off.loss_scale) == bits(trainer().init(params_of("warmup")).loss_scale)
    assert bits(switched_off.optimizer) == bits(moved(optimizer))
    plain = trainer(policy="bfloat16")
    assert bits(moved(plain).loss_scale) == bits(plain.init(params_of("warmup")).loss_scale)
