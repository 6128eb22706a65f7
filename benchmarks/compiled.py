"""Steps compiled for devices that are not there, what the compilers count of them, and what they may cost."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks import hlo, layouts, programs, targets
from benchmarks.candidates import Candidate, Work, make_works
from benchmarks.measure import donating_jit
from benchmarks.tables import Row
from benchmarks.workloads import Workload, gpt_shapes

TEMPORARIES = 0.01  # bytes per parameter
# Bytes per parameter that XLA for a TPU brings onto the chip for a branch before it knows whether that runs.
PREFETCHED = {"v5p": 0.4}
SPREAD = Workload("gpt of one layer", gpt_shapes(30_000, 1024, 768, 1))  # what is sharded
Keep = Callable[[str, str], None]  # takes a name and the text of a program


class Case(Protocol):
    """Something to compile for a target.

    Attributes:
        target: the name of the kind of device.
        part: the name of the table that it stands in.
        programs: how many there are.
    """

    target: str
    part: str
    programs: int

    def run(self, begin: Callable[[str], None], keep: Keep) -> tuple[list[Row], list[str]]:
        """Its rows, and in words what costs too much. `begin` is told of each program, `keep` its text."""
        ...


class Bound(NamedTuple):
    """What a step of ours may cost.

    Attributes:
        bytes: through memory, per parameter.
        other: the same on a call that only adds to a mean, if there are such calls.
        launches: on a GPU, as a multiple of the peer's; None for any number.
        counters: launches besides, for scalars that the peer does not keep.
    """

    bytes: float
    other: float | None = None
    launches: float | None = 1.0
    counters: int = 0


class Step(NamedTuple):
    """A kind of training step, and what it may cost."""

    work: Work
    bound: Bound


@functools.cache
def make_steps() -> dict[str, Step]:
    """Every step on one device, by the name that `--work` knows it by."""
    works = make_works()
    floor = lambda name: 1.01 * works[name].floor  # noqa: E731
    bounds = {
        **{name: Bound(floor(name)) for name in ("adamw", "lion")},
        # optax counts no steps here.
        **{name: Bound(floor(name), counters=1) for name in ("sgd", "rmsprop", "adagrad")},
        "clip": Bound(32.1),
        # The peer counts good steps only, and does not say which gradient was bad.
        "full": Bound(32.1, launches=1.03, counters=1),
        "accumulate": Bound(40.1, other=12.1, launches=None),
    }
    return {name: Step(works[name], bound) for name, bound in bounds.items()}


@dataclasses.dataclass(frozen=True)
class StepCase:
    """A step on a workload, ours and the peer's."""

    target: str
    name: str
    workload: Workload
    part = "steps"
    programs = 2

    def __str__(self) -> str:
        return f"{self.target}: {self.name}, {self.workload.name}"

    def run(self, begin: Callable[[str], None], keep: Keep) -> tuple[list[Row], list[str]]:
        """See `Case`."""
        found: list[Row] = []
        for i, candidate in enumerate(make_steps()[self.name].work.candidates[:2]):
            begin(f"{self}: {candidate.name}")
            compiled = compile_for(candidate, self.workload, targets.devices(self.target, 1))
            keep(f"{self.target}-{self.workload.name}-{self.name}-{i}", compiled.as_text())
            found.append(self.counts(compiled))
        own, peer = found
        row = {"work": self.name, "workload": self.workload.name, **own, **{f"peer_{key}": peer[key] for key in peer}}
        return [row], self.missed(own, peer)

    def counts(self, compiled: Any) -> Row:
        """What the compiler says of a program."""
        program, parameters = hlo.read(compiled.as_text()), self.workload.count
        most, least = hlo.count(program), hlo.count(program, hlo.LEAST)
        return {
            "bytes": most["bytes"] / parameters,
            "other": least["bytes"] / parameters if make_steps()[self.name].work.window > 1 else None,
            "temp": temporaries(compiled.memory_analysis(), most["written"]) / parameters,
            "launches": most["launches"] if targets.is_gpu(self.target) else None,
        }

    def missed(self, ours: Row, peer: Row) -> list[str]:
        """What of ours costs too much, in words."""
        bound = make_steps()[self.name].bound
        other = bound.other and bound.other + PREFETCHED.get(self.target, 0)
        limits = {"bytes": bound.bytes, "other": other, "temp": TEMPORARIES}
        if bound.launches is not None and ours["launches"] is not None:
            limits["launches"] = bound.launches * peer["launches"] + bound.counters
        found = [f"{key} {ours[key]:.4g} > {limit:.4g}" for key, limit in limits.items() if limit and ours[key] > limit]
        return [f"{self}: {each}" for each in found]


@dataclasses.dataclass(frozen=True)
class LayoutCase:
    """A layout over several devices: the update of parameters that lie in it, and a whole training step."""

    target: str
    name: str
    devices: int
    part = "layouts"
    programs = 2

    def __str__(self) -> str:
        return f"{self.target}: {self.name}, {self.devices} devices"

    def run(self, begin: Callable[[str], None], keep: Keep) -> tuple[list[Row], list[str]]:
        """See `Case`."""
        layout, devices = layouts.LAYOUTS[self.name], targets.devices(self.target, self.devices)
        begin(f"{self}: update")
        update = layouts.compile_update(layout, SPREAD, devices)
        begin(f"{self}: whole step")
        step = layouts.compile_step(layout, devices)
        row: Row = {"layout": self.name, "devices": self.devices, "elsewhere": layouts.count_elsewhere(update, layout, SPREAD)}
        for column, compiled in {"update_collectives": update, "step_collectives": step}.items():
            keep(f"{self.target}-{self.name}-{self.devices}-{column}", compiled.as_text())
            row[column] = hlo.collectives(compiled)
        return [row], self.missed(row)

    def missed(self, row: Row) -> list[str]:
        """What of the update is wrong, in words: more than one sum over all devices, and anything else, unless slots alone
        are spread; and results that do not lie where they came from."""
        layout, found = layouts.LAYOUTS[self.name], row["update_collectives"]
        most = {"all-reduce": 1}
        if layout.zero:  # XLA for a TPU gathers short vectors by a sum, and sums norms apart that are spread in different ways
            most = {"all-reduce": 4, "all-gather": len(SPREAD.shapes)}
        wrong = [f"{kind} {number} > {most.get(kind, 0)}" for kind, number in found.items() if number > most.get(kind, 0)]
        wrong += [f"{row['elsewhere']} results lie elsewhere"] if row["elsewhere"] else []
        return [f"{self}: {each}" for each in wrong]


@dataclasses.dataclass(frozen=True)
class ProgramCase:
    """The training step of the demo or of a notebook."""

    target: str
    name: str
    part = "programs"
    programs = 1

    def __str__(self) -> str:
        return f"{self.target}: {self.name}"

    def run(self, begin: Callable[[str], None], keep: Keep) -> tuple[list[Row], list[str]]:
        """See `Case`."""
        begin(str(self))
        # The devices first, before anything makes an array: they decide what JAX looks for.
        whole = NamedSharding(Mesh(np.array(targets.devices(self.target, 1)), ("devices",)), PartitionSpec())
        step, arguments = programs.PROGRAMS[self.name]()
        place = lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf), sharding=whole)  # noqa: E731
        compiled = step.lower(*jax.tree.map(place, arguments)).compile()
        keep(f"{self.target}-{self.name}", compiled.as_text())
        launches = hlo.count(hlo.read(compiled.as_text()))["launches"]
        row: Row = {"program": self.name, **hlo.megabytes(compiled)}
        return [row | {"launches": launches if targets.is_gpu(self.target) else None}], []


@dataclasses.dataclass(frozen=True)
class RoundingCase:
    """Parameters and gradients in float16: the verdict must see what is stored, whatever digits the compiler keeps."""

    target: str
    part = "rounding"
    programs = 1
    leaf = jax.ShapeDtypeStruct((512, 384), jnp.float16)

    def __str__(self) -> str:
        return f"{self.target}: float16 parameters"

    def run(self, begin: Callable[[str], None], keep: Keep) -> tuple[list[Row], list[str]]:
        """See `Case`."""
        begin(str(self))
        whole = NamedSharding(Mesh(np.array(targets.devices(self.target, 1)), ("devices",)), PartitionSpec())
        place = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole)  # noqa: E731
        trainer = layouts.TRAINER
        leaf, state = jax.tree.map(place, (self.leaf, jax.eval_shape(trainer.init, self.leaf)))
        text = jax.jit(trainer.update).lower(leaf, leaf, state).compile().as_text()
        keep(f"{self.target}-float16", text)
        found = hlo.operations(text, "reduce-precision", self.leaf.shape)
        row = {"check": str(self), "roundings": found}
        return [row], [] if found >= 2 else [f"{self}: {found} roundings of gradients and new parameters in the verdict, not 2"]


def temporaries(memory: Any, written: int) -> int:
    """No more than the compiler allocates (on a TPU with some kilobytes for every copy that is started before it is needed),
    and no more than is written without being a result."""
    return min(memory.temp_size_in_bytes, max(0, written - memory.output_size_in_bytes))


def compile_for(candidate: Candidate, workload: Workload, devices: list[Any]) -> Any:
    """`candidate` compiled for `devices`, over which arrays are sharded by rows. Where results lie is left to the compiler."""
    mesh = Mesh(np.array(devices), ("rows",))

    def place(leaf: Any) -> jax.ShapeDtypeStruct:
        spec = PartitionSpec("rows") if leaf.ndim else PartitionSpec()
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    params = workload.shape_tree()
    params, state = jax.tree.map(place, (params, jax.eval_shape(candidate.init, params)))
    return donating_jit(candidate.step).lower(params, params, state).compile()
