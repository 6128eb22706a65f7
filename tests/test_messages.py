"""Errors name the argument or the path, and never dump a tree: at most 20 lines and 2,000 characters, at 20,000 leaves too."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from steps import trainer_of
from zoo import PLATEAU, groups, make_params

from mithril_opt import (
    SGD,
    Accumulate,
    Adam,
    AdamW,
    ChainedScheduler,
    Clip,
    CosineDecayLR,
    LambdaLR,
    LeafOptimizer,
    LinearWarmupScheduler,
    MixedPrecisionTrainer,
    MultiOptimizer,
    MultiplicativeLR,
    Muon,
    Optimizer,
    PerEpoch,
    ReduceLROnPlateau,
    ScaleRate,
    Schedule,
    SequentialLR,
    StepLR,
    Wrapper,
    clip_gradients,
    from_state_dict,
    layer_decay,
    migrate,
    pytree,
    state_from_torch,
    state_shardings,
    state_to_torch,
    to_state_dict,
)

PARAMS = make_params()


# What a user's own class lacks.


def test_a_class_without_its_decorator():
    class Rule(LeafOptimizer):
        learning_rate: float = 0.1

        def init_leaf(self, param):
            return None

        def update_leaf(self, param, grad, slots, t):
            return grad, slots

    class Around(Wrapper):
        optimizer: Optimizer

    class Falling(Schedule):
        base_lr: float

    class Cooler(Adam):
        pass

    for make in (Rule, lambda: Around(SGD()), lambda: Falling(0.1), Cooler):
        with pytest.raises(TypeError, match=r"^\w+ must be decorated with @pytree: its fields are not known otherwise"):
            make()


def rule(**methods):
    body = {
        "init_leaf": lambda self, param: None,
        "update_leaf": lambda self, param, grad, slots, t: (grad, slots),
        **methods,
    }
    return pytree(type("Rule", (LeafOptimizer,), body))()


def test_a_rule_without_a_rate():
    optimizer = rule()
    state = optimizer.init(PARAMS)
    with pytest.raises(ValueError, match="Rule has no learning_rate"):
        optimizer.get_learning_rate(state)
    assert optimizer.learning_rates(state) == {}
    with pytest.raises(ValueError, match="Rule has no learning_rate that could be replaced"):
        optimizer.with_learning_rate(0.1)


@pytest.mark.parametrize("slot", [0.0, 1, "mu"])
def test_a_slot_that_is_no_array(slot):
    with pytest.raises(TypeError, match=rf"init_leaf returned {slot!r} as a slot; a slot is an array, or None"):
        rule(init_leaf=lambda self, param: slot).init(PARAMS)


# What a schedule returns.


@pytest.mark.parametrize("around", [lambda f: f, lambda f: LinearWarmupScheduler(2, 0.0, 0.1, f), lambda f: PerEpoch(f, 3)])
@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (lambda step: jnp.ones(3), ValueError, r"must return a scalar for a scalar step, got shape \(3,\)"),
        (lambda step: None, TypeError, "must return a number at every step, got None"),
        (lambda step: "fast", TypeError, "must return a number at every step, got 'fast'"),
        (lambda step: math.cos(step), TypeError, "must be made of jax.numpy operations, with jnp.cos for math.cos"),
        (lambda step: 0.1 if step < 3 else 0.2, TypeError, "and jnp.where for if"),
        (lambda step: np.cos(step), TypeError, "must be made of jax.numpy operations"),
    ],
)
def test_a_function_of_the_step_that_is_none(around, function, error, message):
    optimizer = SGD(learning_rate=around(function))
    with pytest.raises(error, match=message):
        jax.jit(optimizer.update)(PARAMS, PARAMS, SGD().init(PARAMS))


@pytest.mark.parametrize(
    "schedule",
    [
        LambdaLR(0.1, lambda k: min(1, k / 3)),
        LambdaLR(0.1, lambda k: math.cos(k)),
        MultiplicativeLR(0.1, lambda k: 0.9 if k > 2 else 1.0),
        MultiplicativeLR(0.1, lambda k: jnp.float32(1.0) if k > 2 else 1.0),
        ChainedScheduler([LambdaLR(0.1, lambda k: max(k, 3)), StepLR(1.0, 3)]),
        SequentialLR([StepLR(0.1, 3), lambda k: min(1, k / 3)], [2]),
        jax.tree_util.Partial(lambda scale, k: max(scale, k), 0.5),
    ],
)
def test_a_function_inside_a_schedule_that_is_none(schedule):
    optimizer = SGD(learning_rate=schedule)
    with pytest.raises(
        TypeError, match=r"made of jax.numpy operations, with jnp.cos for math.cos, jnp.minimum for min and jnp"
    ):
        optimizer.update(PARAMS, PARAMS, SGD().init(PARAMS))


def test_the_memory_of_another_schedule():
    plateau, sequence = (
        SGD(learning_rate=ReduceLROnPlateau(0.1)),
        SGD(learning_rate=SequentialLR([StepLR(0.1, 3), PLATEAU], [5])),
    )
    for ours, theirs in ((plateau, sequence), (sequence, plateau)):
        with pytest.raises(ValueError, match=r"what the state remembers for learning_rate is another schedule's: .* expected"):
            ours.update(PARAMS, PARAMS, theirs.init(PARAMS))
        with pytest.raises(ValueError, match="is another schedule's"):
            ours.observe(theirs.init(PARAMS), 1.0)


@pytest.mark.parametrize("around", [lambda o: o, lambda o: MixedPrecisionTrainer(None, o), lambda o: Accumulate(o, every=2)])
def test_a_state_without_the_memory_is_migrated(around):
    that, this = around(SGD()), around(SGD(learning_rate=ReduceLROnPlateau(0.1)))
    params, state = {"w": jnp.ones(2)}, that.init({"w": jnp.ones(2)})
    with pytest.raises(ValueError, match=r"remembers nothing for .*\['learning_rate'\]: another optimizer made it") as caught:
        this.observe(state, 1.0)
    line = str(caught.value).partition("it. ")[2].partition(" starts them afresh")[0]
    names = {"migrate": migrate, "state": state, "that": that, "this": this, "params": params}
    exec(line, names)
    this.observe(names["state"], 1.0)


# What jax.value_and_grad returns.


@pytest.mark.parametrize("params", [{"w": jnp.ones(2), "b": jnp.ones(3)}, jnp.ones(2), (jnp.ones(2), jnp.ones(3), jnp.ones(4))])
@pytest.mark.parametrize("around", [lambda o: o, lambda o: MixedPrecisionTrainer(None, o)])
def test_a_pair_in_the_place_of_the_gradients(params, around):
    optimizer, loss = around(SGD()), jnp.float32(0.5)
    state = optimizer.init(params)
    for pair in ((loss, params), ((loss, {}), params)):
        with pytest.raises(ValueError, match=r"looks like the pair \(loss, grads\), which jax.value_and_grad returns$"):
            optimizer.update(params, pair, state)
    with pytest.raises(ValueError, match=r"looks like the pair \(grads, aux\), which jax.grad returns with has_aux=True$"):
        optimizer.update(params, (params, {"accuracy": loss}), state)
    for neither in ((loss, loss), (params, loss, loss), [loss, params]):
        with pytest.raises(ValueError, match="the parameter") as caught:
            optimizer.update(params, neither, state)
        assert "pair" not in str(caught.value)


# Whose state it is.


@pytest.mark.parametrize("wrap", [lambda o: Clip(Accumulate(o, every=2), clip_norm=1.0), lambda o: Accumulate(o, every=2)])
def test_the_order_of_optax(wrap):
    optimizer = wrap(SGD())
    with pytest.raises(ValueError, match=r"update takes \(params, grads, state\).*looks like optax's order"):
        optimizer.update(PARAMS, optimizer.init(PARAMS), PARAMS)


def test_the_group_is_named():
    multi = groups(Adam(), SGD(momentum=0.9))
    state = multi.init(PARAMS)
    state.slots["body"].trace["body"]["w"] = jnp.ones(7)
    with pytest.raises(ValueError, match=r"group 'body': at 'body/w': the state does not belong .* are SGDSlots"):
        multi.update(PARAMS, PARAMS, state)


def test_slots_of_another_rule():
    with pytest.raises(ValueError, match="its slots should be AdamSlots, but are SGDSlots"):
        Adam().update(PARAMS, PARAMS, SGD(momentum=0.9).init(PARAMS))


# No message dumps a tree.

MANY = {f"layer{i:05}": np.float32(1.0) for i in range(20_000)}
OTHERS = {f"block{i:05}": np.float32(1.0) for i in range(20_000)}
SMALL = {"w": jnp.ones(2)}


ADAM = Adam()


@functools.cache
def many(optimizer=ADAM):
    return jax.eval_shape(optimizer.init, MANY)


@functools.cache
def torch_state():
    return {"state": {i: {"step": 1.0, "exp_avg": 1.0} for i in range(20_000)}, "param_groups": []}


WRONG = {
    "gradients": lambda: ADAM.update(MANY, OTHERS, many()),
    "gradients of another structure": lambda: ADAM.update(MANY, list(MANY.values()), many()),
    "state": lambda: ADAM.update(SMALL, SMALL, many()),
    "state of fewer": lambda: ADAM.update(MANY, MANY, ADAM.init(SMALL)),
    "slots": lambda: ADAM.update(MANY, MANY, many(SGD(momentum=0.9))),
    "groups": lambda: MultiOptimizer({"a": SGD(), "b": SGD()}, {"a": "nothing", "b": ...}).init(MANY),
    "no group": lambda: MultiOptimizer({"a": SGD()}, {"a": "layer00*"}).init(MANY),
    "window": lambda: Accumulate(SGD(), 2).update(MANY, MANY, Accumulate(SGD(), 2).init(SMALL)),
    "trainer": lambda: trainer_of(ADAM).update(MANY, OTHERS, trainer_of(ADAM).init(SMALL)),
    "names in a checkpoint": lambda: from_state_dict(many(), to_state_dict(ADAM.init(SMALL))),
    "a checkpoint": lambda: from_state_dict(ADAM.init(SMALL), {f"slots/mu/{name}": 1.0 for name in MANY}),
    "nothing to keep": lambda: from_state_dict(many(), {}, strict=False),
    "several paths": lambda: to_state_dict({"a": MANY, **{f"a/{name}": leaf for name, leaf in MANY.items()}}),
    "torch names": lambda: state_from_torch(ADAM, MANY, torch_state(), names=list(OTHERS)),
    "torch transpositions": lambda: state_from_torch(ADAM, MANY, torch_state(), names=list(MANY), transpose=list(OTHERS)),
    "to torch": lambda: state_to_torch(ADAM, MANY, ADAM.init(SMALL), torch_state(), names=list(OTHERS)),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_message_about_twenty_thousand_leaves_is_short(name):
    with pytest.raises((ValueError, TypeError)) as caught:
        WRONG[name]()
    own = str(caught.value).split("\n--------------------\n")[0]
    assert len(own) <= 2000
    assert len(own.splitlines()) <= 20


@pytest.mark.parametrize("loss", [0.5, np.float32(0.5)])
def test_a_loss_that_is_a_number(loss):
    trainer = trainer_of(AdamW(learning_rate=CosineDecayLR(0.1, 10)))
    state = trainer.init(PARAMS)
    _, _, success = trainer.update(PARAMS, PARAMS, state, loss=loss)
    assert bool(success)


def test_a_negative_rate_names_the_way_out():
    with pytest.raises(ValueError, match="learning_rate must be a number in") as raised:
        SGD(-0.1)
    assert raised.value.__notes__ == ["To maximise, negate the loss."]
    with pytest.raises(ValueError, match="momentum") as raised:
        SGD(0.1, momentum=-0.1)
    assert not hasattr(raised.value, "__notes__")


@pytest.mark.parametrize(
    ("params", "grads", "message"),
    [
        ({"l": [1.0]}, {"l": (1.0,)}, "at 'l' the parameters are in a list, the gradients in a tuple"),
        (
            {"a": {"b": [1.0], "c": 2.0}},
            {"a": {"b": (1.0,), "c": 2.0}},
            "at 'a/b' the parameters are in a list, the grad",
        ),
        ([1.0], (1.0,), "the parameters are in a list, the gradients in a tuple"),
    ],
)
def test_another_container_is_named_with_its_path(params, grads, message):
    with pytest.raises(ValueError, match=message):
        SGD().update(params, grads, SGD().init(params))


def test_the_arguments_of_the_trainer_in_the_order_of_optax():
    trainer = MixedPrecisionTrainer(None, SGD())
    state = trainer.init(PARAMS)
    for arguments in ((PARAMS, state, PARAMS), (PARAMS, state, state), (PARAMS, state.optimizer, state)):
        with pytest.raises(ValueError, match=r"the trainer's update takes \(params, grads, state\).* looks like optax's order"):
            trainer.update(*arguments)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda tree: SGD(tree),
        lambda tree: AdamW(decay_mask=tree),
        lambda tree: Clip(tree, clip_norm=1.0),
        lambda tree: MixedPrecisionTrainer(None, tree),
        lambda tree: clip_gradients(tree, clip_norm=tree),
        lambda tree: state_shardings(SGD(), tree, {"other": None}),
        lambda tree: MultiOptimizer({"all": SGD()}, tree),
        lambda tree: LinearWarmupScheduler(1, 0.0, 0.1, after_scheduler=tree),
    ],
)
def test_a_tree_in_the_wrong_place_is_not_printed(wrong):
    tree = {f"layer{i}": jnp.ones(2) for i in range(2000)}
    with pytest.raises((TypeError, ValueError)) as raised:
        wrong(tree)
    assert len(str(raised.value)) < 2000


# Functions of a leaf.


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda function: AdamW(decay_mask=function), "AdamW: decay_mask"),
        (lambda function: ScaleRate(SGD(), function), "ScaleRate: the function of factors"),
        (lambda function: ScaleRate(SGD(), layer_decay(function, 2, 0.5)), "layer_decay: depth_of"),
        (lambda function: Muon(unit_axes=function), "Muon.unit_axes"),
    ],
)
def test_a_function_of_a_leaf_with_its_arguments_swapped(make, name):
    with pytest.raises(AttributeError, match="'str' object has no attribute 'ndim'") as raised:
        make(lambda leaf, path: leaf.ndim > 1).update(SMALL, SMALL, SGD().init(SMALL))
    assert raised.value.__notes__[0] == f"{name} is called with (path, leaf), here with 'w' and float32[2]."


@pytest.mark.parametrize("true", [np.bool_, jnp.bool_])
def test_a_mask_that_returns_an_array(true):
    params = {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}
    masked = AdamW(learning_rate=0.5, weight_decay=0.5, decay_mask=lambda path, leaf: true(leaf.ndim > 1))
    params, _ = masked.update(params, jax.tree.map(jnp.zeros_like, params), masked.init(params))
    assert (params["w"][0, 0], params["b"][0]) == (0.75, 1.0)


def test_a_mask_that_looks_at_values():
    masked, params = AdamW(decay_mask=lambda path, leaf: jnp.any(leaf > 1)), {"b": jnp.ones(2)}
    with pytest.raises(
        TypeError, match=r"AdamW: decay_mask looks at the values of 'b' \(float32\[2\]\), which are traced; let it"
    ):
        masked.update(params, params, masked.init(params))
