"""Records what torch's Adafactor does and keeps, for tests/test_parity_torch_adafactor.py.

Run it in tests/ with torch and NumPy installed: `python -m oracles.torch_adafactor`. The problem is that of torch_states.py. It
writes tests/data/torch_adafactor.npz, the same bytes every time as long as torch's numbers do not change:

    description             JSON: torch's version, and by setting the parameter groups of the state
    SETTING/middle/NAME     the parameters after MIDDLE steps, float32
    SETTING/end/NAME        the parameters after all steps
    SETTING/state/I/KEY     the entries of the I-th parameter's state after MIDDLE steps
"""

import json
import pathlib

import numpy as np
from oracles.torch_states import arrays, run

FILE = pathlib.Path(__file__).parents[1] / "data" / "torch_adafactor.npz"
SETTINGS = {
    "defaults": {},
    "relative": {"lr": 1.0, "weight_decay": 0.1, "beta2_decay": -0.5},
    "rate": {"lr": 0.05, "eps": (1e-10, 2.0), "d": 1.25},
}


def main():
    import torch

    start, gradients = arrays()
    values, groups = {}, {}
    for setting, arguments in SETTINGS.items():
        records, groups[setting] = run("Adafactor", arguments, start, gradients)
        values |= {f"{setting}/{key}": value for key, value in records.items()}
    description = {"torch": torch.__version__, "param_groups": groups}
    np.savez_compressed(FILE, description=json.dumps(description, sort_keys=True), **values)


if __name__ == "__main__":
    main()
