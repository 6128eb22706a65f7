"""Records what Muon of torch, Schedule-Free and Prodigy of their authors do, for tests/test_parity_peers.py.

Run it with torch, schedulefree, prodigyopt and NumPy installed, from anywhere: `python tests/oracles/torch_peers.py`. It writes
tests/data/torch_peers.npz, the same bytes every time as long as their numbers do not change:

    description        JSON: the versions, leaf shapes, the recorded steps, the settings
    start, gradients   the parameters before the first step, and [step, element], float32; all leaves in one row. The gradients
                       do not depend on the parameters
    SETTING/params     [recorded step, element]: the parameters; of Muon in float32, of the others in float64
    SETTING/average    those that Schedule-Free evaluates
    SETTING/d          [recorded step]: the d of Prodigy
"""

import importlib.metadata
import json
import pathlib

import numpy as np

FILE = pathlib.Path(__file__).parents[1] / "data" / "torch_peers.npz"
SHAPES = {"tall": (6, 4), "wide": (3, 5), "vector": (5,)}
MATRICES = ("tall", "wide")
STEPS = 20
RECORDED = (1, 2, 3, 7, 12, 20)

SETTINGS = {
    "muon": ("Muon", {"lr": 0.05}),
    "muon-rms": ("Muon", {"lr": 0.05, "adjust_lr_fn": "match_rms_adamw", "weight_decay": 0.5}),
    "muon-heavy-ball": ("Muon", {"lr": 0.05, "nesterov": False, "momentum": 0.8, "weight_decay": 0.0}),
    "adamw": ("AdamWScheduleFree", {"lr": 0.05}),
    "adamw-warmup": ("AdamWScheduleFree", {"lr": 0.05, "warmup_steps": 8, "weight_decay": 0.1, "betas": (0.95, 0.99)}),
    "adamw-weighted": ("AdamWScheduleFree", {"lr": 0.05, "warmup_steps": 4, "r": 1.0, "weight_lr_power": 1.0, "eps": 0.1}),
    "sgd": ("SGDScheduleFree", {"lr": 0.5}),
    "sgd-warmup": ("SGDScheduleFree", {"lr": 0.5, "warmup_steps": 8, "weight_decay": 0.1, "momentum": 0.8, "r": 0.5}),
    "prodigy": ("Prodigy", {}),
    "prodigy-corrected": ("Prodigy", {"use_bias_correction": True, "weight_decay": 0.1, "d0": 1e-4}),
    "prodigy-guarded": ("Prodigy", {"safeguard_warmup": True, "growth_rate": 1.5, "d_coef": 0.5, "lr": 0.5, "d0": 1e-3}),
    "prodigy-betas": ("Prodigy", {"betas": (0.8, 0.9), "beta3": 0.7, "eps": 0.1, "d0": 1e-2}),
}


def arrays():
    """Start and gradients, float32. The gradients have a direction in common, so that the d of Prodigy grows."""
    generator = np.random.default_rng(0)
    size = sum(int(np.prod(shape)) for shape in SHAPES.values())
    start, mean, noise = generator.normal(size=size), generator.normal(size=size), generator.normal(size=(STEPS, size))
    sizes = np.array([1, 0.05, 3])[np.arange(STEPS) % 3][:, None]
    return start.astype(np.float32), (sizes * (mean + noise)).astype(np.float32)


def split(row):
    ends = np.cumsum([int(np.prod(shape)) for shape in SHAPES.values()])
    return [part.reshape(shape) for part, shape in zip(np.split(row, ends[:-1]), SHAPES.values(), strict=True)]


def optimizer_of(name, params, arguments):
    import prodigyopt
    import schedulefree
    import torch

    for module in (torch.optim, schedulefree, prodigyopt):
        if hasattr(module, name):
            return getattr(module, name)(params, **arguments)
    raise ValueError(name)


def flat(params):
    return np.concatenate([param.detach().numpy().ravel() for param in params])


def run(name, arguments):
    import torch

    start, gradients = arrays()
    dtype = torch.float32 if name == "Muon" else torch.float64
    names = MATRICES if name == "Muon" else tuple(SHAPES)
    chosen = lambda row: [part for part, own in zip(split(row), SHAPES, strict=True) if own in names]  # noqa: E731
    params = [torch.nn.Parameter(torch.tensor(part, dtype=dtype)) for part in chosen(start)]
    optimizer, records = optimizer_of(name, params, arguments), {"params": [], "average": [], "d": []}
    for row in gradients:
        for param, part in zip(params, chosen(row), strict=True):
            param.grad = torch.tensor(part, dtype=dtype)
        if name.endswith("ScheduleFree"):
            optimizer.train()
        optimizer.step()
        records["params"].append(flat(params))
        if name.endswith("ScheduleFree"):
            optimizer.eval()
            records["average"].append(flat(params))
            optimizer.train()
        if name == "Prodigy":
            records["d"].append(optimizer.param_groups[0]["d"])
    return {key: np.asarray(rows)[np.array(RECORDED) - 1] for key, rows in records.items() if rows}


def main():
    versions = {name: importlib.metadata.version(name) for name in ("torch", "schedulefree", "prodigyopt")}
    description = {"versions": versions, "shapes": SHAPES, "matrices": MATRICES, "recorded": RECORDED, "settings": SETTINGS}
    start, gradients = arrays()
    data = {"description": json.dumps(description), "start": start, "gradients": gradients}
    for setting, (name, arguments) in SETTINGS.items():
        data.update({f"{setting}/{key}": rows for key, rows in run(name, arguments).items()})
    np.savez_compressed(FILE, **data)


if __name__ == "__main__":
    main()
