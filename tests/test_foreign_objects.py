"""PyTorch's objects in the place of ours, and the names of their methods: the error says what there is instead."""

import copy
import pickle

import pytest

from mithril_opt import (
    SGD,
    AdamW,
    Clip,
    LinearWarmupScheduler,
    MixedPrecisionTrainer,
    SequentialLR,
    StepLR,
    Switch,
    pytree,
)


class Scheduler:
    """What PyTorch's schedulers have."""

    last_epoch = 0

    def step(self):
        raise AssertionError

    def get_last_lr(self):
        raise AssertionError


class TorchOptimizer(Scheduler):
    param_groups = ()


@pytest.mark.parametrize(
    "place",
    [
        lambda torchs: AdamW(learning_rate=torchs),
        lambda torchs: LinearWarmupScheduler(10, 0.0, 1.0, after_scheduler=torchs),
        lambda torchs: LinearWarmupScheduler(10, 0.0, 1.0, torchs),
        lambda torchs: SequentialLR([StepLR(0.1, 3), torchs], [3]),
        lambda torchs: StepLR(torchs, 3),
    ],
)
def test_a_scheduler_of_pytorch(place):
    ours, others = type("CosineAnnealingLR", (Scheduler,), {})(), type("Cosine", (Scheduler,), {})()
    looks = "this looks like PyTorch's scheduler; mithril_opt has "
    with pytest.raises(TypeError) as caught:
        place(ours)
    line = "a schedule of that name, with the base rate for the optimizer: CosineAnnealingLR(base_lr=..., T_max=...)"
    assert looks + line in str(caught.value)
    with pytest.raises(TypeError) as caught:
        place(others)
    line = "schedules of the same names, with the base rate for the optimizer: StepLR(0.1, step_size=30)"
    assert looks + line in str(caught.value)


def test_an_optimizer_of_pytorch_is_no_scheduler():
    with pytest.raises(TypeError, match=r"StepLR takes numbers, not an optimizer.*=StepLR\(0.001, 30\)\) instead"):
        StepLR(TorchOptimizer(), 30)


def test_a_number_where_a_schedule_belongs():
    with pytest.raises(TypeError, match=r"got 100; write on=lambda step: step >= 100$"):
        Switch(SGD(), on=100)
    with pytest.raises(TypeError, match=r"got 0.1; write lambda step: 0.1$"):
        SequentialLR([0.1], [])
    with pytest.raises(TypeError, match=r"got True$"):
        Switch(SGD(), on=True)


METHODS = {
    AdamW(): ("step", "zero_grad", "param_groups", "state_dict", "load_state_dict", "state"),
    Clip(AdamW(), clip_norm=1.0): ("step", "add_param_group"),
    MixedPrecisionTrainer(None, AdamW()): ("step", "zero_grad", "scale", "unscale_", "get_scale", "state_dict"),
    StepLR(0.1, 3): ("step", "get_last_lr", "last_epoch", "state_dict"),
}


@pytest.mark.parametrize("ours", METHODS)
def test_a_method_of_pytorch(ours):
    for name in METHODS[ours]:
        with pytest.raises(AttributeError, match=rf"^'{type(ours).__name__}' object has no attribute '{name}': \w+"):
            getattr(ours, name)
        assert not hasattr(ours, name)
        assert getattr(ours, name, 3) == 3
    with pytest.raises(AttributeError, match=rf"^'{type(ours).__name__}' object has no attribute 'stepp'$"):
        ours.stepp  # noqa: B018
    assert pickle.loads(pickle.dumps(ours)) == copy.copy(ours) == copy.deepcopy(ours) == ours


@pytree
class Failing(SGD):
    """A rule with a property that fails inside."""

    @property
    def decays(self):
        return (3).nothing


def test_a_property_that_fails_says_its_own_error():
    with pytest.raises(AttributeError, match="'int' object has no attribute 'nothing'"):
        Failing().decays  # noqa: B018
