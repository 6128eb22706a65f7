"""A run is moved from optax to ours, and back, in the middle."""

import jax
import jax.numpy as jnp
import optax
import pytest
from interop import assert_close, promotion  # noqa: F401
from optax import contrib
from zoo import bits, make_params, specs

from mithril_opt import (
    ADOPT,
    LAMB,
    LARS,
    SGD,
    AdaDelta,
    Adafactor,
    AdaGrad,
    Adam,
    Adamax,
    AdamW,
    Adan,
    AdEMAMix,
    CosineAnnealingLR,
    Lion,
    MultiOptimizer,
    NAdam,
    RAdam,
    RMSProp,
    state_from_optax,
    state_to_optax,
)

pytestmark = pytest.mark.usefixtures("promotion")

COSINE = optax.cosine_decay_schedule(0.1, decay_steps=10)
RULES = {
    "sgd": (SGD(learning_rate=0.1), optax.sgd(0.1)),
    "momentum": (SGD(learning_rate=0.1, momentum=0.9), optax.sgd(0.1, momentum=0.9)),
    "adam": (Adam(learning_rate=0.1), optax.adam(0.1)),
    "adam-scheduled": (Adam(learning_rate=CosineAnnealingLR(0.1, T_max=10)), optax.adam(COSINE)),
    "adamw-chain": (
        AdamW(learning_rate=0.1, weight_decay=0.1),
        optax.chain(optax.clip_by_global_norm(1e9), optax.adamw(0.1, weight_decay=0.1)),
    ),
    "adam-injected": (Adam(learning_rate=0.1), optax.inject_hyperparams(optax.adam)(learning_rate=0.1)),
    "rmsprop": (RMSProp(learning_rate=0.1), optax.rmsprop(0.1, eps_in_sqrt=False)),
    "rmsprop-centered": (RMSProp(learning_rate=0.1, centered=True), optax.rmsprop(0.1, centered=True, eps_in_sqrt=False)),
    "adafactor": (Adafactor(learning_rate=0.1, relative_step=False), optax.adafactor(0.1)),
    "adafactor-factored": (
        Adafactor(learning_rate=0.1, relative_step=False, min_dim_size_to_factor=2),
        optax.adafactor(0.1, min_dim_size_to_factor=2),
    ),
    "lamb": (LAMB(learning_rate=0.1, weight_decay=0.1), optax.lamb(0.1, weight_decay=0.1)),
    "adagrad": (AdaGrad(learning_rate=0.1, initial_accumulator_value=0.1), optax.adagrad(0.1, eps=1e-8)),
    "radam": (RAdam(learning_rate=0.1), optax.radam(0.1)),
    "adamax": (Adamax(learning_rate=0.1), optax.adamax(0.1)),
    "adadelta": (AdaDelta(), optax.adadelta(1.0)),
    "ademamix": (AdEMAMix(learning_rate=0.1), contrib.ademamix(0.1)),
    "ademamix-fast": (AdEMAMix(learning_rate=0.1, beta1=0.0), contrib.ademamix(0.1, b1=0.0)),
    "adopt": (ADOPT(learning_rate=0.1), contrib.adopt(0.1)),
    "lion": (Lion(learning_rate=0.1), optax.lion(0.1, weight_decay=0.0)),
}
UNCOUNTED = ("sgd", "momentum", "rmsprop", "rmsprop-centered", "adagrad", "adadelta")


def run_optax(transformation, params, state, seeds):
    update = jax.jit(transformation.update)
    for seed in seeds:
        updates, state = update(make_params(seed=seed), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def run_ours(optimizer, params, state, seeds):
    update = jax.jit(optimizer.update)
    for seed in seeds:
        params, state = update(params, make_params(seed=seed), state)
    return params, state


@pytest.mark.parametrize("rule", RULES)
def test_a_run_moves_there_and_back_in_the_middle(rule):
    ours, theirs = RULES[rule]
    params, optax_state = run_optax(theirs, make_params(), theirs.init(make_params()), range(1, 4))
    expected, _ = run_optax(theirs, params, optax_state, range(4, 10))

    state = state_from_optax(ours, params, optax_state, step=3 if rule in UNCOUNTED else None)
    assert specs(state) == specs(ours.init(params))
    params, state = run_ours(ours, params, state, range(4, 7))
    back = state_to_optax(ours, state, theirs.init(params))
    assert specs(back) == specs(theirs.init(params))
    params, _ = run_optax(theirs, params, back, range(7, 10))
    assert_close(params, expected, rtol=1e-4, atol=1e-5)
    assert int(state.step) == 6


@pytest.mark.parametrize("rule", RULES)
def test_a_round_trip_is_the_identity(rule):
    ours, theirs = RULES[rule]
    params, optax_state = run_optax(theirs, make_params(), theirs.init(make_params()), range(1, 4))
    state = state_from_optax(ours, params, optax_state, step=3)
    assert bits(state_to_optax(ours, state, optax_state)) == bits(optax_state)


def test_the_result_can_be_donated():
    params, transformation = make_params(), optax.adam(COSINE)  # whose state holds the count twice
    state = state_to_optax(Adam(), Adam().init(params), transformation.init(params))
    jax.block_until_ready(jax.jit(transformation.update, donate_argnums=1)(params, state, params))


def test_moments_kept_narrow_are_widened_and_narrowed_again():
    params, transformation = make_params(), optax.adam(0.1, mu_dtype=jnp.bfloat16)
    _, optax_state = run_optax(transformation, params, transformation.init(params), [1])
    state = state_from_optax(Adam(), params, optax_state)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(state.slots))
    assert specs(state_to_optax(Adam(), state, optax_state)) == specs(optax_state)


def test_names_of_parameters_are_not_names_of_slots():
    params = {"mu": jnp.ones(2), "count": jnp.ones(3), "trace": {"nu": jnp.ones(())}}
    transformation = optax.adam(0.1)
    _, optax_state = transformation.update(params, transformation.init(params))
    state = state_from_optax(Adam(), params, optax_state)
    assert int(state.step) == 1
    assert bits(state_to_optax(Adam(), state, optax_state)) == bits(optax_state)


def test_integers_have_no_slots_with_us():
    params = {"w": jnp.ones(2), "n": jnp.arange(3)}
    optax_state = optax.adam(0.1).init(params)
    state = state_from_optax(Adam(), params, optax_state)
    assert state.slots.mu["n"] is None
    assert bits(state_to_optax(Adam(), state, optax_state)) == bits(optax_state)


def test_sharded_moments_stay_where_they_are():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    params = {"w": jax.device_put(jnp.ones(16), sharding)}
    optax_state = optax.adam(0.1).init(params)[0]
    optax_state = optax_state._replace(mu=jax.device_put(optax_state.mu, sharding), nu=jax.device_put(optax_state.nu, sharding))
    moved = state_from_optax(Adam(), params, optax_state)
    assert moved.slots.mu["w"].sharding == sharding


# Bad input.


@pytest.mark.parametrize(
    "optimizer",
    [
        Adam(amsgrad=True),
        AdamW(amsgrad=True),
        RMSProp(momentum=0.9),
        MultiOptimizer({"all": Adam()}, {"all": "*"}),
        NAdam(),
        Adan(),
        LARS(),
        Adafactor(beta1=0.9),
        Adafactor(matrix_axes=(0, 1)),
        Adafactor(unit_axes=lambda path, leaf: None),
    ],
    ids=[
        "adam",
        "adamw",
        "rmsprop",
        "multi",
        "nadam",
        "adan",
        "lars",
        "adafactor-momentum",
        "adafactor-axes",
        "adafactor-stacked",
    ],
)
def test_rules_whose_state_means_something_else(optimizer):
    params = make_params()
    with pytest.raises(ValueError, match="has no counterpart in optax with the same state"):
        state_from_optax(optimizer, params, optax.adam(0.1).init(params))
    with pytest.raises(ValueError, match="has no counterpart in optax with the same state"):
        state_to_optax(optimizer, optimizer.init(params), optax.adam(0.1).init(params))


@pytest.mark.parametrize(
    ("optimizer", "transformation", "needs", "has"),
    [
        (Adam(), optax.sgd(0.1), "ScaleByAdamState", "no slots"),
        (Adam(), optax.adabelief(0.1), "ScaleByAdamState", "ScaleByBeliefState"),
        (Adam(), optax.chain(optax.adam(0.1), optax.adam(0.1)), "ScaleByAdamState", "ScaleByAdamState, ScaleByAdamState"),
        (SGD(), optax.adam(0.1), "no slots", "ScaleByAdamState"),
        (SGD(momentum=0.9), optax.adam(0.1), "TraceState", "ScaleByAdamState"),
        (RMSProp(), optax.rmsprop(0.1, centered=True), "ScaleByRmsState", "ScaleByRStdDevState"),
        (AdaGrad(), optax.rmsprop(0.1), "ScaleByRssState", "ScaleByRmsState"),
        (SGD(), optax.adadelta(0.1), "no slots", "ScaleByAdaDeltaState"),
        (AdEMAMix(), optax.adam(0.1), "ScaleByAdemamixState", "ScaleByAdamState"),
    ],
    ids=["sgd-adam", "belief-adam", "twice", "adam-sgd", "adam-momentum", "centered", "rmsprop-adagrad", "delta", "mix"],
)
def test_the_state_of_another_rule(optimizer, transformation, needs, has):
    params = make_params()
    message = f"{type(optimizer).__name__} needs an optax state with {needs}, but this one has {has}"
    with pytest.raises(ValueError, match=message):
        state_from_optax(optimizer, params, transformation.init(params), step=0)
    with pytest.raises(ValueError, match=message):
        state_to_optax(optimizer, optimizer.init(params), transformation.init(params))


def test_counts_that_are_missing_or_differ():
    params = make_params()
    with pytest.raises(ValueError, match="does not count its updates; give their number as step="):
        state_from_optax(SGD(), params, optax.sgd(0.1).init(params))
    with pytest.raises(ValueError, match=r"differ: \[0, 3\]; one clock cannot hold them"):
        state_from_optax(Adam(), params, optax.adam(0.1).init(params), step=3)
    adam, schedule = optax.adam(COSINE).init(params)
    with pytest.raises(ValueError, match=r"differ: \[0, 7\]"):
        state_from_optax(Adam(), params, (adam, schedule._replace(count=jnp.int32(7))))


def test_the_state_of_other_parameters():
    params = make_params()
    other = optax.adam(0.1).init({**params, "embed": jnp.ones(5)})
    with pytest.raises(ValueError, match=r"at 'embed' the mu is float32\[4,3\] but the mu of optax is float32\[5\]"):
        state_from_optax(Adam(), params, other)
    with pytest.raises(ValueError, match=r"at 'embed' the mu of optax is float32\[5\] but the mu is float32\[4,3\]"):
        state_to_optax(Adam(), Adam().init(params), other)
    with pytest.raises(ValueError, match="takes the state that init returned"):
        state_to_optax(Adam(), other, other)


def test_counts_of_one_state_that_differ():
    params = make_params()
    mix, *rest = contrib.ademamix(0.1).init(params)
    with pytest.raises(ValueError, match=r"differ: \[0, 2\]; one clock cannot hold them"):
        state_from_optax(AdEMAMix(), params, (mix._replace(count_m2=jnp.int32(2)), *rest))


def test_each_leaf_has_seen_as_many_gradients_as_optax_counts():
    params = make_params()
    _, optax_state = run_optax(contrib.adopt(0.1), params, contrib.adopt(0.1).init(params), range(1, 4))
    seen = jax.tree.leaves(state_from_optax(ADOPT(), params, optax_state).slots.seen)
    assert [int(count) for count in seen] == [3] * 4
    assert len({count.unsafe_buffer_pointer() for count in seen}) == 4


def test_what_only_one_of_the_two_factors():
    params = {"w": jnp.ones((4, 3)), "b": jnp.ones(3)}
    whole, factored = Adafactor(), Adafactor(min_dim_size_to_factor=2)
    with pytest.raises(ValueError, match=r"at 'w' the nu is float32\[4,3\] but the nu of optax is float32\[1\]"):
        state_from_optax(whole, params, optax.adafactor(0.1, min_dim_size_to_factor=2).init(params))
    with pytest.raises(ValueError, match=r"at 'w' the row is float32\[3\] but the row of optax is float32\[1\]"):
        state_from_optax(factored, params, optax.adafactor(0.1).init(params))
    with pytest.raises(ValueError, match=r"at 'w' the row of optax is float32\[1\] but the row is float32\[3\]"):
        state_to_optax(factored, factored.init(params), optax.adafactor(0.1).init(params))
