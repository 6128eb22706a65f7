"""The base: switches, masks, custom rules, and what a call costs in traces."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from zoo import Momentum, bits, make_params

import mithril_opt.core.optimizer as optimizer_module
from mithril_opt import SGD, AdaGrad, Adam, AdamW, LeafOptimizer, Optimizer, OptState, RMSProp, pytree

PARAMS = make_params()
GRADS = make_params(seed=1)


@pytest.mark.parametrize("off", [0, 0.0, None, np.float32(0)])
def test_a_zero_switch_means_no_slot_and_no_arithmetic(off):
    assert jax.tree.leaves(SGD(momentum=off).init(PARAMS).slots) == []
    plain = jax.make_jaxpr(lambda p, g: SGD(momentum=off, weight_decay=off).update(p, g, SGD().init(p))[0])(1.0, 1.0)
    assert str(plain) == str(jax.make_jaxpr(lambda p, g: SGD().update(p, g, SGD().init(p))[0])(1.0, 1.0))


def test_a_traced_zero_does_not_decide_structure():
    state = jax.jit(lambda momentum: SGD(momentum=momentum).init(PARAMS))(0.0)
    assert state.slots.trace["embed"].shape == (4, 3)


def test_slots_are_trees_shaped_like_the_parameters():
    state = Adam().init(PARAMS)
    assert state.slots._fields == ("mu", "nu", "nu_max")
    assert jax.tree.structure(state.slots.mu) == jax.tree.structure(PARAMS)
    assert state.slots.nu["body"]["w"].shape == (2, 3)
    assert state.slots.nu_max is None


def test_decay_mask():
    masked = AdamW(learning_rate=0.1, weight_decay=0.5, decay_mask=lambda path, leaf: path.endswith("w"))
    new, _ = masked.update(PARAMS, GRADS, masked.init(PARAMS))
    full, _ = AdamW(learning_rate=0.1, weight_decay=0.5).update(PARAMS, GRADS, masked.init(PARAMS))
    none, _ = AdamW(learning_rate=0.1, weight_decay=0.0).update(PARAMS, GRADS, masked.init(PARAMS))
    np.testing.assert_allclose(new["body"]["w"], full["body"]["w"], rtol=1e-6)
    np.testing.assert_allclose(new["embed"], none["embed"], rtol=1e-6)
    assert bits(full["embed"]) != bits(none["embed"])


def test_a_custom_rule_of_fifteen_lines_is_heavy_ball_momentum():
    """Against optax.sgd: the friction f is 1 − momentum."""
    ours, theirs = Momentum(learning_rate=0.1, friction=0.2), optax.sgd(0.1, momentum=0.8)
    params, state = PARAMS, ours.init(PARAMS)
    peer, peer_state = PARAMS, theirs.init(PARAMS)
    for _ in range(20):
        params, state = ours.update(params, GRADS, state)
        updates, peer_state = theirs.update(GRADS, peer_state)
        peer = optax.apply_updates(peer, updates)
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(peer), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-6)


def test_a_whole_tree_rule_subclasses_optimizer():
    @pytree
    class Normalized(Optimizer):
        learning_rate: float = 0.1

        def init(self, params):
            return OptState(jnp.int32(0), None, {})

        def compute_updates(self, params, grads, state):
            rate = self.get_learning_rate(state) / optax.tree.norm(grads)
            return jax.tree.map(lambda g: -rate * g, grads), state._replace(step=state.step + 1)

    optimizer = Normalized(learning_rate=lambda step: 0.5 / (step + 1))
    params, state = optimizer.update({"w": jnp.array([3.0, 4.0])}, {"w": jnp.array([3.0, 4.0])}, optimizer.init(None))
    np.testing.assert_allclose(params["w"], [2.7, 3.6], rtol=1e-6)
    assert float(optimizer.get_learning_rate(state)) == 0.25


def test_abstract_classes_cannot_be_made():
    for abstract in (Optimizer, LeafOptimizer):
        with pytest.raises(TypeError, match="abstract"):
            abstract()


def test_a_step_of_another_shape_is_an_error():
    @pytree
    class Wrong(LeafOptimizer):
        learning_rate: float = 0.1

        def init_leaf(self, param):
            return None

        def update_leaf(self, param, grad, slots, t):
            return grad[None], slots

    with pytest.raises(ValueError, match=r"Wrong.update_leaf returned the step float32\[1,4,3\] for a parameter"):
        Wrong().update({"w": jnp.ones((4, 3))}, {"w": jnp.ones((4, 3))}, Wrong().init({"w": jnp.ones((4, 3))}))


def test_a_call_outside_jit_compiles_itself_once():
    traces = []

    @pytree
    class Counting(LeafOptimizer):
        learning_rate: float = 0.1
        decay: float = 0.5

        def init_leaf(self, param):
            return jnp.zeros_like(param)

        def update_leaf(self, param, grad, slots, t):
            traces.append(param.shape)
            return grad * self.decay, slots

    params = {"a": jnp.ones(3), "b": jnp.ones(3), "c": jnp.ones((2, 2))}
    state = Counting().init(params)
    for rate in (0.1, 0.2, 0.3):
        params, state = Counting(learning_rate=rate, decay=rate).update(params, params, state)
    assert sorted(traces) == [(2, 2), (3,)]


TRANSFORMATIONS = {
    "none": (lambda f: f(1.0), 1),
    "vmap": (lambda f: jax.vmap(f)(jnp.ones(2)), 1),
    "grad": (lambda f: jax.grad(f)(1.0), 1),
    "jit": (lambda f: jax.jit(f)(1.0), 0),
    "vmap of jit": (lambda f: jax.vmap(jax.jit(f))(jnp.ones(2)), 0),
    "jit of vmap": (lambda f: jax.jit(jax.vmap(f))(jnp.ones(2)), 0),
    "scan": (lambda f: jax.lax.scan(lambda carry, x: (carry, f(x)), None, jnp.ones(2)), 0),
}


@pytest.mark.parametrize(("transformed", "compilations"), TRANSFORMATIONS.values(), ids=TRANSFORMATIONS)
def test_a_call_compiles_itself_where_nothing_else_compiles_it(transformed, compilations, monkeypatch):
    calls, compiled = [], optimizer_module._compiled_step
    monkeypatch.setattr(optimizer_module, "_compiled_step", lambda *args: calls.append(args) or compiled(*args))
    optimizer = SGD(learning_rate=0.5)
    transformed(lambda param: optimizer.update(param, param, optimizer.init(param))[0])
    assert len(calls) == compilations


def test_a_counter_set_by_hand_starts_elsewhere():
    optimizer = SGD(learning_rate=lambda step: 0.5 * step)
    state = optimizer.init(PARAMS)._replace(step=jnp.int32(4))
    assert float(optimizer.get_learning_rate(state)) == 2.0
    assert int(optimizer.update(PARAMS, GRADS, state)[1].step) == 5


def test_centered_rmsprop_survives_a_constant_gradient():
    """v − a² is then rounding alone, and negative for some of these."""
    optimizer, grads = RMSProp(learning_rate=1e-3, centered=True, decay=0.5), jnp.linspace(0.1, 2.0, 1000)
    params, state = jnp.zeros(1000), optimizer.init(jnp.zeros(1000))

    def body(carry, _):
        params, state = optimizer.update(carry[0], grads, carry[1])
        return (params, state), state.slots.nu - state.slots.mu**2

    (params, _), variances = jax.lax.scan(body, (params, state), length=200)
    assert np.min(variances) < 0
    assert np.isfinite(params).all()


def test_integer_parameters_are_passengers_with_or_without_gradients():
    params = {"w": jnp.ones(2), "count": jnp.arange(3)}
    for grad in (None, np.zeros(3, jax.dtypes.float0), jnp.ones(3)):
        new, _ = Adam().update(params, {"w": jnp.ones(2), "count": grad}, Adam().init(params))
        assert new["count"] is params["count"]


def test_importing_imports_nothing_heavier_than_jax():
    code = (
        "import sys, jax; before = set(sys.modules); import mithril_opt; "
        "print(*sorted({m.split('.')[0] for m in set(sys.modules) - before}))"
    )
    new = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"optax", "matplotlib", "tqdm", "flax", "orbax", "chex"} & set(new)


@pytest.mark.parametrize(("rule", "slot"), [(Adam, "nu"), (RMSProp, "nu"), (AdaGrad, "sum_of_squares")])
def test_squares_of_complex_gradients_are_real(rule, slot):
    params = jnp.ones(3, jnp.complex64)
    _, state = rule().update(params, 1j * params, rule().init(params))
    assert [getattr(slots, slot).dtype for slots in (rule().init(params).slots, state.slots)] == [jnp.float32, jnp.float32]


@pytest.mark.parametrize("rule", [Adam, RMSProp, AdaGrad])
def test_an_infinite_second_moment_leaves_its_element_alone(rule):
    """As the docstrings say: neither NaN, nor any other element."""
    optimizer, params = rule(learning_rate=0.1), jnp.zeros(2)
    state = optimizer.init(params)
    for grad in (1e20, 1.0, 1.0):
        params, state = optimizer.update(params, jnp.array([grad, 1.0]), state)
    assert params[0] == 0
    assert params[1] < 0
    assert "1.8e19" in rule.__doc__
