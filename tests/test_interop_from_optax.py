"""optax's transformations as our optimizers: alone, in groups, under accumulation and in the trainer."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import test_contract as contract
from interop import assert_close, promotion  # noqa: F401
from steps import scaled, spoil
from zoo import bits, make_params, specs

from mithril_opt import SGD, Accumulate, Adam, MixedPrecisionTrainer, MultiOptimizer, from_optax, to_optax

pytestmark = pytest.mark.usefixtures("promotion")

TRANSFORMATIONS = {
    "adamw": lambda: optax.adamw(0.1),
    "injected": lambda: optax.inject_hyperparams(optax.adam)(learning_rate=0.1),
    "schedule-free": lambda: optax.contrib.schedule_free_sgd(0.1),
}


@pytest.fixture(params=TRANSFORMATIONS, name="optimizer")
def fixture_optimizer(request):
    return from_optax(TRANSFORMATIONS[request.param]())


# What holds for every optimizer, but for gradients that are None and numbers that are arguments, which optax does not know.
CONTRACT = [
    contract.test_scan_equals_a_loop,
    contract.test_cond_takes_an_update_or_leaves_it,
    contract.test_passengers_come_back_identical,
    contract.test_donated_buffers_are_reused_and_nothing_is_shared,
    contract.test_init_inside_jit_shares_nothing_either,
    contract.test_descends_on_a_parabola,
    contract.test_compute_updates_is_what_update_applies,
    contract.test_other_structure_names_the_path,
    contract.test_arguments_in_the_order_of_optax,
    contract.test_state_is_a_named_tuple,
]


@pytest.mark.parametrize("requirement", CONTRACT, ids=lambda requirement: requirement.__name__)
def test_is_an_optimizer_like_any_other(requirement, optimizer):
    requirement(optimizer)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_state_keeps_its_types(optimizer, dtype):
    contract.keeps_structure(optimizer, dtype)


def test_init_of_abstract_parameters():
    contract.test_init_of_abstract_parameters(from_optax(optax.adamw(0.1)), "bfloat16")
    values = from_optax(TRANSFORMATIONS["schedule-free"]())  # keeps the values of the parameters, which only tracing can spare
    assert jax.eval_shape(values.init, make_params()).slots.z["embed"].shape == (4, 3)


def train(update, params, state, steps=6):
    update = jax.jit(update)
    for seed in range(1, steps + 1):
        params, state = update(params, make_params(seed=seed), state)
    return params, state


def optax_update(transformation):
    def update(params, grads, state):
        updates, state = transformation.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return update


EVERY_KIND = {
    **TRANSFORMATIONS,
    "adafactor": lambda: optax.adafactor(0.1),
    "lamb": lambda: optax.lamb(0.1),
    "noisy": lambda: optax.noisy_sgd(0.1, key=3),
    "partition": lambda: optax.partition(
        {"matrix": optax.adam(0.1), "rest": optax.set_to_zero()},
        lambda tree: jax.tree.map(lambda leaf: "matrix" if jnp.ndim(leaf) == 2 else "rest", tree),
    ),
    "masked": lambda: optax.chain(
        optax.masked(optax.adam(0.1), lambda tree: jax.tree.map(lambda leaf: jnp.ndim(leaf) > 1, tree))
    ),
    "multi-steps": lambda: optax.MultiSteps(optax.adam(0.1), 2).gradient_transformation(),
}


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_equals_optax(kind):
    transformation, params = EVERY_KIND[kind](), make_params()
    optimizer = from_optax(transformation)
    ours, state = train(optimizer.update, params, optimizer.init(params))
    theirs, slots = train(optax_update(transformation), params, transformation.init(params))
    assert_close((ours, state.slots), (theirs, slots), rtol=1e-6, atol=1e-7)
    assert int(state.step) == 6


def test_narrow_parameters_get_float32_arithmetic():
    optimizer, params = from_optax(optax.adam(1e-3)), {"w": jnp.ones(4, jnp.bfloat16)}
    run = lambda state, _: (optimizer.update(params, params, state)[1], None)  # noqa: E731
    state, _ = jax.lax.scan(run, optimizer.init(params), length=1500)
    # In bfloat16 the second moment would stop at 0.5.
    np.testing.assert_allclose(optax.tree.get(state, "nu")["w"], 1 - 0.999**1500, rtol=1e-4)
    assert optimizer.compute_updates(params, params, state)[0]["w"].dtype == jnp.float32


def test_there_and_back_again():
    transformation, optimizer, params = optax.adamw(0.1), Adam(learning_rate=0.1), make_params()
    there = to_optax(from_optax(transformation))
    assert_close(
        train(optax_update(there), params, there.init(params))[0],
        train(optax_update(transformation), params, transformation.init(params))[0],
        rtol=1e-6,
    )
    back = from_optax(to_optax(optimizer))
    assert_close(
        train(back.update, params, back.init(params))[0], train(optimizer.update, params, optimizer.init(params))[0], rtol=1e-6
    )


def groups(embed, body):
    return MultiOptimizer({"embed": embed, "body": body}, groups={"embed": "embed", "body": ...})


def test_in_a_group_beside_one_of_ours():
    params = make_params()
    mixed = groups(from_optax(optax.adam(0.1)), SGD(learning_rate=0.1))
    ours = groups(Adam(learning_rate=0.1), SGD(learning_rate=0.1))
    assert_close(train(mixed.update, params, mixed.init(params))[0], train(ours.update, params, ours.init(params))[0])


def test_under_accumulation():
    params = make_params()
    theirs, ours = Accumulate(from_optax(optax.adam(0.1)), every=3), Accumulate(Adam(learning_rate=0.1), every=3)
    new_params, state = train(theirs.update, params, theirs.init(params), steps=7)
    assert_close(new_params, train(ours.update, params, ours.init(params), steps=7)[0])
    assert (int(state.optimizer.step), int(state.micro_step)) == (2, 1)


@pytest.mark.parametrize("every", [1, 2])
def test_in_the_trainer(every):
    params = make_params()
    theirs = MixedPrecisionTrainer(None, Accumulate(from_optax(optax.adam(0.1)), every), clip_norm=1.0)
    ours = MixedPrecisionTrainer(None, Accumulate(Adam(learning_rate=0.1), every), clip_norm=1.0)
    results = []
    for trainer in (theirs, ours):
        new_params, state, step = params, trainer.init(params), jax.jit(trainer.update)
        for seed, spoiled in enumerate([False, False, True, False, False, False]):
            grads = scaled(trainer, make_params(seed=seed), state)
            before = new_params, state.optimizer
            new_params, state, success = step(new_params, spoil(grads) if spoiled else grads, state)
            if spoiled:
                assert not success
                assert bits(before[0]) == bits(new_params)
        results.append((new_params, state.loss_scale))
    assert_close(*results)


# The rate.


def test_rate_that_is_injected_and_changed_by_hand():
    optimizer = from_optax(optax.chain(optax.clip(1.0), optax.inject_hyperparams(optax.sgd)(learning_rate=0.25)))
    state = optimizer.init(make_params())
    assert float(optimizer.get_learning_rate(state)) == 0.25
    state.slots[1].hyperparams["learning_rate"] = jnp.float32(0.5)
    rate = optimizer.get_learning_rate(state)
    assert (float(rate), rate.dtype, rate.shape, rate.weak_type) == (0.5, jnp.float32, (), False)


@pytest.mark.parametrize("rule", [optax.sgd, optax.adam, optax.adamw], ids=["sgd", "adam", "adamw"])
def test_scheduled_rate_is_that_of_the_next_update(rule):
    schedule = optax.linear_schedule(1.0, 0.0, transition_steps=4)
    optimizer = from_optax(optax.inject_hyperparams(rule)(learning_rate=schedule))
    params = make_params()
    state = optimizer.init(params)
    for step in range(5):
        assert float(optimizer.get_learning_rate(state)) == float(jax.jit(optimizer.get_learning_rate)(state)) == schedule(step)
        params, state = optimizer.update(params, make_params(seed=step), state)


def test_rate_through_groups_and_accumulation():
    optimizer = Accumulate(
        groups(from_optax(optax.inject_hyperparams(optax.adam)(learning_rate=0.25)), SGD(learning_rate=0.5)), every=2
    )
    rates = optimizer.get_learning_rate(optimizer.init(make_params()))
    assert {name: float(rate) for name, rate in rates.items()} == {"embed": 0.25, "body": 0.5}


def test_rates_that_are_not_kept_or_not_one():
    params = make_params()
    with pytest.raises(ValueError, match=r"keeps no learning rate in its state; wrap it as optax.inject_hyperparams"):
        (optimizer := from_optax(optax.adam(0.1))).get_learning_rate(optimizer.init(params))
    injected = optax.inject_hyperparams(optax.sgd)(learning_rate=0.1)
    with pytest.raises(ValueError, match="keeps 2 learning rates"):
        (optimizer := from_optax(optax.chain(injected, injected))).get_learning_rate(optimizer.init(params))


# Extra arguments.


def parabola(params):
    return sum(jnp.sum(jnp.square(leaf - 1.0)) for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("rule", [optax.lbfgs, optax.polyak_sgd], ids=["lbfgs", "polyak"])
def test_value_grad_and_value_fn_are_forwarded(rule):
    optimizer, params = from_optax(rule()), make_params()
    state = optimizer.init(params)

    @functools.partial(jax.jit, static_argnums=2)
    def step(params, state, value_fn):
        value, grads = jax.value_and_grad(value_fn)(params)
        return optimizer.update(params, grads, state, value=value, grad=grads, value_fn=value_fn)

    for _ in range(12):
        params, state = step(params, state, parabola)
    assert float(parabola(params)) < 1e-4


def test_a_group_gets_the_value():
    plateau = optax.chain(optax.sgd(1.0), optax.contrib.reduce_on_plateau(factor=0.5, patience=1))
    optimizer, params = groups(from_optax(plateau), SGD()), make_params()
    state = optimizer.init(params)
    for _ in range(4):
        params, state = optimizer.update(params, params, state, value=jnp.float32(1.0))
    assert float(optax.tree.get(state.slots["embed"], "scale")) < 1
    with pytest.raises(TypeError, match=r"MultiOptimizer.update takes no further arguments.*got \['value'\]"):
        (optimizer := groups(SGD(), SGD())).update(params, params, optimizer.init(params), value=1.0)


def test_complex_parameters_descend():
    optimizer, params = from_optax(optax.adam(0.1)), {"z": jnp.array([1.0 + 2.0j, -1.0j])}
    state = optimizer.init(params)
    loss = lambda params: jnp.sum(jnp.abs(params["z"]) ** 2)  # noqa: E731
    for _ in range(40):
        params, state = optimizer.update(params, jax.grad(loss)(params), state)
    assert float(loss(params)) < 0.1


# Bad input.


def test_a_parameter_without_a_gradient():
    optimizer, params = from_optax(optax.sgd(0.1)), make_params()
    with pytest.raises(ValueError, match="'embed' has no gradient, which an optax transformation cannot express"):
        optimizer.update(params, {**params, "embed": None}, optimizer.init(params))


@pytest.mark.parametrize("other", [optax.sgd(0.1), optax.adam(0.1), optax.lion(0.1)], ids=["sgd", "adam", "lion"])
def test_the_state_of_another_transformation_or_of_other_parameters(other):
    optimizer, params = from_optax(optax.sgd(0.1, momentum=0.9)), make_params()
    message = "the state does not belong to this transformation and these parameters: "
    with pytest.raises(ValueError, match=message):
        optimizer.update(params, params, from_optax(other).init(params))
    state = optimizer.init({**params, "embed": jnp.ones(7)})
    with pytest.raises(ValueError, match=message + r"at '0/trace/embed' the expected state is float32\[4,3\] but .*\[7\]"):
        optimizer.update(params, params, state)


@pytest.mark.parametrize("thing", [optax.adam, Adam(), None], ids=["function", "optimizer", "none"])
def test_what_is_no_transformation(thing):
    with pytest.raises(TypeError, match=r"from_optax takes an optax.GradientTransformation, such as optax.adam"):
        from_optax(thing)


def test_a_state_that_drifts_is_held_to_its_dtypes():
    """Such a transformation would be traced anew in the second step, and its state be refused by scan."""

    def init(params):
        return {"weak": jnp.float32(1.5), "wide": jnp.ones(2, jnp.bfloat16), "count": jnp.int8(0)}

    def update(updates, state, params=None):
        return updates, {"weak": jnp.asarray(1.5), "wide": jnp.ones(2), "count": jnp.int32(1)}

    drifting = optax.GradientTransformation(init, update)
    optimizer, params = from_optax(drifting), {"w": jnp.ones(2)}
    state = optimizer.init(params)
    _, after = optimizer.update(params, params, state)
    assert specs(after) == specs(state)
    assert {name: leaf.dtype for name, leaf in after.slots.items()} == {
        "weak": jnp.float32,
        "wide": jnp.bfloat16,
        "count": jnp.int8,
    }


def test_updates_in_half_precision_are_added_in_float32():
    """1 + 2⁻⁸ + 2⁻⁹ is no bfloat16, and its half, added in bfloat16, would be lost."""
    halves = optax.GradientTransformation(
        lambda params: optax.EmptyState(),
        lambda updates, state, params=None: (jax.tree.map(lambda u: u.astype(jnp.bfloat16), updates), state),
    )
    optimizer = from_optax(halves)
    updates, _ = optimizer.compute_updates(jnp.ones(2), jnp.full(2, 2.0**-9), optimizer.init(jnp.ones(2)))
    assert updates.dtype == jnp.float32
    params, _ = optimizer.update(jnp.ones(2), jnp.full(2, 2.0**-9), optimizer.init(jnp.ones(2)))
    assert params.dtype == jnp.float32
    assert params[0] == 1 + 2.0**-9


def test_a_state_that_holds_the_parameters_or_one_array_twice_can_be_donated():
    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return {"start": params, "sum": zeros, "mean": zeros}

    sharing = optax.GradientTransformation(init, lambda updates, state, params=None: (updates, state))
    optimizer, params = from_optax(sharing), {"w": jnp.ones(4)}
    state = optimizer.init(params)
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves((params, state))]
    assert len(set(pointers)) == len(pointers)
    new, _ = jax.jit(optimizer.update, donate_argnums=(0, 2))(params, {"w": jnp.ones(4)}, state)
    np.testing.assert_array_equal(new["w"], 2)
