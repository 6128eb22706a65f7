"""An AdamW whose slots are kept in 16 or 8 bits, and bfloat16 parameters with bfloat16 gradients: what a step moves."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks import hlo, targets
from benchmarks.compiled import Keep, temporaries
from benchmarks.measure import donating_jit
from benchmarks.tables import Row
from benchmarks.workloads import WORKLOADS, Workload
from mithril_opt import AdamW, Optimizer, Quantize, Round


class Stored(NamedTuple):
    """How parameters and slots are kept, and what a step may move through the memory of each target, in bytes per parameter."""

    optimizer: Optimizer
    dtype: Any
    h100: float
    v5e: float
    v5p: float


TEMPORARIES = 0.1  # on a GPU; those of a TPU are in the bytes
# XLA for a TPU stores some new parameters once in float32, before they are taken apart: 8 bytes.
RULES = {
    "slots in 16 bits": Stored(Quantize(AdamW()), jnp.float32, 20.1, 20.1, 20.1),
    "slots in 8 bits": Stored(Quantize(AdamW(), bits=8), jnp.float32, 22.3, 24.7, 27.3),
    "bfloat16": Stored(Round(AdamW(), remainder=0), jnp.bfloat16, 22.1, 22.1, 22.1),
    "bfloat16 and 8 bits": Stored(Round(AdamW()), jnp.bfloat16, 24.1, 24.1, 32.1),
    "bfloat16 and 16 bits": Stored(Round(AdamW(), remainder=16), jnp.bfloat16, 26.1, 34.1, 34.1),
    "bfloat16, slots in 16 bits": Stored(Round(Quantize(AdamW()), remainder=0), jnp.bfloat16, 14.1, 14.1, 14.1),
    "bfloat16 and 8 bits, slots in 16 bits": Stored(Round(Quantize(AdamW())), jnp.bfloat16, 16.3, 22.1, 22.1),
    "bfloat16 and 8 bits, slots in 8 bits": Stored(Round(Quantize(AdamW(), bits=8)), jnp.bfloat16, 16.3, 15.3, 21.4),
}


@dataclasses.dataclass(frozen=True)
class StoredCase:
    """One way of storing, on one large leaf."""

    target: str
    name: str
    workload: Workload = WORKLOADS["one"]
    part = "storage"
    programs = 1

    def __str__(self) -> str:
        return f"{self.target}: {self.name}"

    def run(self, begin: Callable[[str], None], keep: Keep) -> tuple[list[Row], list[str]]:
        """See `Case`."""
        begin(str(self))
        stored, devices = RULES[self.name], targets.devices(self.target, 1)
        whole = NamedSharding(Mesh(np.array(devices), ("x",)), PartitionSpec())
        params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, stored.dtype), self.workload.shape_tree())
        trees = params, jax.eval_shape(stored.optimizer.init, params)
        params, state = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole), trees)
        compiled = donating_jit(stored.optimizer.update).lower(params, params, state).compile()
        keep(f"{self.target}-{self.name}", compiled.as_text())
        counted = hlo.count(hlo.read(compiled.as_text()))
        found = {"bytes": counted["bytes"], "temp": temporaries(compiled.memory_analysis(), counted["written"])}
        row: Row = {"stored_as": self.name, **{key: count / self.workload.count for key, count in found.items()}}
        return [row], self.missed(row)

    def missed(self, row: Row) -> list[str]:
        """What costs too much, in words."""
        limits = {"bytes": getattr(RULES[self.name], self.target)}
        limits |= {"temp": TEMPORARIES} if targets.is_gpu(self.target) else {}
        return [f"{self}: {key} {row[key]:.4g} > {limit:.4g}" for key, limit in limits.items() if row[key] > limit]
