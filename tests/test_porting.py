"""Every line of the tables of before and after runs, and is what it is said to be."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mithril_opt import Optimizer, Schedule

PAGES = {path.stem: path.read_text() for path in sorted((Path(__file__).parent.parent / "docs" / "coming-from").glob("*.md"))}
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)
ROW = re.compile(r"^\| (.+) \| (?:`((?!mithril_opt`)[^`]+)`|nothing: .+|`[^`]+`, with .+) \|$", re.MULTILINE)
TABLE = re.compile(r"^\|.*\| `mithril_opt` \|\n\|[-|]+\|\n((?:\|.*\n)+)", re.MULTILINE)
TABLES = {page: "".join(TABLE.findall(text)) for page, text in PAGES.items()}
ROWS = [(page, theirs, ours) for page, table in TABLES.items() for theirs, ours in ROW.findall(table)]


class Names(dict):
    """By page, what it defines outside the tables. Each row starts from a copy."""

    def __missing__(self, page):
        self[page] = {}
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # as users have them
            for block in BLOCK.findall(PAGES[page]):
                exec(block, self[page])
        return self[page]


@pytest.fixture(scope="module", name="names")
def fixture_names():
    return Names()


@pytest.mark.parametrize("page", PAGES)
def test_no_row_is_left_out(page):
    assert len([row for row in ROWS if row[0] == page]) == len(TABLES[page].splitlines()) > 10


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


def optax_rows(heading):
    """The rows below `heading` on the page about optax whose left side can be evaluated."""
    text = PAGES["optax"].split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = [(theirs.strip("`"), ours) for theirs, ours in ROW.findall(text) if theirs.startswith("`")]
    return [row for row in rows if "one, two" not in row[0] and "reduce_on_plateau" not in row[0]]


@pytest.mark.parametrize(("theirs", "ours"), optax_rows("Schedules"))
def test_optax_schedule(names, theirs, ours):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        expected, schedule = eval(theirs, vars(optax).copy()), eval(ours, dict(names["optax"]))
        steps = [0, 1, 50, 99, 100, 101, 199, 200, 999, 1000, 1001, 3000]
        np.testing.assert_allclose([schedule(k) for k in steps], [expected(k) for k in steps], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(("theirs", "ours"), [row for row in optax_rows("Optimizers") if "from_optax" not in row[1]])
def test_optax_optimizer(names, theirs, ours):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        same_steps(eval(theirs, {**vars(optax), "jax": jax}), eval(ours, dict(names["optax"])))


def same_steps(expected, optimizer, number=5):
    params = {"w": jnp.array([[1.0, -2.0]]), "b": jnp.array([0.5])}
    their_params, their_state, state = params, expected.init(params), optimizer.init(params)
    for k in range(number):
        grads = jax.tree.map(lambda p, k=k: jnp.cos(p * (k + 1)), params)
        updates, their_state = expected.update(grads, their_state, their_params)
        their_params = optax.apply_updates(their_params, updates)
        params, state = optimizer.update(params, grads, state)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), params, their_params)


AROUND = [row for row in optax_rows("Around the update") if re.match(r"MultiSteps|partition", row[0])]


@pytest.mark.parametrize(("theirs", "ours"), AROUND)
def test_optax_wrapper(names, theirs, ours):
    assert len(AROUND) == 3
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        optimizer = eval(ours, dict(names["optax"]))
        labels = {pattern: name for name, pattern in getattr(optimizer, "groups", ())}
        expected = eval(theirs, {**vars(optax), "labels": labels})
        same_steps(expected.gradient_transformation() if theirs.startswith("MultiSteps") else expected, optimizer, number=9)
