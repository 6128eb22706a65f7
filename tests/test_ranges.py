"""What the numbers of every rule may be: nothing negative, no decay rate of 1, nothing that is no number."""

import dataclasses
import math

import numpy as np
import pytest

import mithril_opt
from mithril_opt import SGD, Adam, Optimizer, Wrapper
from mithril_opt.core.fields import Number, rule_of

RULES = [
    public
    for name in mithril_opt.__all__
    if isinstance(public := getattr(mithril_opt, name), type)
    and issubclass(public, Optimizer)
    and not issubclass(public, Wrapper)
]
NUMBERS = [(rule, field) for rule in RULES for field in dataclasses.fields(rule) if isinstance(rule_of(field), Number)]
NOT_NEGATIVE = [(rule, field) for rule, field in NUMBERS if (rule, field.name) != (SGD, "dampening")]
DECAY_RATES = [(rule, field) for rule, field in NOT_NEGATIVE if rule_of(field).exact]


def fields(pairs):
    return pytest.mark.parametrize(("rule", "field"), pairs, ids=[f"{rule.__name__}-{field.name}" for rule, field in pairs])


def test_all_rules_have_numbers():
    assert {rule for rule, _ in NUMBERS} == {
        rule for rule in RULES if dataclasses.fields(rule) and hasattr(rule, "update_leaf")
    }


@fields(NOT_NEGATIVE)
@pytest.mark.parametrize("value", [-1, -1e-9, np.float32(-0.5), np.array(-1.0)])
def test_what_is_negative_is_refused(rule, field, value):
    with pytest.raises(ValueError, match=rf"{rule.__name__}: {field.name} must be .*got"):
        rule(**{field.name: value})


@fields(NUMBERS)
@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_nan_is_refused(rule, field, value):
    with pytest.raises(ValueError, match=rf"{rule.__name__}: {field.name} must be .*got"):
        rule(**{field.name: value})


@fields(NUMBERS)
@pytest.mark.parametrize("value", ["fast", True, [1.0], {}])
def test_what_is_no_number_at_all_is_refused(rule, field, value):
    with pytest.raises(TypeError, match=rf"{rule.__name__}: {field.name} must be .*got"):
        rule(**{field.name: value})


@fields(DECAY_RATES)
@pytest.mark.parametrize("value", [1, 1.0, 1.5, math.inf])
def test_a_decay_rate_is_below_one(rule, field, value):
    with pytest.raises(ValueError, match=rf"{rule.__name__}: {field.name} must be a number in .*, 1\) or a schedule, got"):
        rule(**{field.name: value})


@fields(NUMBERS)
def test_what_may_be_given_may_be_a_function_of_the_step(rule, field):
    if not rule_of(field).integer and field.name != "max_learning_rate":  # which only one kind of decay has a use for
        assert callable(getattr(rule(**{field.name: lambda step: 0.5}), field.name))


@pytest.mark.parametrize("settings", [{}, {"momentum": 0.9, "dampening": 0.1}])
def test_nesterov_needs_momentum(settings):
    with pytest.raises(ValueError, match="nesterov needs momentum > 0 and no dampening"):
        SGD(nesterov=True, **settings)


def test_an_infinite_rate():
    with pytest.raises(ValueError, match=r"Adam: learning_rate must be a number in .* got inf"):
        Adam(math.inf)
