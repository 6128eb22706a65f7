"""Calls with the names and habits of other libraries: they get the line to write."""

import functools

import jax.numpy as jnp
import pytest

import mithril_opt
from mithril_opt import (
    EMA,
    SGD,
    Accumulate,
    Adafactor,
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
from mithril_opt.core.foreign_names import is_misspelt

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
    "MixedPrecisionTrainer(None, SGD(), max_grad_norm=1.0)": "MixedPrecisionTrainer(None, SGD(...), clip_norm=1.0)",
    "MixedPrecisionTrainer(None, SGD(), init_scale=8.0)": "MixedPrecisionTrainer(None, SGD(...), loss_scale=8.0)",
    "MixedPrecisionTrainer(None, SGD(), initial_loss_scale=8.0)": "MixedPrecisionTrainer(None, SGD(...), loss_scale=8.0)",
    "MixedPrecisionTrainer(None, SGD(), initial_scale=8.0)": "MixedPrecisionTrainer(None, SGD(...), loss_scale=8.0)",
    "MixedPrecisionTrainer(None, SGD(), initial_scale_power=3)": "MixedPrecisionTrainer(None, SGD(...), loss_scale=8.0)",
    "MixedPrecisionTrainer(None, SGD(), period=9)": "MixedPrecisionTrainer(None, SGD(...), growth_interval=9)",
    "MixedPrecisionTrainer(None, SGD(), factor=4)": (
        "MixedPrecisionTrainer(None, SGD(...), growth_factor=4, backoff_factor=0.25)"
    ),
    "MixedPrecisionTrainer(None, SGD(), enabled=False)": (
        "MixedPrecisionTrainer(None, SGD(...), loss_scale=1.0, dynamic_loss_scaling=False)"
    ),
    "MixedPrecisionTrainer(None, SGD(), enabled=True)": "MixedPrecisionTrainer(None, SGD(...))",
    "MixedPrecisionTrainer(None, SGD(), minimum_scale=0.5)": "MixedPrecisionTrainer(None, SGD(...), min_loss_scale=0.5)",
    "MixedPrecisionTrainer(None, SGD(), dtype='bfloat16')": "MixedPrecisionTrainer(None, SGD(...), policy='bfloat16')",
    "AdamW(weight_decay_mask=None)": "AdamW(decay_mask=None)",
    "AdamW({'w': 1.0}, lr=0.1)": "AdamW(learning_rate=0.1)",
    "CosineDecayLR(0.1, T_max=100, eta_min=1e-05)": "CosineDecayLR(0.1, decay_steps=100, min_lr=1e-05)",
    "OneCycleLR(0.1, epochs=10, steps_per_epoch=100)": "OneCycleLR(0.1, total_steps=10 * 100)",
    "WarmupCosLR(0.0, 1.0, warmup_epoch=3, epochs=9)": "WarmupCosLR(0.0, 1.0, warmup_epochs=3, epochs=9)",
}


def namespace(**more):
    return {**vars(mithril_opt), "steps_per_epoch": 7, **more}


@pytest.mark.parametrize(("theirs", "ours"), LINES.items())
def test_a_name_of_others_gets_the_line_to_write(theirs, ours):
    with pytest.raises(TypeError) as caught:
        eval(theirs, namespace())
    assert f"Write {ours} instead of" in str(caught.value)
    assert "it takes" not in str(caught.value)
    assert "counts in epochs" not in str(caught.value) or theirs.startswith("OneCycleLR")
    eval(ours.replace("SGD(...)", "SGD()"), namespace())


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


OWN = r"MixedPrecisionTrainer has no argument '\w+'; it takes model, .*hysteresis$"


@pytest.mark.parametrize("key", ["scale_it", "min_scal", "betas", "fin_steps", "axis_name", "mode"])
def test_a_name_that_is_near_none_gets_no_guess(key):
    with pytest.raises(TypeError, match=OWN):
        MixedPrecisionTrainer(None, SGD(), **{key: 2.0})


def test_a_name_that_means_something_else_in_another_class():
    for make in (AdamW, Adafactor, functools.partial(EMA, SGD())):
        with pytest.raises(TypeError, match=r"has no argument 'alpha'; it takes [\w, ]*$"):
            make(alpha=0.99)


def test_a_name_with_another_meaning_is_no_misspelling():
    for key, name in [("init_scale", "min_loss_scale"), ("min_lr", "max_lr"), ("beta1", "beta2"), ("epochs", "eps"),
                      ("weight_decay_mask", "weight_decay"), ("beta", "beta1"), ("mode", "model"), ("no_decay", "decay"),
                      ("min_learning_rate", "max_learning_rate"), ("factor", "backoff_factor"), ("decay", "decay_mask"),
                      ("warmup_epochs", "warmup_steps"), ("lr", "r"), ("dacey", "decay")]:  # fmt: skip
        assert not is_misspelt(key, name), key
    for key in ("learnig_rate", "learningRate", "learning_rates", "laerning_rate", "learming_rate", "LEARNING_RATE"):
        assert is_misspelt(key, "learning_rate"), key


def test_what_is_required_is_in_the_line():
    line = r"Write LinearWarmupScheduler\(warmup_steps=10, start_lr=..., end_lr=0.001\) instead of"
    with pytest.raises(TypeError, match=line):
        LinearWarmupScheduler(warmup=10, peak=1e-3)
    with pytest.raises(TypeError, match=r"Adam\(learning_rate=LinearWarmupScheduler\(4, start_lr=..., end_lr=...\)\)"):
        LinearWarmupScheduler(AdamW(), 4)
    with pytest.raises(TypeError, match=r"'lr'; it takes learning_rate.*decay_mask$"):  # which is given already
        SGD(0.1, lr=0.1)


EPOCHS = {
    "LinearWarmupScheduler(warmup_epochs=5, start_lr=0.0, end_lr=1.0)": (
        "LinearWarmupScheduler(warmup_steps=5 * steps_per_epoch, start_lr=0.0, end_lr=1.0)"
    ),
    "CosineDecayLR(0.1, decay_epochs=5)": "CosineDecayLR(0.1, decay_steps=5 * steps_per_epoch)",
    "OneCycleLR(max_lr=0.1, epochs=10)": "OneCycleLR(max_lr=0.1, total_steps=10 * steps_per_epoch)",
    "WarmupStableDecayLR(0.1, num_warmup_epochs=1, num_stable_steps=2, num_decay_steps=3)": (
        "WarmupStableDecayLR(0.1, num_warmup_steps=1 * steps_per_epoch, num_stable_steps=2, num_decay_steps=3)"
    ),
    "NoamLR(512, warmup_epochs=5)": "NoamLR(512, warmup_steps=5 * steps_per_epoch)",
    "SWA(SGD(), start_epoch=3, every=5)": "SWA(SGD(...), start=3 * steps_per_epoch, every=5)",
    "MultiStepLR(0.1, milestones_epochs=[3, 5])": None,
    "StepLR(0.1, step_epochs=3)": None,
    "ReduceLROnPlateau(0.1, epochs=3)": None,
}


@pytest.mark.parametrize(("theirs", "ours"), EPOCHS.items())
def test_epochs_are_not_taken_for_steps(theirs, ours):
    with pytest.raises(TypeError) as caught:
        eval(theirs, namespace())
    name, said = theirs.partition("(")[0], str(caught.value)
    assert f"PerEpoch({name}(...), steps_per_epoch=...) counts in epochs" in said or name == "SWA"
    assert (f"Write {ours} instead of {name}" in said) if ours else ("Write" not in said and "it takes" in said)
    if ours:
        eval(ours.replace("SGD(...)", "SGD()"), namespace())


def test_what_is_done_in_another_way_here():
    for key in ("no_decay", "exclude_from_weight_decay"):
        with pytest.raises(
            TypeError, match=rf"AdamW has no argument '{key}'; decay_mask says .* decay_mask=lambda path, leaf:"
        ):
            AdamW(**{key: ["b"]})
    with pytest.raises(TypeError, match=r"'max_grad_norm'; Clip\(optimizer, clip_norm=...\) around it clips the gradients$"):
        AdamW(max_grad_norm=1.0)
    with pytest.raises(TypeError, match=r"StepLR has no argument 'max_grad_norm'; it takes base_lr"):
        StepLR(0.1, 30, max_grad_norm=1.0)


def test_too_many_by_position():
    line = r"only optimizer by position. Write Clip\(SGD\(...\), clip_norm=1.0\) or Clip\(SGD\(...\), clip_value=1.0\) instead"
    with pytest.raises(TypeError, match=line):
        Clip(SGD(), 1.0)
    with pytest.raises(TypeError, match=r"Clip takes only optimizer by position, got 3 arguments$"):
        Clip(SGD(), 1.0, 2.0)
    with pytest.raises(TypeError, match=r"Accumulate takes only optimizer, every by position, got 3 arguments$"):
        Accumulate(SGD(), 4, 5)


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
