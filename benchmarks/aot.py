"""What compilers for GPUs and TPUs say a training step costs there, without a GPU or a TPU: `python -m benchmarks aot --help`.

These are counts, not times: bytes through memory, bytes of temporaries, launches, collectives. Nothing runs.
"""

import argparse
from pathlib import Path

from benchmarks import compiled, stacks, stored, tables, targets
from benchmarks.compiled import Case, LayoutCase, ProgramCase, RoundingCase, StepCase
from benchmarks.layouts import LAYOUTS
from benchmarks.programs import PROGRAMS
from benchmarks.progress import Progress
from benchmarks.stacks import StackCase
from benchmarks.stored import StoredCase
from benchmarks.tables import Row, Table
from benchmarks.workloads import WORKLOADS

WHAT = "counts that the compiler reports of programs that never ran, not times"
NAMES = ("one", "gpt")  # of the workloads
PARTS = {
    "steps": "training steps on one device",
    "storage": "an AdamW with slots and parameters in fewer bits, on one large leaf",
    "layouts": "collectives of training steps over several devices",
    "stacks": "rules that see more than an element on a stack of 8 matrices 512 × 2048, spread over devices by its first axis",
    "programs": "the training steps of the demo and of the notebooks",
    "rounding": "float16 that is looked at as it is stored",
}
DEVICES = (4, 8)
# What `--quick` compiles: of `gpt` these steps, of the rest what is true here.
QUICK = {"h100": ("adamw", "clip", "full", "accumulate"), "v5e": ("full",)}


def make_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks aot",
        description=f"Compile training steps for GPUs and TPUs that are not there, and hold them to targets: {WHAT}.",
        epilog="The exit status is 1 if a target is missed.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    steps = compiled.make_steps()
    parser.add_argument("--target", nargs="+", choices=targets.TARGETS, metavar="NAME", help="only these; %(choices)s")
    parser.add_argument("--part", nargs="+", choices=PARTS, metavar="PART", help="only these; %(choices)s")
    parser.add_argument("--work", nargs="+", choices=steps, metavar="WORK", help="of the steps only these; %(choices)s")
    parser.add_argument("--workload", nargs="+", choices=NAMES, metavar="NAME", help="of the steps only these; %(choices)s")
    parser.add_argument("--quick", action="store_true", help="the programs that say most, in about two minutes")
    parser.add_argument("--hlo", action="store_true", help="also write the text of every program")
    parser.add_argument("--out", type=Path, default=Path("runs/aot"), metavar="DIR", help="folder for the results")
    return parser


def make_cases(options: argparse.Namespace) -> list[Case]:
    """What there is to compile, in order."""
    everything = [case for target in options.target or targets.TARGETS for case in cases_of(target, options)]
    chosen = [case for case in everything if case.part in (options.part or PARTS)]
    return [case for case in chosen if not options.quick or is_quick(case)]


def cases_of(target: str, options: argparse.Namespace) -> list[Case]:
    """What there is to compile for a target."""
    workloads = [WORKLOADS[name] for name in options.workload or NAMES]
    steps = [StepCase(target, name, workload) for name in options.work or compiled.make_steps() for workload in workloads]
    spread = [LayoutCase(target, name, number) for name in LAYOUTS for number in DEVICES]
    rules = [name for name in stacks.RULES if targets.is_gpu(target) or name not in stacks.ON_GPUS]
    stacked = [StackCase(target, name, number) for name in rules for number in stacks.DEVICES]
    kept = [StoredCase(target, name) for name in stored.RULES]
    return [*steps, *kept, *spread, *stacked, *(ProgramCase(target, name) for name in PROGRAMS), RoundingCase(target)]


def is_quick(case: Case) -> bool:
    """Whether `--quick` compiles it."""
    if isinstance(case, StepCase):
        return case.target in QUICK and (case.workload.name == "one" or case.name in QUICK[case.target])
    if isinstance(case, LayoutCase):
        return case.devices == 4 and (case.target == "h100" or (case.target == "v5e" and case.name == "fsdp"))
    if isinstance(case, StoredCase):
        return case.target in QUICK and "slots" in case.name
    if isinstance(case, StackCase):
        return case.target in QUICK and "bfloat16" not in case.name and case.devices > 1
    # Notebook 5 is whole trainings, which take a minute to compile.
    return case.target in QUICK and not (isinstance(case, ProgramCase) and case.name.startswith("notebook 5"))


def main(arguments: list[str]) -> int:
    """Read the command line, compile and count; the exit status."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    if missing := targets.missing():
        parser.error(f"{', '.join(missing)} not found; `make aot` installs them into an environment of their own")
    options.out.mkdir(parents=True, exist_ok=True)
    missed = measure(make_cases(options), options.out, options.hlo)
    print((options.out / "aot.md").read_text("utf-8"))
    print(*(f"missed: {each}" for each in missed), sep="\n")
    return 1 if missed else 0


def measure(cases: list[Case], folder: Path, hlo: bool) -> list[str]:
    """Write a table for each target and part, and again after every case, so that a run that is stopped leaves what it found;
    the targets that are missed."""
    found: dict[tuple[str, str], list[Row]] = {}
    missed: list[str] = []

    def keep(name: str, text: str) -> None:
        if hlo:
            (folder / f"{name.replace(',', '').replace(' ', '-')}.hlo").write_text(text, "utf-8")

    with Progress(sum(case.programs for case in cases), unit="program") as bar:
        for case in cases:
            rows, wrong = case.run(bar.begin, keep)
            found.setdefault((case.target, case.part), []).extend(rows)
            missed += wrong
            tables.write(folder, "aot", targets.versions(), [make_table(*key, rows) for key, rows in found.items()])
    return missed


def make_table(target: str, part: str, rows: list[Row]) -> Table:
    """The rows of a target and part under their title."""
    return Table(f"aot {part}", target, f"{target}, {PARTS[part]}: {WHAT}", rows)
