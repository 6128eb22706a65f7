"""Schedules by their names, and what the functions that make them say about bad input."""

import enum
import pickle

import numpy as np
import pytest

import mithril_opt
from mithril_opt import (
    SGD,
    Adam,
    ChainedScheduler,
    ConstantLR,
    CosineAnnealingLR,
    ExponentialLR,
    LinearLR,
    LinearWarmupScheduler,
    NoamLR,
    OneCycleLR,
    PerEpoch,
    ReduceLROnPlateau,
    Schedule,
    SchedulerType,
    SequentialLR,
    StepLR,
    WarmupCosLR,
    get_constant_schedule,
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_cosine_with_hard_restarts_schedule_with_warmup,
    get_cosine_with_min_lr_schedule_with_warmup,
    get_cosine_with_min_lr_schedule_with_warmup_lr_rate,
    get_inverse_sqrt_schedule,
    get_linear_schedule_with_warmup,
    get_polynomial_decay_schedule_with_warmup,
    get_reduce_on_plateau_schedule,
    get_scheduler,
    get_wsd_schedule,
)
from mithril_opt.schedulers.named import SCHEDULES


def test_the_enumeration():
    names = "linear cosine cosine_with_restarts polynomial constant constant_with_warmup inverse_sqrt reduce_on_plateau"
    min_lr = ["cosine_with_min_lr", "cosine_warmup_with_min_lr"]
    assert [str(name) for name in SchedulerType] == [*names.split(), *min_lr, "warmup_stable_decay"]
    assert SchedulerType("linear") == "linear" == SchedulerType.LINEAR
    assert pickle.loads(pickle.dumps(SchedulerType.COSINE)) is SchedulerType.COSINE


SPECIFIC = {
    "polynomial": {"power": 2.0},
    "warmup_stable_decay": {"num_decay_steps": 3},
    "reduce_on_plateau": {"patience": 3},
    "cosine_with_min_lr": {"min_lr": 1.0},
    "cosine_warmup_with_min_lr": {"min_lr_rate": 0.1, "warmup_lr_rate": 0.2},
}
BY_NAME = {
    "linear": get_linear_schedule_with_warmup(10.0, 2, 10),
    "cosine": get_cosine_schedule_with_warmup(10.0, 2, 10),
    "cosine_with_restarts": get_cosine_with_hard_restarts_schedule_with_warmup(10.0, 2, 10),
    "cosine_with_min_lr": get_cosine_with_min_lr_schedule_with_warmup(10.0, 2, 10, min_lr=1.0),
    "cosine_warmup_with_min_lr": get_cosine_with_min_lr_schedule_with_warmup_lr_rate(
        10.0, 2, 10, min_lr_rate=0.1, warmup_lr_rate=0.2
    ),
    "polynomial": get_polynomial_decay_schedule_with_warmup(10.0, 2, 10, power=2.0),
    "constant": get_constant_schedule(10.0),
    "constant_with_warmup": get_constant_schedule_with_warmup(10.0, 2),
    "inverse_sqrt": get_inverse_sqrt_schedule(10.0, 2),
    "reduce_on_plateau": get_reduce_on_plateau_schedule(10.0, patience=3),
    "warmup_stable_decay": get_wsd_schedule(10.0, 2, 3, 10),
}


@pytest.mark.parametrize("name", [*SchedulerType, *map(str, SchedulerType)])
def test_transformers_schedules_by_name(name):
    assert get_scheduler(name, 10.0, 2, 10, SPECIFIC.get(name)) == BY_NAME[name]


OTHERS = [
    ("step", 0.1, {"step_size": 30}, StepLR(0.1, 30)),
    ("exponential", 0.1, {"gamma": 0.9}, ExponentialLR(0.1, 0.9)),
    ("linear_lr", 0.1, {}, LinearLR(0.1)),
    ("constant_lr", 0.1, {"factor": 0.5}, ConstantLR(0.1, 0.5)),
    ("cosine_annealing", 0.1, {"T_max": 10, "eta_min": 0.01}, CosineAnnealingLR(0.1, 10, 0.01)),
    ("one_cycle", 0.1, {"total_steps": 10}, OneCycleLR(0.1, 10)),
    ("one_cycle", 0.1, {"max_lr": 0.2, "total_steps": 10}, OneCycleLR(0.2, 10)),
    ("warmup_cos", 0.1, {"min_lr": 0.0, "warmup_epochs": 2, "epochs": 9}, WarmupCosLR(0.0, 0.1, 2, 9)),
    ("noam", 2.0, {"d_model": 512, "warmup_steps": 4000}, NoamLR(512, 4000, 2.0)),
    ("linear_warmup", 0.1, {"warmup_steps": 5, "start_lr": 0.0}, LinearWarmupScheduler(5, 0.0, 0.1)),
    ("reduce_lr_on_plateau", 0.1, {"mode": "max"}, ReduceLROnPlateau(0.1, mode="max")),
    ("chained", None, {"schedulers": [StepLR(0.1, 3)]}, ChainedScheduler([StepLR(0.1, 3)])),
    ("per_epoch", None, {"schedule": StepLR(0.1, 3), "steps_per_epoch": 7}, PerEpoch(StepLR(0.1, 3), 7)),
    (
        "sequential",
        None,
        {"schedulers": [StepLR(0.1, 3), StepLR(0.2, 3)], "milestones": [4]},
        SequentialLR([StepLR(0.1, 3), StepLR(0.2, 3)], [4]),
    ),
]


@pytest.mark.parametrize(("name", "base_lr", "specific", "schedule"), OTHERS)
def test_other_schedules_by_name(name, base_lr, specific, schedule):
    assert get_scheduler(name, base_lr, scheduler_specific_kwargs=specific) == schedule


def test_lengths_go_where_a_schedule_has_them():
    """A training script that always passes the lengths that it knows."""
    assert get_scheduler("one_cycle", 0.1, None, 100) == OneCycleLR(0.1, 100)
    assert get_scheduler("noam", 1.0, 400, 9000, {"d_model": 8}) == NoamLR(8, 400)
    assert get_scheduler("warmup_cos", 0.1, 5, 100, {"min_lr": 0.01}) == WarmupCosLR(0.01, 0.1, 5, 100)
    assert get_scheduler("step", 0.1, 0, 100, {"step_size": 3}) == StepLR(0.1, 3)


class TheirSchedulerType(enum.Enum):
    """As transformers defines it: its `str` is not the value."""

    COSINE = "cosine"
    REDUCE_ON_PLATEAU = "reduce_lr_on_plateau"


def test_the_enumeration_of_transformers_itself():
    assert get_scheduler(TheirSchedulerType.COSINE, 10.0, 2, 10) == BY_NAME["cosine"]
    assert get_scheduler(TheirSchedulerType.REDUCE_ON_PLATEAU, 10.0, 2, 10, {"patience": 3}) == BY_NAME["reduce_on_plateau"]


def test_lengths_may_be_any_kind_of_integer():
    expected = get_linear_schedule_with_warmup(0.1, 100, 10_000)
    assert get_linear_schedule_with_warmup(0.1, np.int64(100), 1e4) == expected
    assert get_scheduler("linear", 0.1, np.int32(100), np.int64(10_000)) == expected


def test_every_schedule_has_a_name():
    made = {row.make for row in SCHEDULES.values()}
    public = [getattr(mithril_opt, name) for name in mithril_opt.schedulers.__all__]
    classes = {one for one in public if isinstance(one, type) and issubclass(one, Schedule)}
    assert classes - made == {Schedule, mithril_opt.OneCycleMomentum, mithril_opt.HalfLifeWarmup}  # which are for no rate


ACCEPTED = "linear, .*linear_lr, .*noam, .*one_cycle, .*step, .*warmup_cos"
BAD = [
    (lambda: get_scheduler("linaer", 0.1, 2, 10), ValueError, f"there is no schedule 'linaer'; accepted are .*{ACCEPTED}"),
    (lambda: get_scheduler(None, 0.1, 2, 10), ValueError, f"there is no schedule 'None'; accepted are .*{ACCEPTED}"),
    (
        lambda: get_scheduler("linear", 0.1, 2),
        ValueError,
        r"get_scheduler\('linear'\) takes base_lr, num_warmup_steps, num_training_steps; num_training_steps must be given",
    ),
    (lambda: get_scheduler("cosine", 0.1, None, 10), ValueError, "num_warmup_steps must be given"),
    (lambda: get_scheduler("warmup_stable_decay", 0.1, 2, 10), ValueError, "num_decay_steps must be given"),
    (
        lambda: get_scheduler("warmup_stable_decay", 0.1, 2, None, {"num_decay_steps": 3}),
        ValueError,
        "get_wsd_schedule needs num_training_steps or num_stable_steps",
    ),
    (
        lambda: get_scheduler("cosine", 0.1, 2, 10, {"cycles": 2, "power": 1}),
        ValueError,
        r"takes base_lr, num_warmup_steps, num_training_steps, num_cycles; scheduler_specific_kwargs has 'cycles', 'power'",
    ),
    (lambda: get_scheduler("step", 0.1), ValueError, r"takes base_lr, step_size, gamma; step_size must be given"),
    (lambda: get_scheduler("step", 0.1, 5, 10, {"step_size": 3}), ValueError, "has no warm-up: chain it after a LinearWarmup"),
    (lambda: get_scheduler("sequential", 0.1), ValueError, "base_lr must be None, got 0.1"),
    (lambda: get_scheduler("reduce_on_plateau", 0.1, 0, 0, {"mode": "mim"}), ValueError, "one of 'min', 'max', got 'mim'"),
    (lambda: get_linear_schedule_with_warmup(0.1, 11, 10), ValueError, "num_warmup_steps = 11 must not be longer than num_tr"),
    (lambda: get_linear_schedule_with_warmup(0.1, np.int64(11), np.int32(10)), ValueError, "must not be longer than num_train"),
    (lambda: get_linear_schedule_with_warmup(0.1, 2, 10.5), ValueError, "must be an integer of at least 0, got 8.5"),
    (
        lambda: get_cosine_with_min_lr_schedule_with_warmup(0.1, 1, 10),
        ValueError,
        "get_cosine_with_min_lr_schedule_with_warmup: give exactly one of min_lr and min_lr_rate, got None and None",
    ),
    (
        lambda: get_cosine_with_min_lr_schedule_with_warmup_lr_rate(0.1, 1, 10, min_lr=0.01, min_lr_rate=0.1),
        ValueError,
        "give exactly one of min_lr and min_lr_rate, got 0.01 and 0.1",
    ),
    (
        lambda: get_cosine_with_min_lr_schedule_with_warmup_lr_rate(0.1, 0, 10, min_lr=0.01),
        ValueError,
        "num_warmup_steps must be ≥ 1, got 0; without a warm-up, write CosineDecayLR",
    ),
    (
        lambda: get_cosine_with_min_lr_schedule_with_warmup_lr_rate(0.1, 1, 10, min_lr=0.01, warmup_lr_rate=0.1),
        ValueError,
        "num_warmup_steps must be ≥ 2, got 1",
    ),
    (lambda: get_cosine_schedule_with_warmup(0.1, 11, 10), ValueError, "must not be longer than num_training_steps = 10"),
    (lambda: get_linear_schedule_with_warmup(0.1, 1, None), TypeError, "num_training_steps must be an integer, got None"),
    (lambda: get_linear_schedule_with_warmup(0.1, -1, 10), ValueError, "warmup_steps must be an integer of at least 0, got -1"),
    (
        lambda: get_wsd_schedule(0.1, 5, 5, num_training_steps=9),
        ValueError,
        "num_warmup_steps = 5 [+] num_decay_steps = 5 must not be longer than num_training_steps = 9",
    ),
    (lambda: get_wsd_schedule(0.1, 5, 5, 15, num_stable_steps=6), ValueError, r"\+ num_stable_steps = 6 must not be longer"),
    (lambda: get_wsd_schedule(0.1, 5, 5, 15, decay_type="sqrt"), ValueError, "one of 'linear', 'cosine', '1-sqrt', got 'sqrt'"),
    (lambda: get_wsd_schedule(0.1, 5, 5, 15, warmup_type="flat"), ValueError, "warmup_type must be one of .* got 'flat'"),
    (
        lambda: get_polynomial_decay_schedule_with_warmup(1e-8, 1, 10),
        ValueError,
        "lr_end = 1e-07 must be below base_lr",
    ),
    (
        lambda: get_linear_schedule_with_warmup(Adam(), num_warmup_steps=2, num_training_steps=10),
        TypeError,
        r"Write Adam\(learning_rate=get_linear_schedule_with_warmup\(0.001, num_warmup_steps=2, num_training_steps=10\)\) "
        r"instead of get_linear_schedule_with_warmup\(optimizer, num_warmup_steps=2, num_training_steps=10\)",
    ),
    (
        lambda: get_cosine_schedule_with_warmup(optimizer=SGD(), num_warmup_steps=2, num_training_steps=10, last_epoch=-1),
        TypeError,
        r"Write Adam\(learning_rate=get_cosine_schedule_with_warmup\(0.001, num_warmup_steps=2, num_training_steps=10\)\) ",
    ),
    (
        lambda: get_scheduler("linear", SGD(), 2, 10),
        TypeError,
        r"learning_rate=get_scheduler\('linear', 0.001, 2, 10\)\) instead of get_scheduler\('linear', optimizer, 2, 10\)",
    ),
    (lambda: get_scheduler("linear", optimizer=SGD()), TypeError, r"learning_rate=get_scheduler\('linear', 0.001\)\) instead"),
    (
        lambda: get_reduce_on_plateau_schedule(SGD(), mode="max"),
        TypeError,
        r"_on_plateau_schedule\(0.001, mode='max'\)\) instead",
    ),
]


@pytest.mark.parametrize(("make", "error", "message"), BAD)
def test_bad_input(make, error, message):
    with pytest.raises(error, match=message):
        make()
