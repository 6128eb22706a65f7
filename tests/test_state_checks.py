"""A state, a rate or a switch that does not belong: an error that says so, never a number that is quietly wrong."""

import jax
import jax.numpy as jnp
import optax
import pytest
from zoo import OPTIMIZERS, groups

from mithril_opt import SGD, Accumulate, Adam, AdamW, MixedPrecisionTrainer, MultiOptimizer, ReduceLROnPlateau, StepLR

SLOTS = ["adam", "sgd-momentum", "rmsprop", "adagrad", "custom", "custom-bare"]


@pytest.mark.parametrize("name", SLOTS)
@pytest.mark.parametrize(("kept", "given"), [((1,), (2,)), ((), (2,)), ((2,), (1,)), ((2,), (3,)), ((2, 1), (2, 3))])
def test_slots_of_another_shape(name, kept, given):
    optimizer, params = OPTIMIZERS[name](), {"w": jnp.ones(given)}
    state = optimizer.init({"w": jnp.ones(kept)})
    with pytest.raises(
        ValueError, match=r"at 'w': the state does not belong to this optimizer and these parameters: the slots of float32\["
    ):
        optimizer.update(params, params, state)


def test_a_window_of_other_parameters():
    optimizer = Accumulate(SGD(), every=2)
    with pytest.raises(ValueError, match=r"at 'w' the parameter is float32\[2\] but the mean of its gradients .* float32\[1\]"):
        optimizer.update({"w": jnp.ones(2)}, {"w": jnp.ones(2)}, optimizer.init({"w": jnp.ones(1)}))


@pytest.mark.parametrize("state_of", [Adam(), MultiOptimizer({"other": SGD()}, groups={"other": ...})])
@pytest.mark.parametrize("call", ["update", "observe", "get_learning_rate"])
def test_a_state_of_other_groups(state_of, call):
    multi, params = groups(Adam(), SGD()), {"embed": jnp.ones(2), "w": jnp.ones(2)}
    state = state_of.init(params)
    arguments = {"update": (params, params, state), "observe": (state, 1.0), "get_learning_rate": (state,)}[call]
    with pytest.raises(
        ValueError, match=r"the state does not belong to this MultiOptimizer: it has .*group '(embedding|body)'"
    ):
        getattr(multi, call)(*arguments)


@pytest.mark.parametrize("call", ["update", "observe", "get_learning_rate"])
def test_a_plateau_that_the_state_knows_nothing_of(call):
    """Added to a run that was resumed, say: its metrics must not be dropped in silence."""
    optimizer, params = SGD(learning_rate=ReduceLROnPlateau(0.1)), jnp.ones(2)
    state = SGD().init(params)
    arguments = {"update": (params, params, state), "observe": (state, 1.0), "get_learning_rate": (state,)}[call]
    with pytest.raises(ValueError, match=r"remembers nothing for the metric-driven schedules \['learning_rate'\]"):
        getattr(optimizer, call)(*arguments)
    fresh = state._replace(schedules=optimizer.init(params).schedules)
    assert float(optimizer.get_learning_rate(optimizer.observe(fresh, 1.0))) == pytest.approx(0.1)


def test_a_rate_per_element_is_no_rate():
    optimizer, params = SGD(learning_rate=jnp.array([0.1, 0.2])), jnp.ones(2)
    with pytest.raises(ValueError, match=r"learning_rate must be a scalar, got shape \(2,\); jax.vmap"):
        optimizer.update(params, params, SGD().init(params))
    swept = jax.vmap(lambda one: one.update(params, params, one.init(params))[0])(optimizer)
    assert swept.shape == (2, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Adam(amsgrad="yes"), "Adam: amsgrad must be True or False, got 'yes'"),
        (lambda: SGD(momentum=0.9, nesterov=1), "SGD: nesterov must be True or False, got 1"),
        (lambda: AdamW(decay_mask="bias"), "AdamW: decay_mask must be a function"),
        (lambda: Adam(learning_rate=StepLR), "a schedule must be made before it is used, got the class StepLR"),
        (lambda: MixedPrecisionTrainer(None, SGD(), dynamic_loss_scaling="no"), "dynamic_loss_scaling must be True or False"),
    ],
)
def test_switches(call, message):
    with pytest.raises(TypeError, match=message):
        call()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda inner: Accumulate(inner, every=2),
        lambda inner: MixedPrecisionTrainer(None, inner),
        lambda inner: MultiOptimizer({"all": inner}, groups={"all": ...}),
    ],
)
def test_an_optax_transformation_where_an_optimizer_is_wanted(wrap):
    with pytest.raises(TypeError, match=r"must be an Optimizer, got GradientTransformation.*from_optax\(...\) turns"):
        wrap(optax.adam(1e-3))


@pytest.mark.parametrize("name", ["beta1", "beta2"])
def test_the_derivative_at_a_decay_rate_of_zero(name):
    def moved(beta):
        optimizer = Adam(learning_rate=0.1, **{name: beta})
        return optimizer.update(jnp.ones(2), jnp.full(2, 0.5), optimizer.init(jnp.ones(2)))[0].sum()

    assert jnp.isfinite(jax.grad(moved)(0.0))
    assert float(moved(0.0)) == pytest.approx(1.8)
