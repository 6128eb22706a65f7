"""States of every kind as files, in the format of the day, for tests/test_golden_states.py.

Run it from the root of the repository: `PYTHONPATH=.:tests python tests/golden_states.py`. It writes what is not there yet of
tests/data/states/vN/ROW.npz, N the version of the format. A file that is there stays as it is for ever: it is what people have.

    start/..., state/...     parameters and state after MIDDLE updates, as `to_state_dict` names them
    end/...                  the parameters after STEPS updates
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import zoo

import mithril_opt as mo

FOLDER = Path(__file__).parent / "data" / "states"
MIDDLE, STEPS = 4, 7


class Run(NamedTuple):
    """How a row is made and trained: the optimizer or trainer, the dtype of the parameters, and what makes them, and gradients
    like them, from a dtype and a seed."""

    make: Callable[[], Any]
    dtype: Any = jnp.float32
    params: Callable[..., Any] = zoo.make_params


def large(dtype, seed=0):
    """One leaf that is large enough for slots in codes."""
    return {"w": jnp.asarray(np.random.default_rng(seed).normal(size=(64, 64)), dtype)}


def coded():
    """bfloat16 with a remainder beside codes with their scales."""
    return mo.Round(mo.Quantize(mo.Adam(), bits=8))


def trainer():
    """Inside a window, after an overflow and with a schedule that has seen something."""
    return mo.MixedPrecisionTrainer(None, mo.Accumulate(mo.AdamW(learning_rate=zoo.PLATEAU), every=3), growth_interval=2)


def everything():
    """What is stored in other ways: parameters of 16 bits, points in 32."""
    return mo.EMA(mo.Accumulate(zoo.groups(mo.ScheduleFreeSGD(), mo.Adam(amsgrad=True)), every=2), decay=0.5, debias=True)


RUNS = {name: Run(row.make) for name, row in zoo.OPTIMIZERS.items()}
RUNS |= {"trainer": Run(trainer), "bfloat16": Run(everything, jnp.bfloat16), "complex": Run(mo.AdamW, jnp.complex64)}
RUNS |= {name: Run(zoo.OPTIMIZERS[name].make, jnp.bfloat16) for name in ("round-0", "round-16", "round-quantize")}
RUNS |= {"coded": Run(coded, jnp.bfloat16, large)}


def step(run, optimizer, params, state, number):
    """One update; the second of a trainer overflows, and its schedules see a metric."""
    grads = run.params(run.dtype, seed=number)
    if not isinstance(optimizer, mo.MixedPrecisionTrainer):
        return optimizer.update(params, grads, state)
    grads = jax.tree.map(lambda grad: grad * jnp.where(number == 2, jnp.inf, state.loss_scale.scale), grads)
    params, state, _ = optimizer.update(params, grads, state)
    return params, optimizer.observe(state, jnp.float32(number))


def train(run, optimizer, params, state, numbers):
    """Parameters and state after the updates with these `numbers`."""
    for number in numbers:
        params, state = step(run, optimizer, params, state, number)
    return params, state


def arrays(run):
    """What is in the file of `run`."""
    optimizer, params = run.make(), run.params(run.dtype)
    params, state = train(run, optimizer, params, optimizer.init(params), range(1, MIDDLE + 1))
    end, _ = train(run, optimizer, params, state, range(MIDDLE + 1, STEPS + 1))
    trees = mo.to_state_dict({"start": params, "state": state})
    return {**trees, **{f"end/{name}": leaf for name, leaf in mo.to_state_dict(end).items() if "format_" not in name}}


def main():
    version = int(mo.to_state_dict({})["format_version"])
    folder = FOLDER / f"v{version}"
    folder.mkdir(parents=True, exist_ok=True)
    for name, run in RUNS.items():
        if not (folder / f"{name}.npz").exists():
            np.savez_compressed(folder / f"{name}.npz", **jax.device_get(arrays(run)))


if __name__ == "__main__":
    main()
