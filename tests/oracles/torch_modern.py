"""Records what torch's NAdam, RAdam, Adamax and Adadelta do and keep, for tests/test_parity_torch_modern.py.

Run it in tests/ with torch and NumPy installed: `python -m oracles.torch_modern`. The problem, start and gradients, is that of
torch_optimizers.py. It writes tests/data/torch_modern.npz, the same bytes every time as long as torch's numbers do not change:

    description          JSON: torch's version, the settings with torch's defaults filled in, their parameter groups
    float32, float64     [setting, recorded step, element]: torch's parameters
    SETTING/I/KEY        float32: the entries of the I-th parameter's state after MIDDLE steps, one of the recorded
"""

import json
import pathlib

import numpy as np
from oracles.torch_optimizers import DROP, RATE, RECORDED, random_start_and_gradients, split

FILE = pathlib.Path(__file__).parents[1] / "data" / "torch_modern.npz"
MIDDLE = 25

# name: (torch's class, its arguments, whether the rate drops on the way)
SETTINGS = {
    "nadam": ("NAdam", {"lr": 0.05}, False),
    "nadam-decay": ("NAdam", {"lr": RATE, "weight_decay": 0.1, "betas": (0.8, 0.99), "eps": 0.01}, True),
    "nadam-decoupled": ("NAdam", {"lr": RATE, "weight_decay": 0.5, "decoupled_weight_decay": True}, True),
    "nadam-keras": ("NAdam", {"lr": 0.05, "momentum_decay": 1.0, "eps": 1e-7}, False),
    "nadam-half": ("NAdam", {"lr": 0.05, "momentum_decay": 0.0}, False),
    "radam": ("RAdam", {"lr": 0.05}, False),
    "radam-decay": ("RAdam", {"lr": RATE, "weight_decay": 0.1, "betas": (0.8, 0.99), "eps": 0.0}, True),
    "radam-decoupled": ("RAdam", {"lr": RATE, "weight_decay": 0.5, "decoupled_weight_decay": True}, True),
    "radam-short-memory": ("RAdam", {"lr": 0.05, "betas": (0.5, 0.7)}, False),
    "radam-epsilon": ("RAdam", {"lr": 0.05, "eps": 0.01}, False),
    "adamax": ("Adamax", {"lr": 0.05}, False),
    "adamax-decay": ("Adamax", {"lr": RATE, "weight_decay": 0.1, "betas": (0.8, 0.9), "eps": 0.01}, True),
    "adadelta": ("Adadelta", {}, False),
    "adadelta-decay": ("Adadelta", {"lr": 4 * RATE, "rho": 0.95, "eps": 0.001, "weight_decay": 0.1}, True),
}
# What these optimizers have beyond the rule: switches of the implementation.
NOT_THE_RULE = {"foreach", "capturable", "differentiable", "maximize"}


def trajectory(start, gradients, kind, arguments, drops, dtype):
    """Torch's parameters at the recorded steps, its state dictionary in the middle, and its settings with the defaults."""
    import torch

    params = [torch.nn.Parameter(torch.tensor(leaf.astype(dtype))) for leaf in split(start)]
    optimizer = getattr(torch.optim, kind)(params, foreach=False, **arguments)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, **DROP) if drops else None
    rows, middle = [], {}
    for step, row in enumerate(gradients, start=1):
        for param, leaf in zip(params, split(row), strict=True):
            param.grad = torch.tensor(leaf.astype(dtype))
        optimizer.step()
        if schedule is not None:
            schedule.step()
        if step in RECORDED:
            rows.append(np.concatenate([param.detach().numpy().ravel() for param in params]))
        if step == MIDDLE:
            entries = optimizer.state_dict()["state"].items()
            middle = {f"{index}/{key}": value.numpy().copy() for index, entry in entries for key, value in entry.items()}
    settings = {name: value for name, value in optimizer.defaults.items() if name not in NOT_THE_RULE}
    return np.stack(rows), middle, settings, optimizer.state_dict()["param_groups"]


def main():
    import torch

    start, gradients = random_start_and_gradients()
    description, rows, states = {"torch": torch.__version__, "settings": {}}, {"float64": [], "float32": []}, {}
    for name, (kind, arguments, drops) in SETTINGS.items():
        for dtype in rows:
            recorded, middle, settings, groups = trajectory(start, gradients, kind, arguments, drops, dtype)
            rows[dtype].append(recorded)
        states |= {f"{name}/{key}": value for key, value in middle.items()}  # the last, in float32
        drop = DROP if drops else None
        description["settings"][name] = {"optimizer": kind, "fields": settings, "drop": drop, "param_groups": groups}
    arrays = {dtype: np.stack(recorded) for dtype, recorded in rows.items()}
    np.savez_compressed(FILE, description=json.dumps(description), **arrays, **states)
    print(f"torch {torch.__version__}: {len(SETTINGS)} settings, {FILE.stat().st_size} bytes in {FILE.name}")


if __name__ == "__main__":
    main()
