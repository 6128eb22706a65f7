"""Records what torch's learning-rate schedulers do, for tests/test_schedules_torch.py and tests/test_plateau.py.

Run it with torch and NumPy installed, from anywhere: `python tests/oracles/torch_schedules.py`. It writes
tests/data/torch_schedules.npz, the same bytes every time as long as torch's numbers do not change:

    description       JSON: torch's version, the settings by scheduler, the settings of the plateaus
    rates             [setting, step], float64: the rate after `step` calls of scheduler.step(); NaN past the end of a cycle
    momenta           [setting, step], float64: the momentum beside it; NaN where the scheduler leaves it alone
    metrics           [plateau, observation], float32
    plateau_rates     [plateau, observation], float64: the rate after each observation
"""

import json
import math
import pathlib
import warnings

import numpy as np

FILE = pathlib.Path(__file__).parents[1] / "data" / "torch_schedules.npz"
STEPS = 160
OBSERVATIONS = 60
PLATEAUS = 128
BASE = 0.3

# By scheduler: the arguments after the optimizer. A function of the step is an expression in k, and one that keeps its accuracy
# in float32; a scheduler among the arguments is a pair of its class and its arguments.
SETTINGS = {
    "LambdaLR": [
        {"lr_lambda": expression}
        for expression in (
            "1 / (1 + k)",
            "0.5 ** (k // 10)",
            "0.75 ** (k // 16)",
            "where(k < 20, (k + 1) / 20, 1.0)",
            "where(k < 40, (41 - k) / 41, 0.01)",
            "1.5 + cos(0.05 * k)",
            "(1 + k) ** -0.5",
            "where(k % 30 < 15, 1.0, 0.1)",
        )
    ],
    "MultiplicativeLR": [
        {"lr_lambda": expression}
        for expression in (
            "0.95",
            "0.999",
            "1.01",
            "where(k % 30 == 0, 0.5, 1.0)",
            "where(k < 10, 1.125, 1.0)",
            "where(k == 7, 0.1, where(k == 90, 0.25, 1.0))",
            "where(k % 16 == 1, 2.0, where(k % 16 == 9, 0.25, 1.0))",
            "where(k % 40 == 39, 0.3, 1.0)",
        )
    ],
    "StepLR": [
        {"step_size": 1},
        {"step_size": 7, "gamma": 0.5},
        {"step_size": 30},
        {"step_size": 30, "gamma": 0.7},
        {"step_size": 40, "gamma": 0.94},
        {"step_size": 3, "gamma": 0.99},
        {"step_size": 13, "gamma": 1.2},
        {"step_size": 50, "gamma": 0.0},
    ],
    "MultiStepLR": [
        {"milestones": [30, 80]},
        {"milestones": [1, 2, 3], "gamma": 0.5},
        {"milestones": [10, 20, 40, 80], "gamma": 0.3},
        {"milestones": [50], "gamma": 0.0},
        {"milestones": [30, 30, 90], "gamma": 0.7},
        {"milestones": list(range(5, 160, 5)), "gamma": 0.93},
        {"milestones": [159], "gamma": 2.0},
        {"milestones": [500], "gamma": 0.1},
    ],
    "ConstantLR": [
        {},
        {"factor": 0.5},
        {"factor": 0.1, "total_iters": 40},
        {"factor": 1.0, "total_iters": 10},
        {"factor": 0.7, "total_iters": 1},
        {"factor": 0.9, "total_iters": 120},
        {"factor": 0.01, "total_iters": 159},
        {"factor": 0.3, "total_iters": 500},
    ],
    "LinearLR": [
        {},
        {"start_factor": 0.1, "total_iters": 30},
        {"start_factor": 1.0, "end_factor": 0.0, "total_iters": 100},
        {"start_factor": 0.5, "end_factor": 0.25, "total_iters": 40},
        {"start_factor": 1e-3, "end_factor": 1.0, "total_iters": 50},
        {"start_factor": 0.3, "end_factor": 0.7, "total_iters": 1},
        {"start_factor": 1.0, "end_factor": 1e-4, "total_iters": 120},
        {"start_factor": 1.0, "end_factor": 0.1, "total_iters": 500},
    ],
    "ExponentialLR": [{"gamma": gamma} for gamma in (0.5, 0.9, 0.95, 0.99, 0.999, 1.0, 1.01, 0.7)],
    "PolynomialLR": [
        {},
        {"total_iters": 50},
        {"total_iters": 100, "power": 2.0},
        {"total_iters": 120, "power": 0.9},
        {"total_iters": 40, "power": 3.0},
        {"total_iters": 100, "power": 0.5},
        {"total_iters": 1, "power": 2.0},
        {"total_iters": 500, "power": 1.5},
    ],
    "CosineAnnealingLR": [
        {"T_max": 10},
        {"T_max": 10, "eta_min": 0.1},
        {"T_max": 40, "eta_min": 0.01},
        {"T_max": 1},
        {"T_max": 7, "eta_min": 0.3},
        {"T_max": 25, "eta_min": 1e-5},
        {"T_max": 50},
        {"T_max": 3, "eta_min": 0.5},
    ],
    "CosineAnnealingWarmRestarts": [
        {"T_0": 10},
        {"T_0": 40, "eta_min": 0.01},
        {"T_0": 10, "T_mult": 2},
        {"T_0": 1, "T_mult": 2, "eta_min": 1e-4},
        {"T_0": 1, "T_mult": 3},
        {"T_0": 4, "T_mult": 3, "eta_min": 0.05},
        {"T_0": 7, "T_mult": 1, "eta_min": 0.1},
        {"T_0": 1, "T_mult": 4},
    ],
    "CyclicLR": [
        {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 20},
        {"base_lr": 0.001, "max_lr": 0.5, "step_size_up": 10, "step_size_down": 30},
        {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 15, "mode": "triangular2"},
        {"base_lr": 0.0, "max_lr": 1.0, "step_size_up": 4, "step_size_down": 1, "mode": "triangular2"},
        {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 13, "mode": "exp_range", "gamma": 0.99},
        {"base_lr": 0.1, "max_lr": 0.2, "step_size_up": 25, "step_size_down": 5, "mode": "exp_range", "gamma": 0.999},
        {"base_lr": 0.1, "max_lr": 0.7, "step_size_up": 1},
        {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 8, "base_momentum": 0.5, "max_momentum": 0.99},
    ],
    "OneCycleLR": [
        {"max_lr": 0.1, "total_steps": 100},
        {"max_lr": 0.1, "total_steps": 101, "pct_start": 0.27},
        {"max_lr": 1.0, "total_steps": 150, "anneal_strategy": "linear"},
        {"max_lr": 0.5, "total_steps": 60, "div_factor": 10.0, "final_div_factor": 100.0},
        {"max_lr": 0.1, "total_steps": 100, "three_phase": True},
        {"max_lr": 1.0, "total_steps": 97, "three_phase": True, "anneal_strategy": "linear", "pct_start": 0.4},
        {"max_lr": 0.3, "total_steps": 33, "pct_start": 0.5, "base_momentum": 0.6, "max_momentum": 0.9},
        {"max_lr": 0.3, "total_steps": 160, "pct_start": 0.05, "anneal_strategy": "linear", "final_div_factor": 1.0},
        {"max_lr": 0.3, "total_steps": 40, "pct_start": 1.0},
        {"max_lr": 0.3, "total_steps": 40, "pct_start": 0.0},
    ],
    "SequentialLR": [
        {"schedulers": pieces, "milestones": milestones}
        for pieces, milestones in (
            ([("ConstantLR", {"factor": 0.1, "total_iters": 2}), ("ExponentialLR", {"gamma": 0.9})], [20]),
            ([("LinearLR", {"start_factor": 0.1, "total_iters": 10}), ("CosineAnnealingLR", {"T_max": 50})], [10]),
            ([("LinearLR", {"start_factor": 0.01, "total_iters": 5}), ("StepLR", {"step_size": 9, "gamma": 0.5})], [5]),
            (
                [
                    ("LinearLR", {"start_factor": 0.5, "total_iters": 8}),
                    ("ConstantLR", {"factor": 1.0, "total_iters": 1}),
                    ("PolynomialLR", {"total_iters": 60, "power": 2.0}),
                ],
                [8, 70],
            ),
            ([("ExponentialLR", {"gamma": 0.99}), ("LambdaLR", {"lr_lambda": "1 / (1 + k)"})], [50]),
            ([("CosineAnnealingWarmRestarts", {"T_0": 12}), ("ConstantLR", {"factor": 0.05, "total_iters": 30})], [60]),
            ([("StepLR", {"step_size": 4}), ("MultiStepLR", {"milestones": [3, 9], "gamma": 0.5})], [1]),
            (
                [("ConstantLR", {"factor": factor, "total_iters": 400}) for factor in (0.1, 0.2, 0.4, 0.8)],
                [40, 41, 120],
            ),
        )
    ],
    "ChainedScheduler": [
        {"schedulers": pieces}
        for pieces in (
            [("ConstantLR", {"factor": 0.1, "total_iters": 20}), ("ExponentialLR", {"gamma": 0.9})],
            [("LinearLR", {"start_factor": 0.1, "total_iters": 10}), ("StepLR", {"step_size": 30})],
            [("LinearLR", {"start_factor": 0.1, "total_iters": 10}), ("PolynomialLR", {"total_iters": 100, "power": 2.0})],
            [("MultiStepLR", {"milestones": [10, 60]}), ("ExponentialLR", {"gamma": 0.99})],
            [("StepLR", {"step_size": 7, "gamma": 0.9}), ("StepLR", {"step_size": 11, "gamma": 0.8})],
            [("MultiplicativeLR", {"lr_lambda": "0.98"}), ("ConstantLR", {"factor": 0.5, "total_iters": 3})],
            [
                ("ConstantLR", {"factor": 0.5, "total_iters": 50}),
                ("LinearLR", {"start_factor": 0.2, "end_factor": 0.6, "total_iters": 30}),
                ("ExponentialLR", {"gamma": 0.97}),
            ],
            [("PolynomialLR", {"total_iters": 150}), ("MultiStepLR", {"milestones": [40, 80, 120], "gamma": 0.5})],
        )
    ],
}


def function(expression):
    """A function of a Python number out of an expression in k."""
    names = {"cos": math.cos, "where": lambda condition, yes, no: yes if condition else no}
    return eval(f"lambda k: {expression}", names)


def make(optimizer, kind, arguments):
    import torch

    arguments = dict(arguments)
    if "lr_lambda" in arguments:
        arguments["lr_lambda"] = function(arguments["lr_lambda"])
    if "schedulers" in arguments:
        arguments["schedulers"] = [make(optimizer, *piece) for piece in arguments["schedulers"]]
    if kind == "ChainedScheduler":
        return torch.optim.lr_scheduler.ChainedScheduler(**arguments)
    return getattr(torch.optim.lr_scheduler, kind)(optimizer, **arguments)


def sgd():
    # Imported here because pytest imports this module when it looks for doctests, and the tests run without torch.
    import torch

    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=BASE, momentum=0.5)


def table(kind, arguments):
    """The rates and momenta after 0, 1, … steps; NaN where there are none."""
    optimizer = sgd()
    scheduler = make(optimizer, kind, arguments)
    rows = np.full((2, STEPS), np.nan)
    for step in range(min(STEPS, arguments.get("total_steps", STEPS))):
        rows[0, step] = optimizer.param_groups[0]["lr"]
        rows[1, step] = optimizer.param_groups[0]["momentum"]
        optimizer.step()
        if step + 1 < arguments.get("total_steps", STEPS):
            scheduler.step()
    if kind not in ("CyclicLR", "OneCycleLR"):
        rows[1] = np.nan
    return rows


def random_plateau(rng):
    """Every option, and metrics ≥ 0 that improve now and then, with stretches where they stand still."""
    arguments = {
        "mode": str(rng.choice(["min", "max"])),
        "factor": float(rng.choice([0.1, 0.5, 0.3, 0.9])),
        "patience": int(rng.integers(0, 6)),
        "threshold": float(rng.choice([0.0, 1e-4, 0.01, 0.1])),
        "threshold_mode": str(rng.choice(["rel", "abs"])),
        "cooldown": int(rng.integers(0, 5)),
        "min_lr": float(rng.choice([0.0, 1e-3, 0.05, 0.5])),
        "eps": float(rng.choice([1e-8, 0.0, 0.01])),
    }
    trend = np.linspace(2.0, 2.0 - rng.uniform(0, 1.5), OBSERVATIONS)
    metrics = np.abs(trend + rng.normal(size=OBSERVATIONS) * rng.choice([0.0, 0.02, 0.3]))
    still = rng.integers(0, OBSERVATIONS - 15)
    metrics[still : still + 15] = metrics[still]
    metrics = metrics if arguments["mode"] == "min" else 4 - metrics
    return arguments, metrics.astype(np.float32)


def plateau_table(arguments, metrics):
    optimizer = sgd()
    scheduler = make(optimizer, "ReduceLROnPlateau", arguments)
    rates = []
    for metric in metrics:
        scheduler.step(float(metric))
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


def main():
    import torch

    warnings.simplefilter("error")
    tables = [table(kind, arguments) for kind, settings in SETTINGS.items() for arguments in settings]
    rng = np.random.default_rng(20240229)
    plateaus = [random_plateau(rng) for _ in range(PLATEAUS)]
    description = {
        "torch": torch.__version__,
        "base": BASE,
        "settings": SETTINGS,
        "plateaus": [arguments for arguments, _ in plateaus],
    }
    FILE.parent.mkdir(exist_ok=True)
    np.savez_compressed(
        FILE,
        description=json.dumps(description),
        rates=np.stack([rows[0] for rows in tables]),
        momenta=np.stack([rows[1] for rows in tables]),
        metrics=np.stack([metrics for _, metrics in plateaus]),
        plateau_rates=np.array([plateau_table(*plateau) for plateau in plateaus]),
    )
    print(f"torch {torch.__version__}: {len(tables)} settings, {PLATEAUS} plateaus, {FILE.stat().st_size} bytes")


if __name__ == "__main__":
    main()
