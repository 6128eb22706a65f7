"""The schedules against torch's own values, which tests/oracles/torch_schedules.py recorded."""

import json
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

import mithril_opt

with np.load(pathlib.Path(__file__).parent / "data" / "torch_schedules.npz") as file:
    RECORD = dict(file)
DESCRIPTION = json.loads(str(RECORD["description"]))
SETTINGS = DESCRIPTION["settings"]
ROWS = [(kind, arguments) for kind, settings in SETTINGS.items() for arguments in settings]
STEPS = np.arange(RECORD["rates"].shape[1])


def make(kind, arguments, base=DESCRIPTION["base"]):
    """Our schedule with the arguments of torch's."""
    arguments = {name: value for name, value in arguments.items() if "momentum" not in name}
    if "lr_lambda" in arguments:
        names = {"cos": jnp.cos, "where": jnp.where}
        arguments["lr_lambda"] = eval(f"lambda k: {arguments['lr_lambda']}", names)
    if "schedulers" in arguments:
        chained = kind == "ChainedScheduler"
        bases = [base if i == 0 or not chained else 1.0 for i in range(len(arguments["schedulers"]))]
        arguments["schedulers"] = [make(*piece, base) for piece, base in zip(arguments["schedulers"], bases, strict=True)]
    elif kind not in ("CyclicLR", "OneCycleLR"):
        arguments["base_lr"] = base
    return getattr(mithril_opt, kind)(**arguments)


def assert_exact(schedule, expected):
    """Relative error ≤ 1e-6; where torch stops, the last value for ever."""
    ends = np.isnan(expected)
    values = np.asarray(schedule(STEPS))
    np.testing.assert_allclose(values[~ends], expected[~ends], rtol=1e-6, atol=1e-15)
    np.testing.assert_array_equal(values[ends], values[~ends][-1])


@pytest.mark.parametrize("kind", SETTINGS)
def test_torchs_values(kind):
    assert len(SETTINGS[kind]) >= 8
    for (row_kind, arguments), expected in zip(ROWS, RECORD["rates"], strict=True):
        if row_kind == kind:
            assert_exact(make(kind, arguments), expected)


def test_torchs_momentum_cycles():
    tested = 0
    for (kind, arguments), expected in zip(ROWS, RECORD["momenta"], strict=True):
        momenta = {name: value for name, value in arguments.items() if "momentum" in name}
        if kind in ("CyclicLR", "OneCycleLR"):
            assert_exact(make(kind, arguments).momentum_schedule(**momenta), expected)
            tested += 1
    assert tested >= 16
