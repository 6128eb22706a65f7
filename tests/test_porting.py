"""Every line of the tables of before and after runs, and is what it is said to be."""

import re
from pathlib import Path

import jax
import pytest

from mithril_opt import Optimizer, Schedule

PAGES = {path.stem: path.read_text() for path in sorted((Path(__file__).parent.parent / "docs" / "coming-from").glob("*.md"))}
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)
ROW = re.compile(r"^\| (.+) \| (?:`((?!mithril_opt`)[^`]+)`|nothing: .+|`[^`]+`, with .+) \|$", re.MULTILINE)
ROWS = [(page, theirs, ours) for page, text in PAGES.items() for theirs, ours in ROW.findall(text)]
LINES = {
    page: [line for line in text.splitlines() if line.startswith("| ") and not line.endswith("| `mithril_opt` |")]
    for page, text in PAGES.items()
}


@pytest.fixture(scope="module", name="names")
def fixture_names():
    """By page, what it defines outside the tables. Each row starts from a copy."""
    names = {page: {} for page in PAGES}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # as users have them
        for page, text in PAGES.items():
            for block in BLOCK.findall(text):
                exec(block, names[page])
    return names


@pytest.mark.parametrize("page", PAGES)
def test_no_row_is_left_out(page):
    assert len([row for row in ROWS if row[0] == page]) == len(LINES[page]) > 10


@pytest.mark.parametrize(("page", "theirs", "ours"), [row for row in ROWS if row[2]])
def test_row(names, page, theirs, ours):
    """A statement runs; of an expression, a schedule has values and an optimizer makes a state."""
    namespace = dict(names[page])
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        if re.match(r"[\w, ]+ = ", ours):
            exec(ours, namespace)
            return
        value = eval(ours, namespace)
        assert "optimizer," not in ours
        assert value is not None
        if isinstance(value, Schedule):
            assert float(value(3)) >= 0
        if isinstance(value, Optimizer) and not hasattr(value, "groups"):
            value.init(namespace["params"])
