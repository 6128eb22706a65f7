"""Whole training steps: time, bytes, temporaries, and the share of the copy bandwidth that they use."""

from collections.abc import Callable

from benchmarks import pytorch
from benchmarks.candidates import Work
from benchmarks.measure import COPY_BYTES, Runner, compile_step, copy_runner, race
from benchmarks.tables import Row, Table
from benchmarks.workloads import Workload


def measure(name: str, work: Work, workload: Workload, samples: int, copied: int, tick: Callable[[], None]) -> Table:
    """One table: all candidates for `work` on `workload`, racing each other and a copy of `copied` elements."""
    grads = workload.tree(seed=1)
    runners = [compile_step(candidate, workload, grads) for candidate in work.candidates]
    if work.pytorch and pytorch.available():
        runners.append(Runner(*pytorch.runner(work.pytorch, workload)))
    copy = copy_runner(copied)
    race([*runners, copy], samples, work.window, tick)
    bandwidth = COPY_BYTES * copied / copy.seconds
    title = f"{work.title}, {workload}; floor {work.floor:g} B/param; a copy moves {bandwidth / 1e9:.3g} GB/s"
    return Table(name, workload.name, title, [row(runner, runners[1], work, workload, bandwidth) for runner in runners])


def row(runner: Runner, peer: Runner, work: Work, workload: Workload, bandwidth: float) -> Row:
    """What is known about one candidate."""
    return {
        "candidate": runner.name,
        "ms": 1e3 * runner.seconds,
        "ratio": runner.seconds / peer.seconds,
        **runner.counts,
        "bandwidth": work.floor * workload.count / runner.seconds / bandwidth,
        "samples_s": runner.samples,
    }
