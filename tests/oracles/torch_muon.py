"""Records what torch's Muon keeps in the middle of the runs of torch_peers.py, for tests/test_interop_muon.py.

Run it in tests/ with torch and NumPy installed: `python -m oracles.torch_muon`. It writes tests/data/torch_muon.npz, the same
bytes every time as long as torch's numbers do not change:

    description            JSON: torch's version, and by setting the parameter groups of the state
    SETTING/state/I/KEY    the entries of the I-th parameter's state after MIDDLE steps
"""

import json
import pathlib

import numpy as np
from oracles.torch_peers import MATRICES, SETTINGS, SHAPES, arrays, split

FILE = pathlib.Path(__file__).parents[1] / "data" / "torch_muon.npz"
MIDDLE = 7


def matrices(row):
    return [part for name, part in zip(SHAPES, split(row), strict=True) if name in MATRICES]


def main():
    import torch

    start, gradients = arrays()
    values, groups = {}, {}
    for setting, (name, arguments) in SETTINGS.items():
        if name == "Muon":
            params = [torch.nn.Parameter(torch.tensor(value)) for value in matrices(start)]
            optimizer = torch.optim.Muon(params, **arguments)
            for row in gradients[:MIDDLE]:
                for param, gradient in zip(params, matrices(row), strict=True):
                    param.grad = torch.tensor(gradient)
                optimizer.step()
            state = optimizer.state_dict()
            groups[setting] = state["param_groups"]
            for index, entry in state["state"].items():
                values |= {f"{setting}/state/{index}/{key}": value.numpy().copy() for key, value in entry.items()}
    description = {"torch": torch.__version__, "param_groups": groups}
    np.savez_compressed(FILE, description=json.dumps(description, sort_keys=True), **values)


if __name__ == "__main__":
    main()
