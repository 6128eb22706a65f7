"""Many structures one after the other, and what is said of them."""

import itertools
import time
from typing import NamedTuple

import jax
import numpy as np

from .check import check
from .report import Report
from .structures import Composer

MOST_WRONG = 3  # structures, before a run stops


class Run(NamedTuple):
    """What came of some structures."""

    structures: int
    wrong: int
    report: Report
    seconds: float


def structures(seed):
    """Structures without end, each with the generator of its numbers."""
    composer = Composer(np.random.default_rng(seed))
    for index in itertools.count():
        yield index, composer.deal(), np.random.default_rng([seed, index])


def fuzz(seed, cases, only=None, entry=None, say=print):
    """Compare `cases` steps.

    Args:
        seed: what everything is drawn from.
        cases: how many steps at least.
        only: the number of the one structure to look at; None for all.
        entry: the number of the one entry of its batch to tell of.
        say: what is done with a line of text.
    """
    run, start = Run(0, 0, Report(), 0.0), time.perf_counter()
    for index, structure, rng in structures(seed):
        if only not in (None, index):
            continue
        try:
            report, numbers = check(structure, rng, entry)
        except Exception as error:
            error.add_note(f"{structure}\nagain: python -m tests.fuzz --seed {seed} --structure {index}")
            raise
        if report.failed:
            say(described(seed, index, structure, report, numbers))
        run = Run(run.structures + 1, run.wrong + (report.failed > 0), run.report + report, time.perf_counter() - start)
        if run.structures % 50 == 0:
            say(summary(run))
        if run.report.cases >= cases or run.wrong == MOST_WRONG or only is not None:
            return run
    raise AssertionError


def summary(run):
    report = run.report
    return (
        f"{report.cases} cases in {run.structures} structures: {report.failed} wrong, {report.undecided} undecided; "
        f"{report.numbers} numbers, {report.sharp / max(report.numbers, 1):.0%} of them sharp, largest deviation "
        f"{report.deviation:.3f} of what is allowed; {run.seconds:.0f} s"
    )


def described(seed, index, structure, report, numbers):
    """What went wrong in a structure, and how to see it again."""
    entry = report.failures[0].entry
    optimizer = jax.tree.map(lambda x: x[min(entry, len(x) - 1)].item(), numbers)
    lines = [
        f"seed {seed}, structure {index}: {report.failed} steps are wrong",
        str(structure),
        *map(str, report.failures),
        f"entry {entry} is {optimizer}",
        f"again: python -m tests.fuzz --seed {seed} --structure {index} --entry {entry}",
    ]
    return "\n  ".join(lines)
