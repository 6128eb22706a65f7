"""A step that may not be taken: one meaning in every form, what does not run, derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interop import assert_close
from steps import PARAMS, drive, trainer_of
from zoo import WARMUP, bits, specs

from mithril_opt import SGD, Accumulate, Adam, AdamW, Clip, LeafOptimizer, pytree
from mithril_opt.core.branch import by_branch, by_loop, by_selection, update_if

FORMS = {"branch": by_branch, "selection": by_selection, "loop": by_loop}
LAZY = {"branch": by_branch, "loop": by_loop}

STATE = {"x": jnp.array([1.0, 2.0, 3.0]), "n": jnp.int32(5), "key": jax.random.key(0), "none": None}


def update(state, scale, y):
    key, _ = jax.random.split(state["key"])
    new = {"x": jnp.sin(scale * state["x"]) * y, "n": state["n"] + 1, "key": key, "none": None}
    return new, {"sum": jnp.sum(new["x"]), "parts": state["x"] * y}


def otherwise(state, scale, y):
    return {"sum": jnp.float32(-1), "parts": jnp.zeros_like(state["x"])}


def toy(condition, state, scale, y, lazily=False):
    return update_if(condition, update, otherwise, state, scale, y, lazily=lazily)


Y = jnp.array([0.5, -1.0, 2.0])


# One meaning.


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("condition", [True, False])
def test_what_is_returned(force, form, condition):
    force(form)
    expected = update(STATE, 2.0, Y) if condition else (STATE, otherwise(STATE, 2.0, Y))
    for run in (toy, jax.jit(toy)):
        returned = run(jnp.bool(condition), STATE, 2.0, Y)
        assert_close(returned, expected)
        assert specs(returned) == specs(expected)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_vmap_over_the_condition_and_over_the_rest(force, form):
    force(form)
    conditions, scales = jnp.array([True, False, True]), jnp.array([1.0, 2.0, 3.0])
    together = jax.vmap(toy, in_axes=(0, None, 0, None))(conditions, STATE, scales, Y)
    for i, (condition, scale) in enumerate(zip(conditions, scales, strict=True)):
        alone = update(STATE, scale, Y) if condition else (STATE, otherwise(STATE, scale, Y))
        assert_close(jax.tree.map(lambda leaf, i=i: leaf[i], together), alone)
    shared = jax.vmap(toy, in_axes=(None, None, 0, None))(jnp.bool(True), STATE, scales, Y)
    assert_close(jax.tree.map(lambda leaf: leaf[2], shared), update(STATE, scales[2], Y))


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_scan(force, form):
    force(form)
    conditions = [True, False, False, True, True]
    last, extras = jax.jit(lambda state: jax.lax.scan(lambda s, c: toy(c, s, 2.0, Y), state, jnp.array(conditions)))(STATE)
    state, expected = STATE, []
    for condition in conditions:
        state, extra = update(state, 2.0, Y) if condition else (state, otherwise(state, 2.0, Y))
        expected.append(extra["sum"])
    assert_close(last, state)
    np.testing.assert_allclose(extras["sum"], expected, rtol=1e-6)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("letters", ["TFTTNTTT", "TTTT"])
@pytest.mark.parametrize(
    "optimizer",
    [Adam(learning_rate=WARMUP), Accumulate(Clip(AdamW(learning_rate=WARMUP), clip_norm=1.0), 2)],
    ids=["adam", "accumulate"],
)
def test_the_trainer_in_every_form(force, form, letters, optimizer):
    trainer = trainer_of(optimizer, clip_norm=0.5)
    expected = drive(trainer, letters)
    force(form)
    returned = drive(trainer, letters)
    assert_close(returned, expected)
    assert specs(returned[:2]) == specs((PARAMS, trainer.init(PARAMS)))


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_skipped_step_is_the_same_to_the_bit(force, form):
    force(form)
    trainer = trainer_of(AdamW(learning_rate=WARMUP))
    params, state, *_ = drive(trainer, "TT")
    after = drive(trainer, "FNL", params, state)
    assert bits((after[0], after[1].optimizer)) == bits((params, state.optimizer))


# What does not run.


@pytree
class Loud(LeafOptimizer):
    """A rule that says when it runs."""

    learning_rate: float = 0.1

    def init_leaf(self, param):
        return None

    def update_leaf(self, param, grad, slots, t):
        jax.debug.callback(lambda: CALLS.append(None))
        return self.learning_rate * grad, slots


CALLS = []


def calls(optimizer, steps):
    """How often the rule has run after each step."""
    CALLS.clear()
    params, state, counts = {"w": jnp.ones(2)}, optimizer.init({"w": jnp.ones(2)}), []
    update = jax.jit(optimizer.update)
    for _ in range(steps):
        params, state, *_ = update(params, params, state)
        jax.effects_barrier()
        counts.append(len(CALLS))
    return counts


@pytest.mark.parametrize("form", LAZY.values(), ids=LAZY)
@pytest.mark.parametrize("wrap", [lambda optimizer: optimizer, trainer_of], ids=["alone", "trainer"])
def test_the_rule_runs_where_a_window_closes_only(force, form, wrap):
    force(form)
    assert calls(wrap(Accumulate(Loud(), every=3)), 7) == [0, 0, 1, 1, 1, 2, 2]


def test_a_selection_runs_the_rule_and_discards_it(force):
    force(by_selection)
    assert calls(Accumulate(Loud(), every=2), 4) == [1, 2, 3, 4]


# Derivatives.


def loss(scale, x, condition):
    state, extra = toy(condition, {**STATE, "x": x}, scale, Y)
    return jnp.sum(state["x"] ** 3) + extra["sum"] + jnp.sum(extra["parts"])


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("condition", [True, False])
@pytest.mark.parametrize(
    "derivative", [jax.grad, jax.jacfwd, lambda *args: jax.jit(jax.grad(*args))], ids=["grad", "jvp", "jit"]
)
def test_derivatives(force, form, condition, derivative):
    """Against those of the formula, without a branch."""
    force(form)

    def plain(scale, x):
        if not condition:
            return jnp.sum(x**3) - 1
        state, extra = update({**STATE, "x": x}, scale, Y)
        return jnp.sum(state["x"] ** 3) + extra["sum"] + jnp.sum(extra["parts"])

    arguments = jnp.float32(2), STATE["x"]
    expected = jax.grad(plain, (0, 1))(*arguments)
    assert_close(derivative(loss, (0, 1))(*arguments, jnp.bool(condition)), expected)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_derivatives_of_derivatives_and_under_vmap(force, form):
    force(form)
    plain = lambda scale: jnp.sum(jnp.sin(scale * STATE["x"]) * Y) ** 2  # noqa: E731
    ours = lambda scale, condition: jnp.sum(toy(condition, STATE, scale, Y)[0]["x"]) ** 2  # noqa: E731
    expected = jax.grad(jax.grad(plain))(2.0)
    np.testing.assert_allclose(jax.grad(jax.grad(ours))(2.0, jnp.bool(True)), expected, rtol=1e-5)
    slopes = jax.vmap(jax.grad(ours), in_axes=(None, 0))(2.0, jnp.array([True, False]))
    np.testing.assert_allclose(slopes, [jax.grad(plain)(2.0), 0], rtol=1e-5)


@pytest.mark.parametrize("form", LAZY.values(), ids=LAZY)
@pytest.mark.parametrize("wrap", [lambda optimizer: optimizer, trainer_of], ids=["alone", "trainer"])
def test_the_derivative_of_training_with_accumulation(force, form, wrap):
    """Two windows of two: by the rate, and by a gradient, of which SGD takes half."""
    force(form)

    def trained(rate, grad):
        optimizer = wrap(Accumulate(SGD(learning_rate=rate), every=2))
        params = {"w": jnp.array([1.0, -2.0])}
        state = optimizer.init(params)
        scale = state.loss_scale.scale if hasattr(state, "loss_scale") else 1.0
        for factor in (1.0, 3.0, 5.0, 7.0):
            params, state, *_ = optimizer.update(params, {"w": scale * factor * grad}, state)
        return jnp.sum(params["w"] * jnp.array([1.0, 10.0]))

    grad = jnp.array([0.5, 0.25])
    by_rate, by_grad = jax.jit(jax.grad(trained, (0, 1)))(0.1, grad)
    np.testing.assert_allclose(by_rate, -8 * (0.5 + 2.5), rtol=1e-6)
    np.testing.assert_allclose(by_grad, [-0.8, -8.0], rtol=1e-6)


# Bad input.


def test_an_update_that_changes_a_type_is_refused():
    with pytest.raises(TypeError, match="must have equal"):
        update_if(jnp.bool(True), lambda x: (x.astype(jnp.int32), None), lambda x: None, jnp.ones(2))
