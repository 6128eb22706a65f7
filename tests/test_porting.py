"""Every line of the porting tables runs, and is what it is said to be."""

import re
from pathlib import Path

import jax
import pytest

from mithril_opt import Optimizer, Schedule

PAGE = (Path(__file__).parent.parent / "docs" / "porting.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
ROWS = re.findall(r"^\| (.+) \| `((?!mithril_opt)[^`]+)` \|$", PAGE, re.MULTILINE)
LINES = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.endswith("| `mithril_opt` |")]


@pytest.fixture(scope="module", name="names")
def fixture_names():
    """What the page defines before the tables."""
    names = {}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # as users have them
        for block in BLOCKS[:3]:
            exec(block, names)
    return names


def test_no_row_is_left_out():
    assert len(ROWS) == len(LINES) > 50


@pytest.mark.parametrize(("theirs", "ours"), ROWS)
def test_row(names, theirs, ours):
    """A statement runs; an expression is a schedule or an optimizer that takes it, where it is not a question to the state."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        if re.match(r"\w+ = ", ours):
            exec(ours, names)
            names["plateau"].update(names["params"], names["params"], names["state"])
            return
        value = eval(ours, names)
    if not re.match(r"state\.|plateau\.", ours):
        schedule = value.learning_rate if isinstance(value, Optimizer) else value
        assert isinstance(schedule, Schedule | float)
        assert isinstance(schedule, float) or float(schedule(3)) >= 0
        assert "optimizer," not in ours
