"""The numbers and switches of PyTorch's parameter groups beside the rate and the weight decay."""

import dataclasses
import re

import jax.numpy as jnp
import numpy as np
import pytest

import mithril_opt
from mithril_opt import (
    SGD,
    Accumulate,
    AdaDelta,
    Adafactor,
    AdaGrad,
    Adam,
    Adamax,
    AdamW,
    CyclicLR,
    MultiOptimizer,
    Muon,
    NAdam,
    OneCycleLR,
    RAdam,
    RMSProp,
    state_from_torch,
    state_to_torch,
)

PARAMS = {"w": jnp.ones((2, 2))}
BETAS = {"betas": (0.9, 0.999), "eps": 1e-8, "maximize": False}
SGD_GROUP = {"momentum": 0, "dampening": 0, "nesterov": False, "maximize": False}
RMSPROP = {"alpha": 0.9, "eps": 1e-8, "momentum": 0, "centered": False}
ADAGRAD = {"lr_decay": 0, "initial_accumulator_value": 0, "eps": 1e-8, "maximize": False}
ADAFACTOR = {"beta2_decay": -0.8, "eps": (None, 1e-3), "d": 1.0}
JORDAN = (3.4445, -4.775, 2.0315)
MUON = {"momentum": 0.95, "nesterov": True, "ns_coefficients": JORDAN, "ns_steps": 5, "adjust_lr_fn": "match_rms_adamw"}


def saved(group, entry=None):
    return {"state": {} if entry is None else {0: entry}, "param_groups": [{"params": [0], **group}]}


def moved(optimizer, state_dict, params=PARAMS):
    return state_from_torch(optimizer, params, state_dict, [*params], step=0 if not state_dict["state"] else None)


@pytest.mark.parametrize(
    ("rule", "group", "other", "said"),
    [
        (Adam, BETAS | {"amsgrad": False}, {"betas": (0.9, 0.95)}, "beta2=0.95"),
        (AdamW, BETAS | {"amsgrad": False}, {"betas": [0.8, 0.99], "eps": 1e-6}, "beta1=0.8, beta2=0.99, epsilon=1e-06"),
        (AdamW, BETAS | {"amsgrad": False}, {"amsgrad": True}, "amsgrad=True"),
        (NAdam, BETAS | {"momentum_decay": 4e-3}, {"betas": (0.5, 0.999)}, "beta1=0.5"),
        (NAdam, BETAS | {"momentum_decay": 4e-3}, {"momentum_decay": 0.01}, "momentum_decay=0.01"),
        (RAdam, BETAS, {"betas": (0.9, 0.99901)}, "beta2=0.99901"),
        (Adamax, BETAS, {"eps": 1e-6}, "epsilon=1e-06"),
        (AdaDelta, {"rho": 0.9, "eps": 1e-6}, {"rho": 0.95}, "rho=0.95"),
        (AdaDelta, {"rho": 0.9, "eps": 1e-6}, {"eps": 1e-7}, "epsilon=1e-07"),
        (AdaGrad, ADAGRAD, {"eps": 1e-10}, "epsilon=1e-10"),
        (RMSProp, RMSPROP, {"alpha": 0.99}, "decay=0.99"),
        (RMSProp, RMSPROP, {"momentum": 0.9, "eps": 1e-3}, "epsilon=0.001, momentum=0.9"),
        (RMSProp, RMSPROP, {"centered": True}, "centered=True"),
        (SGD, SGD_GROUP, {"momentum": 0.9, "nesterov": True}, "momentum=0.9, nesterov=True"),
        (SGD, SGD_GROUP, {"dampening": 0.5}, "dampening=0.5"),
        (Adafactor, ADAFACTOR, {"beta2_decay": -0.5}, "decay=0.5"),
        (Adafactor, ADAFACTOR, {"eps": (None, 1e-2), "d": 2.0}, "epsilon2=0.01, update_clip=2"),
        (Muon, MUON, {"momentum": 0.9, "nesterov": False}, "beta=0.9, nesterov=False"),
        (Muon, MUON, {"adjust_lr_fn": None}, "scaling='original'"),
        (Muon, MUON, {"ns_steps": 6}, "ns_steps=6"),
        (Muon, MUON, {"ns_coefficients": [2.0, -1.5, 0.5]}, "ns_coefficients=((2, -1.5, 0.5),)"),
    ],
)
def test_numbers_that_are_not_torchs_are_an_error_that_says_what_to_write(rule, group, other, said):
    """What it says makes the rule PyTorch's; and what is deleted is not compared."""
    moved(rule(), saved(group))
    state_dict = saved(group | other)
    with pytest.raises(
        ValueError, match=r"^after 0 updates 'w' has .* in PyTorch, but .* in the next update here: write"
    ) as caught:
        moved(rule(), state_dict)
    written = re.search(r"write (.*)\. names follow the order of the parameter groups\. If it", str(caught.value))[1]
    assert written == f"{rule.__name__}({said})"
    moved(eval(written, vars(mithril_opt)), state_dict)
    way = str(caught.value).partition("from here on")[2]
    if way.startswith(": "):
        exec(way[2:], {"state_dict": state_dict})
        moved(rule(), state_dict)
        assert not set(other) & set(state_dict["param_groups"][0])
    else:
        assert way == ", move with PyTorch's and use the state with another optimizer"


def test_a_muon_whose_coefficients_are_written_out():
    moved(Muon(ns_coefficients=[JORDAN] * 2), saved(MUON))
    with pytest.raises(ValueError, match=r"write Muon\(ns_coefficients=\(\(3.4445, -4.775, 2.0315\),\)\)"):
        moved(Muon(ns_coefficients="polar_express"), saved(MUON))


def test_a_number_with_a_schedule_is_compared_at_the_step_of_the_state():
    entry = {"step": 5.0, "exp_avg": np.ones((2, 2)), "exp_avg_sq": np.ones((2, 2))}
    group = BETAS | {"amsgrad": False, "betas": (0.85, 0.999)}
    optimizer = Accumulate(Adam(beta1=lambda step: 0.8 + 0.01 * step), every=2)
    assert moved(optimizer, saved(group, entry)).optimizer.step == 5
    with pytest.raises(ValueError, match=r"after 5 updates 'w' has betas = \(0.8, 0.999\) .* beta1 = 0.85\d* in the next"):
        moved(optimizer, saved(group | {"betas": (0.8, 0.999)}, entry))


def test_several_optimizers_and_each_its_own_numbers():
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    optimizer = MultiOptimizer({"adam": Adam(), "sgd": SGD(momentum=0.9)}, {"adam": "a", "sgd": "b"})
    theirs = {"first": saved(BETAS | {"amsgrad": False}), "second": saved(SGD_GROUP | {"momentum": 0.5})}
    with pytest.raises(ValueError, match=r"'b' has momentum = 0.5 in PyTorch, but momentum = 0.9 .*: write SGD\(mom") as caught:
        state_from_torch(optimizer, params, theirs, ["a", "b"])
    assert "MultiOptimizer" not in str(caught.value)
    exec(str(caught.value).partition("from here on: ")[2], {"state_dict": theirs})
    state_from_torch(optimizer, params, theirs, ["a", "b"])


def test_what_only_torch_has():
    """An ascent, and a rate that falls by itself."""
    ascent = saved(BETAS | {"amsgrad": False, "maximize": True})
    with pytest.raises(ValueError, match="has maximize = True, but here a loss is always minimised: negate it") as caught:
        moved(Adam(), ascent)
    exec(str(caught.value).partition("say so: ")[2], {"state_dict": ascent})
    moved(Adam(), ascent)

    optimizer = AdaGrad(learning_rate=0.5)
    falling = saved(ADAGRAD | {"lr": 0.5, "lr_decay": 0.25}, {"step": 4.0, "sum": np.ones((2, 2))})
    refused = (
        r"'w' has lr_decay = 0.25 in PyTorch: write AdaGrad\(learning_rate=lambda step: 0.5 / \(1 \+ 0.25 \* step\)\), and"
    )
    with pytest.raises(ValueError, match=refused) as caught:
        moved(optimizer, falling)
    with pytest.raises(ValueError, match=refused):
        state_to_torch(optimizer, PARAMS, optimizer.init(PARAMS), falling, ["w"])
    moved(optimizer, saved(ADAGRAD | {"lr_decay": 0.25}))  # whose rate is another one from here on
    exec(str(caught.value).partition("this is the rate: ")[2], {"state_dict": falling})
    written = eval(re.search(r"write (.*), and", str(caught.value))[1], vars(mithril_opt))
    assert written.get_learning_rate(moved(written, falling)) == 0.25  # 0.5 / (1 + (5 − 1) 0.25), in the fifth update


@pytest.mark.parametrize(
    ("rule", "group", "schedule", "said"),
    [
        (AdamW, BETAS | {"amsgrad": False}, OneCycleLR(0.1, 10), "beta1=schedule.momentum_schedule(0.85, 0.95), beta2=0.99"),
        (SGD, SGD_GROUP, CyclicLR(0.1, 1.0, 4), "momentum=schedule.momentum_schedule(0.8, 0.9)"),
        (RMSProp, RMSPROP, CyclicLR(0.1, 1.0, 4), "momentum=schedule.momentum_schedule(0.8, 0.9)"),
        (Muon, MUON, OneCycleLR(0.1, 10), "beta=schedule.momentum_schedule(0.85, 0.95)"),
    ],
)
def test_a_momentum_that_was_scheduled_in_torch_gets_its_schedule(rule, group, schedule, said):
    """Not its number at this very update."""
    momentum, ends = schedule.momentum_schedule(), (0.85, 0.95) if isinstance(schedule, OneCycleLR) else (0.8, 0.9)
    group = {**group, "base_momentum": ends[0], "max_momentum": ends[1], "lr": float(schedule(3))}
    group |= {"betas": (float(momentum(3)), 0.99)} if "betas" in group else {"momentum": float(momentum(3))}
    move = lambda optimizer: state_from_torch(optimizer, PARAMS, saved(group), ["w"], step=3)  # noqa: E731
    with pytest.raises(ValueError, match=r"after 3 updates 'w' has \w+ = .* in PyTorch") as caught:
        move(rule(learning_rate=schedule))
    written = re.search(r"write (\w+\(.*\)), where schedule is its learning_rate, the OneCycleLR or", str(caught.value))[1]
    assert written == f"{rule.__name__}({said})"
    mended = eval(written, {**vars(mithril_opt), "schedule": schedule})
    move(mended := dataclasses.replace(mended, learning_rate=schedule))
    if rule is AdamW:  # a number that is not moved
        with pytest.raises(ValueError, match=r"write AdamW\(beta2=0.99\)\. names"):
            move(dataclasses.replace(mended, beta2=0.5))
    assert mended.schedules.keys() & {"beta1", "momentum", "beta"}
    del group["base_momentum"]
    with pytest.raises(ValueError, match=r"write \w+\((beta1|momentum|beta)=0\.\d+"):
        move(rule(learning_rate=schedule))
