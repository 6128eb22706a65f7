"""The command line: `python -m benchmarks --help`."""

import argparse
import contextlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks import aot, growth, host, machine, measure, pictures, race, schedules, steps, storage, tables
from benchmarks.candidates import Work, make_works
from benchmarks.progress import Progress
from benchmarks.tables import Table
from benchmarks.workloads import QUICK, WORKLOADS, Workload

HOST = ("compile", "eager", "schedules")
COMMANDS = {"aot": aot.main, "race": race.main, "storage": storage.main}
SAMPLES, QUICK_SAMPLES = 15, 3
COPIED, QUICK_COPIED = 2**26, 2**22  # elements of the buffer whose copying is timed
ROUNDS, QUICK_ROUNDS = 3, 1  # of compilation
EAGER_ROWS = 64
Job = tuple[str, Callable[[Progress], list[Table]]]


def make_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure mithril_opt beside its peers, the candidates taking turns in one process.",
        epilog="More: aot --help (what compilers for GPUs and TPUs count), race --help (rules beside each other on a problem), "
        "storage --help (what fewer bits cost).",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("what", nargs="?", choices=("tables", "growth"), default="tables", help="what to measure")
    parser.add_argument("--work", nargs="+", choices=(*make_works(), *HOST), metavar="WORK", help="only these; %(choices)s")
    parser.add_argument("--workload", nargs="+", choices=WORKLOADS, metavar="NAME", help="only these; %(choices)s")
    parser.add_argument("--samples", type=int, default=SAMPLES, metavar="N", help="samples of each time; their median counts")
    parser.add_argument("--quick", action="store_true", help="small workloads and few samples, to see that it works")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"), metavar="DIR", help="folder for the results")
    return parser


def step_job(name: str, work: Work, workload: Workload, samples: int, copied: int) -> Job:
    """A table of step times."""
    workload = workload.thin(work.most_leaves)
    return f"{workload.name}: {name}", lambda bar: [steps.measure(name, work, workload, samples, copied, bar.tick)]


def make_jobs(options: argparse.Namespace) -> list[Job]:
    """What there is to do, in order."""
    workloads = [(QUICK if options.quick else WORKLOADS)[name] for name in options.workload or WORKLOADS]
    works, chosen = make_works(), options.work or (*make_works(), *HOST)
    samples, rounds, copied = (
        (QUICK_SAMPLES, QUICK_ROUNDS, QUICK_COPIED) if options.quick else (options.samples, ROUNDS, COPIED)
    )
    jobs = [step_job(name, works[name], w, samples, copied) for w in workloads for name in works if name in chosen]
    if "compile" in chosen:
        jobs += [compile_job(works["adamw"], workload, rounds) for workload in workloads]
    if "eager" in chosen:
        jobs += [eager_job(works["adamw"], w.cut(EAGER_ROWS), samples) for w in workloads if w.name == "gpt"]
    if "schedules" in chosen:
        jobs.append(("schedules", lambda bar: schedules.measure(samples, bar.tick)))
    return jobs


def compile_job(work: Work, workload: Workload, rounds: int) -> Job:
    """A table of compilation times."""
    return f"{workload.name}: compile", lambda bar: [host.measure_compilation(work, workload, rounds, bar.tick)]


def eager_job(work: Work, workload: Workload, samples: int) -> Job:
    """A table of steps outside jit."""
    return f"{workload.name}: eager", lambda bar: [host.measure_eager(work, workload, samples, bar.tick)]


def run_tables(options: argparse.Namespace) -> list[Path]:
    """Measure the tables and write them; the files."""
    facts, jobs, found = machine.describe(), make_jobs(options), []
    copied, samples = (QUICK_COPIED, QUICK_SAMPLES) if options.quick else (COPIED, options.samples)
    facts["copy bandwidth"] = f"{measure.copy_bandwidth(copied, samples) / 1e9:.3g} GB/s"
    with Progress(len(jobs)) as bar, contextlib.suppress(KeyboardInterrupt):  # what is measured by then is written
        for name, job in jobs:
            bar.begin(name)
            found += job(bar)
            bar.end()
    facts["load after"] = machine.load()
    files = tables.write(options.out, "benchmarks", facts, found)
    picture = options.out / "benchmarks.png"
    print(tables.to_markdown(facts, found), flush=True)
    return [*files, *([picture] if pictures.bars(found, facts["device"], picture) else [])]


def run_growth(options: argparse.Namespace) -> list[Path]:
    """Measure growth, write and draw it; the files."""
    facts = machine.describe()
    sizes = growth.QUICK_SIZES if options.quick else growth.SIZES
    with Progress(2 * sum(map(len, sizes.values()))) as bar:
        sweeps = growth.measure(sizes, QUICK_SAMPLES if options.quick else options.samples, bar.begin)
    facts["load after"] = machine.load()
    powers = growth.exponents(sweeps)
    found = [Table("growth", what, f"Growth with the number of {what}", rows) for what, rows in sweeps.items()]
    files = tables.write(options.out, "growth", facts, found)
    pictures.growth(sweeps, powers, options.out / "growth.png")
    for (what, quantity, candidate), power in powers.items():
        print(f"{candidate}: {quantity} ∝ n^{power:.2f}, n = {what}")
    return [*files, options.out / "growth.png"]


def main(arguments: list[str] | None = None) -> int:
    """Read the command line and measure; the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] and arguments[0] in COMMANDS:
        return COMMANDS[arguments[0]](arguments[1:])
    parser = make_parser()
    options = parser.parse_args(arguments)
    if missing := [name for name in ("matplotlib", "optax", "tqdm") if importlib.util.find_spec(name) is None]:
        parser.error(f"{' and '.join(missing)} not found; run: pip install {' '.join(missing)}")
    files = (run_growth if options.what == "growth" else run_tables)(options)
    print(f"written: {', '.join(map(str, files))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
