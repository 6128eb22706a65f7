"""Rules that look at more than one element on a stack of matrices, over several devices, and what they need on one."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import mithril_opt
from benchmarks import hlo, targets
from benchmarks.compiled import Keep
from benchmarks.measure import donating_jit
from benchmarks.tables import Row

STACK = jax.ShapeDtypeStruct((8, 512, 2048), jnp.float32)
RULES: dict[str, mithril_opt.Optimizer] = {
    "Muon": mithril_opt.Muon(matrix_axes="stacked"),
    "Muon, bfloat16": mithril_opt.Muon(matrix_axes="stacked", ns_dtype=jnp.bfloat16),
    "SOAP": mithril_opt.SOAP(unit_axes=0),
    "Schedule-Free": mithril_opt.ScheduleFreeAdamW(),
    "Prodigy": mithril_opt.Prodigy(),
}
# Compilers for TPUs take minutes for a QR.
ON_GPUS = {"SOAP"}
# What devices must tell each other: Prodigy sums over all parameters.
COLLECTIVES = {"Prodigy": {"all-reduce": 1}}
DEVICES = (1, 4)


@dataclasses.dataclass(frozen=True)
class StackCase:
    """A rule on a stack of matrices that is spread over the devices by its first axis."""

    target: str
    name: str
    devices: int
    part = "stacks"
    programs = 1

    def __str__(self) -> str:
        return f"{self.target}: {self.name} on a stack, {self.devices} devices"

    def run(self, begin: Callable[[str], None], keep: Keep) -> tuple[list[Row], list[str]]:
        """See `Case`."""
        begin(str(self))
        optimizer, devices = RULES[self.name], targets.devices(self.target, self.devices)
        mesh = Mesh(np.array(devices), ("layers",))

        def place(leaf: Any) -> jax.ShapeDtypeStruct:
            spec = PartitionSpec("layers") if leaf.ndim == len(STACK.shape) else PartitionSpec()
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

        params, state = jax.tree.map(place, (STACK, jax.eval_shape(optimizer.init, STACK)))
        compiled = donating_jit(optimizer.update).lower(params, params, state).compile()
        keep(f"{self.target}-{self.name}-{self.devices}", compiled.as_text())
        found = hlo.collectives(compiled)
        row: Row = {"rule": self.name, "devices": self.devices, "update_collectives": found, **hlo.megabytes(compiled)}
        due = COLLECTIVES.get(self.name, {}) if self.devices > 1 else {}
        counts = {kind: (found.get(kind, 0), due.get(kind, 0)) for kind in found | due}
        return [row], [f"{self}: {kind} {has} is not {needs}" for kind, (has, needs) in counts.items() if has != needs]
