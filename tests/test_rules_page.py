"""The table of all rules in docs/rules.md says what the rules have."""

import inspect
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import mithril_opt
from mithril_opt import LeafOptimizer, optimizers
from mithril_opt.core.slots import state_bytes

PAGE = (Path(__file__).parent.parent / "docs" / "rules.md").read_text()
ROWS = {
    name: cells for name, *cells in re.findall(r"^\| `(\w+)` \| (\d[^|]*|next to 0[^|]*) \| ([^|]+) \|", PAGE, re.MULTILINE)
}
NAMES = [name for name in ROWS if hasattr(mithril_opt, name)]
FIELDS = {
    "η": ["learning_rate"],
    "β": ["beta", "beta1", "beta2", "beta3"],
    "ε": ["epsilon"],
    "ε₁": ["epsilon1"],
    "ε₂": ["epsilon2"],
    "λ": ["weight_decay"],
    "μ": ["momentum"],
    "τ": ["trust_coefficient"],
    "ρ": ["rho"],
    "α": ["alpha"],
    "ψ": ["momentum_decay"],
    "c": ["decay"],
    "d₀": ["d0"],
    "decay": ["decay"],
}


def test_every_rule_has_a_row():
    rules = [
        name
        for name in optimizers.__all__
        if inspect.isclass(rule := getattr(optimizers, name)) and issubclass(rule, LeafOptimizer)
    ]
    assert sorted(rules) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_defaults(name):
    parameters = inspect.signature(getattr(mithril_opt, name)).parameters
    for entry in ROWS[name][1].split(", "):
        letter, *values = entry.split()
        fields = [field for field in FIELDS[letter] if field in parameters]
        assert [parameters[field].default for field in fields[: len(values)]] == [float(value) for value in values]


@pytest.mark.parametrize("name", NAMES)
def test_the_bytes_of_state(name):
    said = float(re.search(r"\d+", ROWS[name][0]).group())
    kept = state_bytes(getattr(mithril_opt, name)(), {"w": jax.ShapeDtypeStruct((1024, 1024), jnp.float32)})[0]
    assert kept / 1024**2 == pytest.approx(said, abs=0.01)
