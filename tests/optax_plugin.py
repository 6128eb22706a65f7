"""A pytest plugin that runs optax's own tests with our optimizers in place of optax's; `test_optax_itself.py` is the command.

In `optax`, and in the module that defines them, `sgd`, `adam`, `adamw`, `rmsprop` and `adagrad` return ours through `to_optax`.
They take those of optax's arguments that ours have; ε is outside the root in all, as with PyTorch. Tests that use none of the
five are skipped.
"""

import functools
import inspect
import re

import optax
import pytest
from optax._src import alias

from mithril_opt import SGD, AdaGrad, Adam, AdamW, RMSProp, to_optax

MOMENTS = {"learning_rate": "learning_rate", "b1": "beta1", "b2": "beta2", "eps": "epsilon"}
# Our class, and our names of optax's arguments.
REPLACED = {
    "sgd": (SGD, {"learning_rate": "learning_rate", "momentum": "momentum", "nesterov": "nesterov"}),
    "adam": (Adam, MOMENTS),
    "adamw": (AdamW, {**MOMENTS, "weight_decay": "weight_decay"}),
    "rmsprop": (
        RMSProp,
        {"learning_rate": "learning_rate", "decay": "decay", "eps": "epsilon", "centered": "centered", "momentum": "momentum"},
    ),
    "adagrad": (
        AdaGrad,
        {"learning_rate": "learning_rate", "initial_accumulator_value": "initial_accumulator_value", "eps": "epsilon"},
    ),
}
# Where the five are used.
MODULES = [
    "optax._src.alias_test::AliasTest",
    "optax._src.combine_test",
    "optax._src.float64_test",
    "optax._src.linesearch_test::BacktrackingLinesearchTest",
    "optax._src.lookahead_test",
    "optax._src.sharding_test",
    "optax._src.transform_test::TransformTest",
    "optax.contrib._common_test",
    "optax.contrib._sam_test",
    "optax.contrib._schedule_free_test",
    "optax.experimental._aggregating_test",
    "optax.schedules._schedule_test::ScheduleAsLearningRateTest",
    "optax.transforms._accumulation_test",
    "optax.transforms._combining_test",
    "optax.transforms._conditionality_test",
    "optax.transforms._freezing_test",
    "optax.transforms._layouts_test",
    "optax.transforms._masking_test",
    "optax.transforms._monitoring_test",
    "optax.tree_utils._state_utils_test",
]
# What is not run, and why.
LAYOUT = "asserts the layout of optax's own state"
NARROW = "asks for a moment kept in another dtype with mu_dtype or accumulator_dtype; ours are float32"
WORDING = "fails with optax's own optimizers as well: JAX words its error otherwise by now"
EXCLUDED = {
    "AliasTest::test_explicit_dtype": NARROW,
    "AccumulationTest::test_multi_steps_mixed_precision1": NARROW,
    "MaskedTest::test_masked_state_structure": LAYOUT,
    "StateUtilsTest::test_adam": LAYOUT,
    "StateUtilsTest::test_inject_hparams": LAYOUT,
    "StateUtilsTest::test_map_non_params_to_none": LAYOUT,
    "StateUtilsTest::test_map_params_to_none": LAYOUT,
    "StateUtilsTest::test_tree_set": LAYOUT + ": its clock is called count, ours step",
    "FreezeTest::test_bad_structure_raises": WORDING,
    "SelectiveTransformTest::test_selective_bad_structure": WORDING,
    "ScheduleFreeTest::test_schedule_free_adamw": "compares with optax's bias correction, whose 1 - 0.999**t is off by 2e-5 in "
    "float32; in float64 the two agree, and with ours in float32 (test_interop_to_optax.py)",
}
CALLED = set()


def in_place_of(name):
    """A function like optax's `name` that returns ours, and notes when that is used."""
    theirs, (rule, names) = getattr(alias, name), REPLACED[name]
    parameters = inspect.signature(theirs).parameters
    signature = inspect.Signature([parameters[their_name] for their_name in names])

    def ours(*args, **kwargs):
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        transformation = to_optax(rule(**{names[key]: value for key, value in bound.arguments.items()}))

        def init(params):
            CALLED.add(name)
            return transformation.init(params)

        def update(updates, state, params=None, **extra_args):
            # optax's tests leave them out where optax's rules do not read them; ours want them always.
            return transformation.update(updates, state, updates if params is None else params, **extra_args)

        return optax.GradientTransformationExtraArgs(init, update)

    ours.__signature__ = signature
    return functools.update_wrapper(ours, theirs, assigned=["__name__", "__doc__"], updated=[])


def pytest_configure():
    for name in REPLACED:
        ours = in_place_of(name)
        setattr(alias, name, ours)
        setattr(optax, name, ours)


def pytest_collection_modifyitems(config, items):
    left_out = [item for item in items if of_another(item) or excluded(item)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call():
    CALLED.clear()
    result = yield
    if not CALLED:  # what does not run ours must not count as passed
        pytest.skip("uses none of ours")
    return result


def of_another(item):
    """Whether the parameters of a test name an optimizer that is not replaced."""
    named = re.findall(r"opt_name='?(\w+)", getattr(item.function, "__x_params_repr__", ""))
    return bool(named) and REPLACED.keys().isdisjoint(named)


def excluded(item):
    """Whether `EXCLUDED` has the test, or the test that absl has made several of, numbered from 0."""
    path = "::".join(item.nodeid.split("::")[-2:])
    return path in EXCLUDED or path.rstrip("0123456789") in EXCLUDED
