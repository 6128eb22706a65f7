"""Records what torch's optimizers keep in the middle of a run, for tests/test_interop_torch.py.

Run it with torch and NumPy installed, from anywhere: `python tests/oracles/torch_states.py`. It writes
tests/data/torch_states.npz, the same bytes every time as long as torch's numbers do not change:

    description            JSON: torch's version, the settings, and by setting the parameter groups of the state
    start/NAME             the parameters before the first step
    gradients/NAME         [step, ...], float32; the gradients do not depend on the parameters
    SETTING/middle/NAME    the parameters after MIDDLE steps
    SETTING/end/NAME       the parameters after all steps
    SETTING/state/I/KEY    the entries of the I-th parameter's state after MIDDLE steps
"""

import json
import pathlib

import numpy as np

FILE = pathlib.Path(__file__).parents[1] / "data" / "torch_states.npz"
# The order in which torch's optimizer gets them: a linear layer's (out, in), and a convolution's (out, in, height, width).
SHAPES = {"linear.weight": (3, 4), "linear.bias": (3,), "conv.weight": (2, 3, 1, 2)}
STEPS = 12
MIDDLE = 5
SETTINGS = {
    "sgd": ("SGD", {"lr": 0.1}),
    "momentum": ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.5}),
    "adam": ("Adam", {"lr": 0.1}),
    "adamw": ("AdamW", {"lr": 0.1, "weight_decay": 0.1, "amsgrad": True}),
    "rmsprop": ("RMSprop", {"lr": 0.01, "alpha": 0.9, "momentum": 0.9, "centered": True}),
    "adagrad": ("Adagrad", {"lr": 0.1, "eps": 1e-8}),
    "radam": ("RAdam", {"lr": 0.1}),
}


def arrays():
    """Start and gradients of every parameter, float32."""
    generator = np.random.default_rng(0)
    start = {name: generator.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
    gradients = {name: generator.normal(size=(STEPS, *shape)).astype(np.float32) for name, shape in SHAPES.items()}
    return start, gradients


def run(name, arguments, start, gradients):
    """Parameters and state of torch's optimizer `name` in the middle, and its parameters at the end."""
    import torch

    params = [torch.nn.Parameter(torch.tensor(value)) for value in start.values()]
    optimizer = getattr(torch.optim, name)(params, **arguments)
    records = {}
    for step in range(STEPS):
        for param, rows in zip(params, gradients.values(), strict=True):
            param.grad = torch.tensor(rows[step])
        optimizer.step()
        if step + 1 in (MIDDLE, STEPS):
            where = "middle" if step + 1 == MIDDLE else "end"
            records.update({f"{where}/{n}": p.detach().numpy().copy() for n, p in zip(SHAPES, params, strict=True)})
        if step + 1 == MIDDLE:
            state = optimizer.state_dict()
            for index, entry in state["state"].items():
                records.update({f"state/{index}/{key}": v.numpy().copy() for key, v in entry.items()})
            groups = state["param_groups"]
    return records, groups


def main():
    import torch

    start, gradients = arrays()
    values = {f"start/{name}": value for name, value in start.items()}
    values |= {f"gradients/{name}": value for name, value in gradients.items()}
    groups = {}
    for setting, (name, arguments) in SETTINGS.items():
        records, groups[setting] = run(name, arguments, start, gradients)
        values |= {f"{setting}/{key}": value for key, value in records.items()}
    description = {"torch": torch.__version__, "settings": SETTINGS, "param_groups": groups}
    np.savez_compressed(FILE, description=json.dumps(description, sort_keys=True), **values)


if __name__ == "__main__":
    main()
