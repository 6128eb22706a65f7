"""Records what torch's optimizers do, for tests/test_parity_torch.py.

Run it with torch and NumPy installed, from anywhere: `python tests/oracles/torch_optimizers.py`. It writes
tests/data/torch_optimizers.npz, the same bytes every time as long as torch's numbers do not change:

    description        JSON: torch's version, leaf shapes, the recorded steps, the settings with torch's defaults filled in
    start              the parameters before the first step, all leaves in one row, float32
    gradients          [step, element], float32; the gradients do not depend on the parameters
    float32, float64   [setting, recorded step, element]: torch's parameters
"""

import json
import math
import pathlib

import numpy as np

FILE = pathlib.Path(__file__).parents[1] / "data" / "torch_optimizers.npz"
SHAPES = {"matrix": (4, 3), "vector": (5,), "scalar": (), "cube": (2, 2, 3)}
STEPS = 60
RECORDED = (1, 2, 3, 10, 25, 31, 60)
# A schedule is float32: its rates must be exact there, or a float64 trajectory would part at 1e-8.
DROP = {"step_size": 30, "gamma": 0.125}
RATE = 0.0625

# name: (torch's class, its arguments, whether the rate drops on the way)
SETTINGS = {
    "sgd": ("SGD", {"lr": 0.1}, False),
    "sgd-decay": ("SGD", {"lr": 0.1, "weight_decay": 0.05}, False),
    "sgd-momentum": ("SGD", {"lr": 0.02, "momentum": 0.9}, False),
    "sgd-momentum-decay": ("SGD", {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.05}, False),
    "sgd-nesterov": ("SGD", {"lr": 0.02, "momentum": 0.9, "nesterov": True}, False),
    "sgd-nesterov-decay": ("SGD", {"lr": 0.02, "momentum": 0.7, "nesterov": True, "weight_decay": 0.05}, False),
    "sgd-dampening": ("SGD", {"lr": 0.05, "momentum": 0.9, "dampening": 0.5}, False),
    "sgd-dampening-decay": ("SGD", {"lr": 0.05, "momentum": 0.8, "dampening": 0.3, "weight_decay": 0.05}, False),
    "sgd-drop": ("SGD", {"lr": RATE, "weight_decay": 0.05}, True),
    "sgd-momentum-drop": ("SGD", {"lr": RATE, "momentum": 0.9}, True),
    "sgd-nesterov-drop": ("SGD", {"lr": RATE, "momentum": 0.9, "nesterov": True, "weight_decay": 0.05}, True),
    "adam": ("Adam", {"lr": 0.05}, False),
    "adam-decay": ("Adam", {"lr": 0.05, "weight_decay": 0.1}, False),
    "adam-amsgrad": ("Adam", {"lr": 0.05, "amsgrad": True}, False),
    "adam-amsgrad-decay": ("Adam", {"lr": 0.05, "amsgrad": True, "weight_decay": 0.1}, False),
    "adam-amsgrad-short-memory": ("Adam", {"lr": 0.05, "amsgrad": True, "betas": (0.5, 0.9), "eps": 0.1}, False),
    "adam-large-epsilon": ("Adam", {"lr": 0.05, "eps": 0.1}, False),
    "adam-short-memory": ("Adam", {"lr": 0.05, "betas": (0.5, 0.9)}, False),
    "adam-no-memory": ("Adam", {"lr": 0.05, "betas": (0.0, 0.0), "eps": 0.1}, False),
    "adam-long-memory": ("Adam", {"lr": 0.05, "betas": (0.95, 0.9999)}, False),
    "adam-drop": ("Adam", {"lr": RATE, "weight_decay": 0.1}, True),
    "adamw": ("AdamW", {"lr": 0.05}, False),
    "adamw-decay": ("AdamW", {"lr": 0.05, "weight_decay": 0.1}, False),
    "adamw-amsgrad": ("AdamW", {"lr": 0.05, "weight_decay": 0.1, "amsgrad": True}, False),
    "adamw-large-epsilon": ("AdamW", {"lr": 0.05, "weight_decay": 0.1, "eps": 0.1, "betas": (0.5, 0.9)}, False),
    "adamw-no-decay": ("AdamW", {"lr": 0.05, "weight_decay": 0.0}, False),
    "adamw-drop": ("AdamW", {"lr": RATE, "weight_decay": 0.5}, True),
    "rmsprop": ("RMSprop", {"lr": 0.02, "alpha": 0.9}, False),
    "rmsprop-slow": ("RMSprop", {"lr": 0.02}, False),
    "rmsprop-large-epsilon": ("RMSprop", {"lr": 0.02, "eps": 0.1}, False),
    "rmsprop-centered": ("RMSprop", {"lr": 0.01, "alpha": 0.9, "centered": True}, False),
    "rmsprop-centered-slow": ("RMSprop", {"lr": 0.01, "centered": True, "eps": 0.1}, False),
    "rmsprop-momentum": ("RMSprop", {"lr": 0.005, "momentum": 0.9}, False),
    "rmsprop-decay": ("RMSprop", {"lr": 0.02, "alpha": 0.9, "weight_decay": 0.1}, False),
    "rmsprop-all": ("RMSprop", {"lr": 0.005, "alpha": 0.9, "centered": True, "momentum": 0.8, "weight_decay": 0.1}, False),
    "rmsprop-momentum-drop": ("RMSprop", {"lr": RATE / 8, "momentum": 0.9}, True),
    "adagrad": ("Adagrad", {"lr": 0.2}, False),
    "adagrad-decay": ("Adagrad", {"lr": 0.2, "weight_decay": 0.1}, False),
    "adagrad-initial": ("Adagrad", {"lr": 0.2, "initial_accumulator_value": 0.5}, False),
    "adagrad-large-epsilon": ("Adagrad", {"lr": 0.2, "eps": 0.1}, False),
    "adagrad-all": ("Adagrad", {"lr": 0.2, "eps": 0.01, "initial_accumulator_value": 0.1, "weight_decay": 0.1}, False),
    "adagrad-drop": ("Adagrad", {"lr": RATE * 4}, True),
}
# What these torch optimizers have beyond the rule: switches of the implementation, and features that are off here.
NOT_THE_RULE = {"foreach", "fused", "capturable", "differentiable", "maximize", "decoupled_weight_decay", "lr_decay"}


def random_start_and_gradients():
    """Parameters near 1, gradients over three decades, a tenth of them exactly zero, so that epsilon and decay both matter."""
    rng = np.random.default_rng(20240229)
    size = sum(math.prod(shape) for shape in SHAPES.values())
    gradients = rng.normal(size=(STEPS, size)) * 10 ** rng.uniform(-2.5, 0.5, size)
    gradients[rng.uniform(size=gradients.shape) < 0.1] = 0
    return rng.normal(size=size).astype(np.float32), gradients.astype(np.float32)


def split(row):
    """The leaves in a row of all elements."""
    ends = np.cumsum([math.prod(shape) for shape in SHAPES.values()])
    return [leaf.reshape(shape) for leaf, shape in zip(np.split(row, ends[:-1]), SHAPES.values(), strict=True)]


def trajectory(start, gradients, kind, arguments, drops, dtype):
    """Torch's parameters at the recorded steps, and its hyperparameters with the defaults filled in."""
    # Imported here because pytest imports this module when it looks for doctests, and the tests run without torch.
    import torch

    params = [torch.nn.Parameter(torch.tensor(leaf.astype(dtype))) for leaf in split(start)]
    optimizer = getattr(torch.optim, kind)(params, foreach=False, **arguments)  # and so not fused either
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, **DROP) if drops else None
    rows = []
    for row in gradients:
        for param, leaf in zip(params, split(row), strict=True):
            param.grad = torch.tensor(leaf.astype(dtype))
        optimizer.step()
        if schedule is not None:
            schedule.step()
        rows.append(np.concatenate([param.detach().numpy().ravel() for param in params]))
    hyperparameters = {name: value for name, value in optimizer.defaults.items() if name not in NOT_THE_RULE}
    return np.stack([rows[step - 1] for step in RECORDED]), hyperparameters


def main():
    import torch

    start, gradients = random_start_and_gradients()
    settings, recorded = {}, {"float32": [], "float64": []}
    for name, (kind, arguments, drops) in SETTINGS.items():
        for dtype, rows in recorded.items():
            params, hyperparameters = trajectory(start, gradients, kind, arguments, drops, dtype)
            rows.append(params)
        settings[name] = {"optimizer": kind, "hyperparameters": hyperparameters, "drop": DROP if drops else None}
    description = {"torch": torch.__version__, "shapes": SHAPES, "recorded": RECORDED, "settings": settings}
    arrays = {dtype: np.stack(rows) for dtype, rows in recorded.items()}
    FILE.parent.mkdir(exist_ok=True)
    np.savez_compressed(FILE, description=json.dumps(description), start=start, gradients=gradients, **arrays)
    print(f"torch {torch.__version__}: {len(SETTINGS)} settings, {FILE.stat().st_size} bytes in {FILE.name}")


if __name__ == "__main__":
    main()
