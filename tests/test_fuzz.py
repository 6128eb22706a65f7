"""Random whole steps against float64: a short run of `make fuzz`, and whether such a run can fail."""

import numpy as np
import pytest
from fuzz import runs
from fuzz.bounded import Bounded, sqrt
from fuzz.papers import PAPERS

from mithril_opt import SGD


@pytest.mark.slow
def test_steps_are_what_float64_says():
    said = []
    run = runs.fuzz(seed=0, cases=16_000, say=said.append)
    assert run.wrong == 0, "\n".join(said)
    assert run.report.sharp > 0.8 * run.report.numbers
    assert run.report.undecided < 0.01 * run.report.cases


def too_far(h, p, g, slots, t):
    """Gradient descent that goes a hundred thousandth too far."""
    return p - 1.00001 * h.learning_rate * h.coupled(p, g), {}


def test_a_rule_that_is_a_little_wrong_is_found(monkeypatch):
    for rule in set(PAPERS) - {SGD}:
        monkeypatch.delitem(PAPERS, rule)
    monkeypatch.setitem(PAPERS, SGD, PAPERS[SGD]._replace(update=too_far, variants=[{}]))
    said = []
    assert runs.fuzz(seed=0, cases=1, say=said.append).wrong == 1
    assert "again: python -m tests.fuzz --seed 0 --structure 0 --entry" in said[0]


def polynomial(a, b, c, root):
    return (a * b - c) / (root(a * a + b * b) + 0.5) + c * b


def test_bounds_hold_what_float32_makes_of_a_formula():
    """They are kept, and by a few roundings only."""
    normal = np.random.default_rng(0).normal
    a, b, c = (normal(size=10_000).astype(np.float32) for _ in range(3))
    expected = polynomial(*(Bounded(x) for x in (a, b, a * b + c / 1000)), sqrt)
    error = np.abs(polynomial(a, b, a * b + c / 1000, np.sqrt) - expected.value)
    assert np.all(error <= expected.error)
    assert np.median(error / expected.error) > 0.02
