"""The tables of all rules and of their defaults in docs/rules.md say what the rules have."""

import inspect
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import pytest

import mithril_opt
from mithril_opt import LeafOptimizer, optimizers
from mithril_opt.core.slots import state_bytes

PAGE = (Path(__file__).parent.parent / "docs" / "rules.md").read_text()
BYTES = dict(re.findall(r"^\| `(\w+)` \| (\d[^|]*|next to 0[^|]*) \|", PAGE, re.MULTILINE))
CELLS = r"^\| `(\w+)` \| (η[^|]+) \| ([^|]+) \| ([^|]+) \| [^|]+ \|$"
DEFAULTS = {name: (here, theirs) for name, here, _, theirs in re.findall(CELLS, PAGE, re.MULTILINE)}
NAMES = [name for name in BYTES if hasattr(mithril_opt, name)]
FIELDS = {
    "η": ["learning_rate"],
    "β": ["beta", "beta1", "beta2", "beta3"],
    "start": ["initial_accumulator_value"],
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


def numbers(cell):
    """Pairs of a letter and its values, of which a β has several."""
    return [(letter, [float(value) for value in values]) for letter, *values in map(str.split, cell.split(", "))]


def test_every_rule_has_its_defaults():
    assert sorted(DEFAULTS) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_defaults(name):
    parameters = inspect.signature(getattr(mithril_opt, name)).parameters
    for letter, values in numbers(DEFAULTS[name][0]):
        fields = [field for field in FIELDS[letter] if field in parameters]
        assert [parameters[field].default for field in fields[: len(values)]] == values


OPTAX = {
    "AdEMAMix": optax.contrib.ademamix,
    "ADOPT": optax.contrib.adopt,
    "Muon": optax.contrib.muon,
    "ScheduleFreeAdamW": optax.contrib.schedule_free_adamw,
    "ScheduleFreeSGD": optax.contrib.schedule_free_sgd,
    "Prodigy": optax.contrib.prodigy,
}
OPTAX_NAMES = {
    "β": ["beta", "b1", "b2", "b3"],
    "start": ["initial_accumulator_value"],
    "ε": ["eps"],
    "ε₁": ["eps"],
    "λ": ["weight_decay"],
    "μ": ["momentum"],
    "τ": ["trust_coefficient"],
    "ρ": ["rho"],
    "α": ["alpha"],
    "c": ["decay_rate"],
    "d₀": ["estim_lr0"],
    "decay": ["decay"],
}


@pytest.mark.parametrize("name", [name for name in NAMES if DEFAULTS[name][1] not in ("–", "another rule")])
def test_the_defaults_of_optax(name):
    """Where they are its arguments; ε₂ is not, and Prodigy's β are a pair."""
    here, theirs = DEFAULTS[name]
    parameters = inspect.signature(OPTAX.get(name) or getattr(optax, name.lower())).parameters
    for letter, values in numbers(here if theirs == "the same" else theirs):
        names = [argument for argument in OPTAX_NAMES.get(letter, ()) if argument in parameters]
        assert [parameters[argument].default or 0 for argument in names[: len(values)]] == values[: len(names)]


@pytest.mark.parametrize("name", NAMES)
def test_the_bytes_of_state(name):
    said = float(re.search(r"\d+", BYTES[name]).group())
    kept = state_bytes(getattr(mithril_opt, name)(), {"w": jax.ShapeDtypeStruct((1024, 1024), jnp.float32)})[0]
    assert kept / 1024**2 == pytest.approx(said, abs=0.01)
