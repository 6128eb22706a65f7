"""The demo's training step on many devices, of one process or of several; `test_two_processes.py` runs this in each of two.

python tests/two_processes.py ADDRESS PROCESSES RANK FILE
"""

import sys

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mithril_opt import state_shardings
from mithril_opt.demo import model, train

STEPS = 4


def run(devices):
    """The losses of some steps, and the parameters after them. The batch is spread over `devices`, the slots too (ZeRO-1)."""
    mesh = jax.sharding.Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))
    replicated, rows = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
    generator = np.random.default_rng(0)
    tokens = generator.integers(model.VOCABULARY, size=2000, dtype=np.int32)
    trainer = train.make_trainer(STEPS * 10, "float32")
    params = jax.tree.map(lambda leaf: place(leaf, replicated), jax.device_get(model.init(generator)))
    shardings = state_shardings(trainer, params, replicated, zero_axis="data")
    state = jax.jit(trainer.init, out_shardings=shardings)(params)
    step = jax.jit(train.make_step(trainer), donate_argnums=(0, 1), out_shardings=(replicated, shardings, replicated))
    tokens, losses = place(tokens, replicated), []
    for _ in range(STEPS):
        starts = generator.integers(2000 - model.CONTEXT, size=train.BATCH, dtype=np.int32)
        params, state, metrics = step(params, state, tokens, place(starts, rows))
        losses.append(float(metrics["loss"]))
    assert int(trainer.metrics(state)["skipped"]) == 0
    return np.array(losses), [np.asarray(leaf) for leaf in jax.tree.leaves(params)]


def place(array, sharding):
    """`array`, which every process holds whole, as one array over all processes; each keeps what its devices need."""
    return jax.make_array_from_callback(array.shape, sharding, array.__getitem__)


def main(address, processes, rank, file):
    jax.distributed.initialize(address, int(processes), int(rank))
    assert len(jax.devices()) == int(processes) * len(jax.local_devices())
    losses, params = run(jax.devices())
    np.savez(file, losses, *params)
    jax.distributed.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
