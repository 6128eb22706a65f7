"""How many steps were compared, how well, and which are wrong."""

from typing import Any, NamedTuple

import numpy as np

from .compare import components

LISTED = 5


class Failure(NamedTuple):
    """The first number that is wrong in a step: where it is, what was there before, and what it should have been."""

    entry: int
    step: int
    path: str
    before: Any
    expected: float
    allowed: float
    found: float

    def __str__(self):
        return (
            f"entry {self.entry}, step {self.step}: {self.path} was {self.before!r}, should be {self.expected!r} "
            f"± {self.allowed:.2g}, is {self.found!r}"
        )


class Report(NamedTuple):
    """What came of some steps.

    Attributes:
        cases: steps that were compared.
        undecided: steps whose verdict float32 leaves open.
        numbers: how many numbers were compared.
        sharp: how many of those to better than 1e-5 of themselves, a parameter to better than 1e-2 of its step.
        deviation: the largest of a number that is right, in units of what is allowed.
        failed: steps that are wrong.
        failures: the first few of them.
    """

    cases: int = 0
    undecided: int = 0
    numbers: int = 0
    sharp: int = 0
    deviation: float = 0.0
    failed: int = 0
    failures: tuple[Failure, ...] = ()

    def __add__(self, other):
        sums = (a + b for a, b in zip(self[:4], other[:4], strict=True))
        failures = (self.failures + other.failures)[:LISTED]
        return Report(*sums, max(self.deviation, other.deviation), self.failed + other.failed, failures)


def tally(comparisons, before, held):
    """The report of what is in `comparisons`, pairs of a path and a `Compared`.

    Args:
        comparisons: what is wrong first in a step is what is listed.
        before: by path what was there before the step, where there was anything.
        held: by entry and step, whether it counts.
    """
    report, wrong = Report(), np.zeros(held.shape, bool)
    for path, compared in comparisons:
        bad = held[..., None, None] & ~compared.right
        places = np.argwhere(bad & ~wrong[..., None, None])[:LISTED]
        failures = tuple(failure(path, compared, before.get(path), *place) for place in places.tolist())
        report += Report(failures=failures) + (statistics(path, compared, before[path], held) if path in before else Report())
        wrong |= bad.any((2, 3))
    return report._replace(failed=int(wrong.sum()))


def statistics(path, compared, before, held):
    scale, least = np.abs(compared.value), 1e-5
    if path.startswith("params/"):
        scale, least = np.abs(compared.value - components(before)), 1e-2
    counts = np.broadcast_to(held[..., None, None], compared.found.shape)
    deviation = np.max(np.where(counts & compared.right, compared.deviation, 0.0), initial=0.0)
    sharp = counts & (compared.allowed <= least * scale)
    return Report(numbers=int(counts.sum()), sharp=int(sharp.sum()), deviation=float(deviation))


def failure(path, compared, before, entry, step, element, component):
    def number(x):
        return float(x[entry, step, element, min(component, x.shape[-1] - 1)])

    numbers = (number(x) for x in (compared.value, compared.allowed, compared.found))
    return Failure(entry, step, f"{path}[{element}]", None if before is None else number(components(before)), *numbers)
