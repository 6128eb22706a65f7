"""What a schedule says about bad input."""

import math

import optax
import pytest
from zoo import halving

from mithril_opt import (
    SGD,
    ChainedScheduler,
    ConstantLR,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    CosineDecayLR,
    CosineHardRestartsLR,
    CyclicLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    LinearWarmupScheduler,
    MultiplicativeLR,
    MultiStepLR,
    NoamLR,
    OneCycleLR,
    OneCycleMomentum,
    PerEpoch,
    PolynomialDecayLR,
    PolynomialLR,
    SequentialLR,
    StepLR,
    WarmupCosLR,
)

BAD = [
    (lambda: StepLR(0.1, step_size=0), ValueError, r"StepLR: step_size must be an integer of at least 1, got 0"),
    (lambda: StepLR(0.1, step_size=2.5), ValueError, r"step_size must be an integer of at least 1, got 2.5"),
    (lambda: StepLR(0.1, step_size="3"), TypeError, r"step_size must be an integer of at least 1, got '3' of type str"),
    (lambda: StepLR(0.1, step_size=lambda step: 3), TypeError, r"step_size must be an integer of at least 1, got <function"),
    (lambda: StepLR(-0.1, step_size=3), ValueError, r"base_lr must be a number in \[0, inf\), got -0.1"),
    (lambda: StepLR(ConstantLR(0.1), 3), TypeError, r"StepLR: base_lr must be a number in \[0, inf\), got ConstantLR"),
    (lambda: ExponentialLR(math.nan, gamma=0.9), ValueError, r"base_lr must be .* got nan"),
    (lambda: ExponentialLR(0.1, gamma=-0.9), ValueError, r"gamma must be a number in \[0, inf\)"),
    (lambda: ConstantLR(0.1, factor=2.0), ValueError, r"factor must be a number in \[0, 1\]"),
    (lambda: LinearLR(0.1, start_factor=1.5), ValueError, r"start_factor must be a number in \[0, 1\], got 1.5"),
    (lambda: LinearLR(0.1, total_iters=-1), ValueError, r"total_iters must be an integer of at least 0, got -1"),
    (lambda: PolynomialLR(0.1, total_iters=0), ValueError, r"total_iters must be an integer of at least 1, got 0"),
    (lambda: LambdaLR(0.1, [lambda step: 1.0]), TypeError, r"LambdaLR: lr_lambda must be one function of the step, got \["),
    (lambda: MultiplicativeLR(0.1, 0.95), TypeError, r"lr_lambda must be one function of the step, got 0.95"),
    (lambda: MultiStepLR(0.1, [30, 20]), ValueError, r"MultiStepLR: milestones must be increasing, got \[30, 20\]"),
    (lambda: MultiStepLR(0.1, [30, -20]), ValueError, r"milestones\[1\] must be an integer of at least 0, got -20"),
    (lambda: MultiStepLR(0.1, [1.5]), ValueError, r"milestones\[0\] must be an integer of at least 0, got 1.5"),
    (lambda: MultiStepLR(0.1, 30), TypeError, r"milestones must be a sequence of integers, got 30 of type int"),
    (lambda: MultiStepLR(0.1, "30"), TypeError, r"milestones must be a sequence of integers, got '30' of type str"),
    (lambda: CosineAnnealingLR(0.1, T_max=0), ValueError, r"T_max must be an integer of at least 1, got 0"),
    (lambda: CosineAnnealingLR(0.1, T_max=-3), ValueError, r"T_max must be an integer of at least 1, got -3"),
    (lambda: CosineAnnealingWarmRestarts(0.1, T_0=0), ValueError, r"T_0 must be an integer of at least 1, got 0"),
    (lambda: CosineAnnealingWarmRestarts(0.1, 3, T_mult=1.5), ValueError, r"T_mult must be an integer of at least 1, got 1.5"),
    (lambda: CosineDecayLR(0.1, 0), ValueError, r"decay_steps must be an integer of at least 1, got 0"),
    (lambda: CosineHardRestartsLR(0.1, 10, 1.5), ValueError, r"num_cycles must be an integer of at least 1, got 1.5"),
    (
        lambda: CyclicLR(0.1, 0.2, mode="triangle"),
        ValueError,
        r"CyclicLR: mode must be one of 'triangular', 'triangular2', 'exp_range', got 'triangle'",
    ),
    (lambda: CyclicLR(0.1, 0.2, step_size_up=0), ValueError, r"step_size_up must be an integer of at least 1, got 0"),
    (
        lambda: CyclicLR(0.1, 0.2).momentum_schedule(-0.1),
        ValueError,
        r"CyclicLR: base_momentum must be a number in \[0, 1\], got -0.1",
    ),
    (lambda: OneCycleMomentum(CyclicLR(0.1, 0.2)), TypeError, r"cycle must be a OneCycleLR, got CyclicLR"),
    (
        lambda: OneCycleLR(0.1, 100, anneal_strategy="cosine"),
        ValueError,
        r"anneal_strategy must be one of 'cos', 'linear', got 'cosine'",
    ),
    (lambda: OneCycleLR(0.1, 0), ValueError, r"total_steps must be an integer of at least 1, got 0"),
    (lambda: OneCycleLR(0.1, 10, pct_start=1.1), ValueError, r"pct_start must be a number in \[0, 1\], got 1.1"),
    (lambda: OneCycleLR(0.1, 10, div_factor=0), ValueError, r"div_factor must be a number in \(0, inf\), got 0"),
    (lambda: OneCycleLR(0.1, 10).momentum_schedule(1.5), ValueError, r"base_momentum must be a number in \[0, 1\], got 1.5"),
    (
        lambda: WarmupCosLR(0.0, 0.1, warmup_epochs=20, epochs=10),
        ValueError,
        r"WarmupCosLR: warmup_epochs = 20 must not be longer than epochs = 10",
    ),
    (lambda: NoamLR(512, 0), ValueError, r"NoamLR: warmup_steps must be an integer of at least 1, got 0"),
    (lambda: PolynomialDecayLR(0.1, 10, lr_end=0.1), ValueError, r"lr_end = 0.1 must be below base_lr = 0.1"),
    (
        lambda: SequentialLR([StepLR(0.1, 3), StepLR(0.1, 3)], [3, 5]),
        ValueError,
        r"SequentialLR: needs one milestone fewer than schedules, got \[3, 5\] for 2 schedules",
    ),
    (
        lambda: SequentialLR([StepLR(0.1, 3)] * 3, [3]),
        ValueError,
        r"one milestone fewer than schedules, got \[3\] for 3 schedules",
    ),
    (lambda: SequentialLR([StepLR(0.1, 3)] * 3, [5, 5]), ValueError, r"must be strictly increasing, got \[5, 5\]"),
    (lambda: SequentialLR([StepLR(0.1, 3)] * 3, [5, 4]), ValueError, r"milestones must be increasing, got \[5, 4\]"),
    (lambda: SequentialLR([], []), ValueError, r"schedulers must hold one schedule at least"),
    (lambda: SequentialLR([0.1], []), TypeError, r"SequentialLR takes a schedule or a function of the step, got 0.1"),
    (lambda: SequentialLR(StepLR(0.1, 3), []), TypeError, r"SequentialLR: schedulers must be a list of schedules, got StepLR"),
    (lambda: ChainedScheduler([]), ValueError, r"ChainedScheduler: schedulers must hold one schedule at least"),
    (
        lambda: ChainedScheduler([ConstantLR(0.1), ExponentialLR(0.1, 0.9)]),
        ValueError,
        r"the base rate must appear in one of them and the others need base_lr=1.0; got the base rates \[0.1, 0.1\]",
    ),
    (
        lambda: ChainedScheduler([LinearWarmupScheduler(10, 0.0, 0.2), ExponentialLR(0.1, 0.9)]),
        ValueError,
        r"got the base rates \[0.2, 0.1\]",
    ),
    (lambda: ChainedScheduler([OneCycleLR(0.3, 100), StepLR(0.1, 10)]), ValueError, r"got the base rates \[0.3, 0.1\]"),
    (lambda: ChainedScheduler([PerEpoch(StepLR(0.1, 10), 5), StepLR(0.4, 10)]), ValueError, r"got the base rates \[0.1, 0.4\]"),
    (
        lambda: ChainedScheduler([StepLR(0.4, 10), SequentialLR([StepLR(0.1, 3), StepLR(0.1, 3)], [5])]),
        ValueError,
        r"got the base rates \[0.4, 0.1\]",
    ),
    (lambda: LinearWarmupScheduler(-1, 0.0, 0.1), ValueError, r"warmup_steps must be an integer of at least 0, got -1"),
    (lambda: LinearWarmupScheduler(1, 0.0, 0.1, after_scheduler=0.1), TypeError, r"takes a schedule or a function .* got 0.1"),
    (lambda: PerEpoch(0.1, 10), TypeError, r"PerEpoch takes a schedule or a function of the step, got 0.1"),
    (lambda: PerEpoch(StepLR(0.1, 1), 0), ValueError, r"steps_per_epoch must be an integer of at least 1"),
]


PORTED = [
    (
        lambda: StepLR(SGD(), 30, gamma=0.5),
        r"Write Adam\(learning_rate=StepLR\(0.001, 30, gamma=0.5\)\) instead of StepLR\(optimizer, 30, gamma=0.5\)",
    ),
    (lambda: StepLR(optimizer=SGD(), step_size=30, last_epoch=-1), r"=StepLR\(0.001, step_size=30\)\) instead"),
    (lambda: LambdaLR(SGD(), lr_lambda=halving), r"=LambdaLR\(0.001, lr_lambda=halving\)\) instead"),
    (lambda: LambdaLR(SGD(), lr_lambda=[lambda step: 1.0]), r"=LambdaLR\(0.001, lr_lambda=\[...\]\)\) instead"),
    (
        lambda: OneCycleLR(SGD(), max_lr=0.1, total_steps=100),
        r"=OneCycleLR\(max_lr=0.1, total_steps=100\)\) instead of OneCycleLR\(optimizer, max_lr=0.1, total_steps=100\)",
    ),
    (lambda: CyclicLR(SGD(), 0.01, 0.1, mode="exp_range"), r"=CyclicLR\(0.01, 0.1, mode='exp_range'\)\) instead"),
    (
        lambda: SequentialLR(SGD(), [StepLR(0.1, 3), StepLR(0.2, 3)], milestones=[20]),
        r"=SequentialLR\(\[StepLR\(...\), StepLR\(...\)\], milestones=\[20\]\)\) instead of SequentialLR\(optimizer, ",
    ),
    (lambda: ChainedScheduler([StepLR(0.1, 3)], optimizer=SGD()), r"=ChainedScheduler\(\[StepLR\(...\)\]\)\) instead"),
    (lambda: ChainedScheduler(SGD()), r"=ChainedScheduler\(schedulers=...\)\) instead of ChainedScheduler\(optimizer\)"),
    (lambda: StepLR(optax.sgd(0.1), 30), r"=StepLR\(0.001, 30\)\) instead"),
    (lambda: PerEpoch(SGD(), 30), r"=PerEpoch\(30, steps_per_epoch=...\)\) instead of PerEpoch\(optimizer, 30\)"),
]


@pytest.mark.parametrize(("make", "message"), PORTED)
def test_the_line_to_write_instead_of_pytorchs(make, message):
    with pytest.raises(TypeError, match=message):
        make()


@pytest.mark.parametrize(("make", "error", "message"), BAD)
def test_bad_input(make, error, message):
    with pytest.raises(error, match=message):
        make()
