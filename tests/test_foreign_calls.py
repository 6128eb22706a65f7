"""Calls with the names and habits of other libraries: they get the line to write."""

import jax.numpy as jnp
import pytest

import mithril_opt
from mithril_opt import (
    SGD,
    Accumulate,
    AdamW,
    Clip,
    CosineDecayLR,
    LinearWarmupScheduler,
    MixedPrecisionTrainer,
    MultiOptimizer,
    RMSProp,
    ScaleRate,
    StepLR,
    explain,
    pytree,
)

LINES = {
    "AdamW(lr=0.001, betas=(0.9, 0.95))": "AdamW(learning_rate=0.001, beta1=0.9, beta2=0.95)",
    "AdEMAMix(betas=[0.9, 0.95, 0.99], alpha=3.0)": "AdEMAMix(beta1=0.9, beta2=0.95, beta3=0.99, alpha=3.0)",
    "AdamW(learning_rate=0.1, b1=0.8, eps=1e-06)": "AdamW(learning_rate=0.1, beta1=0.8, epsilon=1e-06)",
    "RMSProp(0.1, alpha=0.99)": "RMSProp(0.1, decay=0.99)",
    "AdamW(mask=None)": "AdamW(decay_mask=None)",
    "SGD(learnig_rate=0.1, wd=0.01)": "SGD(learning_rate=0.1, weight_decay=0.01)",
    "CosineDecayLR(lr=0.1, decay_steps=10)": "CosineDecayLR(base_lr=0.1, decay_steps=10)",
    "StepLR(learning_rate=0.1, step_size=10)": "StepLR(base_lr=0.1, step_size=10)",
    "Clip(SGD(), max_norm=1.0)": "Clip(SGD(...), clip_norm=1.0)",
    "MixedPrecisionTrainer(None, SGD(), clipnorm=1.0)": "MixedPrecisionTrainer(None, SGD(...), clip_norm=1.0)",
}


@pytest.mark.parametrize(("theirs", "ours"), LINES.items())
def test_a_name_of_others_gets_the_line_to_write(theirs, ours):
    with pytest.raises(TypeError) as caught:
        eval(theirs, vars(mithril_opt).copy())
    assert f"Write {ours} instead of" in str(caught.value)
    eval(ours.replace("SGD(...)", "SGD()"), vars(mithril_opt).copy())


def test_a_name_that_nobody_knows():
    with pytest.raises(TypeError, match=r"SGD has no argument 'foreach'; it takes learning_rate, momentum, .*decay_mask$"):
        SGD(foreach=True)
    both = (
        r"has no argument 'fused', 'lr'; it takes learning_rate.*Write AdamW\(learning_rate=0.1\) instead of AdamW\(fused=True"
    )
    with pytest.raises(TypeError, match=both):
        AdamW(fused=True, lr=0.1)
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        StepLR(0.1)


@pytree
class Named(SGD):
    """A rule with arguments of its own names."""

    def __init__(self, lr=0.5):
        super().__init__(learning_rate=lr)


@pytree
class Open(SGD):
    """A rule that takes what it is given."""

    def __init__(self, **settings):
        super().__init__(learning_rate=settings["lr"])


def test_a_rule_may_call_its_arguments_as_it_likes():
    assert Named(lr=0.25).learning_rate == Open(lr=0.25).learning_rate == 0.25
    with pytest.raises(TypeError, match=r"Named has no argument 'rate'; it takes lr$"):
        Named(rate=1.0)


def test_betas_in_one_argument():
    with pytest.raises(TypeError, match=r"beta1 must be a number .* each number is an argument of its own, beta1=0.9"):
        AdamW(1e-3, (0.9, 0.95))


def test_the_place_of_a_trainer():
    with pytest.raises(TypeError, match=r"the first argument is the model: write MixedPrecisionTrainer\(None, optimizer\)"):
        MixedPrecisionTrainer(AdamW())
    with pytest.raises(TypeError, match=r"a trainer is around everything: MixedPrecisionTrainer\(None, optimizer\)"):
        Accumulate(MixedPrecisionTrainer(None, AdamW()), every=4)


PARAMS = {"embed": jnp.ones((2, 2)), "blocks": {"w": jnp.ones((2, 2))}, "head": jnp.ones(2)}
FROZEN = MultiOptimizer({"slow": SGD(), "fast": AdamW()}, groups={"slow": ["embed", ("block/*", "head")], "fast": ...})
SCALED = ScaleRate(Clip(RMSProp(), clip_norm=1.0), {("head", "block/*"): 0.5})


@pytest.mark.parametrize("optimizer", [FROZEN, SCALED, Clip(FROZEN, clip_norm=1.0), MixedPrecisionTrainer(None, SCALED)])
def test_a_pattern_in_a_list_that_matches_nothing_is_said(optimizer):
    assert "warning: no leaf matches 'block/*' in a list of patterns" in str(explain(optimizer, PARAMS, 10))
    well = {**PARAMS, "block": PARAMS["blocks"]}
    assert "no leaf matches" not in str(explain(optimizer, well, 10))


def test_a_table_of_groups_says_it_too():
    inside = MultiOptimizer({"all": FROZEN}, groups={"all": lambda path, leaf: True})
    assert "warning: no leaf matches 'block/*' in a list of patterns" in str(FROZEN.describe(PARAMS))
    assert "warning: no leaf matches 'block/*' in a list of patterns" in str(inside.describe(PARAMS))


def test_a_warm_up_around_an_optimizer():
    with pytest.raises(TypeError, match="takes numbers, not an optimizer"):
        LinearWarmupScheduler(AdamW(), 4)
    with pytest.raises(TypeError, match="takes numbers, not an optimizer"):
        CosineDecayLR(AdamW(), 4)
