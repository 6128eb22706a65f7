"""Sharpness-aware minimization: against the formula in float64, against optax live, and under the trainer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from steps import batch, mlp, mlp_params, squared_error, trainer_of
from zoo import bits, make_params

from mithril_opt import SAM, SGD, Accumulate, Adam, Frozen, MultiOptimizer

PARAMS, (X, Y) = mlp_params(), batch()


def loss_fn(params, x, y):
    return squared_error(params, x, y)[0]


def assert_close(actual, expected, rtol=1e-6, atol=1e-7):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=rtol, atol=atol)


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("adaptive", [False, True])
def test_the_perturbation_solves_its_problem(dtype, adaptive):
    """ε maximizes Re⟨ε, ∇L⟩ on the sphere ‖ε‖ = ρ (adaptive: ‖ε / |p|‖ = ρ): it lies on it, and reaches ρ ‖∇L‖."""
    with jax.enable_x64(True):
        params, grads = make_params(dtype), make_params(dtype, 1)
        there = SAM(rho=0.3, adaptive=adaptive).perturb(params, grads)
        flat = lambda tree: np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])  # noqa: E731
        p, g, ε = flat(params), np.conj(flat(grads)), flat(there) - flat(params)
        weight = np.abs(p) if adaptive else 1.0
        np.testing.assert_allclose(np.linalg.norm(ε / weight), 0.3, rtol=1e-12)
        np.testing.assert_allclose(np.sum(np.conj(ε) * g), 0.3 * np.linalg.norm(weight * g), rtol=1e-12)


def test_equals_optax_live():
    """contrib.sam in its opaque form, over ten updates."""
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), PARAMS)
        x, y = X.astype(jnp.float64), Y.astype(jnp.float64)
        loss = lambda params: jnp.mean((mlp(params, x) - y) ** 2)  # noqa: E731
        adversary = optax.chain(optax.contrib.normalize(), optax.sgd(0.1))
        peer = optax.contrib.sam(optax.sgd(0.05), adversary, sync_period=2, opaque_mode=True)
        optimizer, step = SGD(learning_rate=0.05), SAM(rho=0.1).value_and_grad(loss)
        own, state, other, theirs = params, optimizer.init(params), params, peer.init(params)
        gradient = jax.grad(loss)
        for _ in range(10):
            _, grads = step(own)
            own, state = optimizer.update(own, grads, state)
            with jax.numpy_dtype_promotion("standard"):
                updates, theirs = peer.update(gradient(other), theirs, other, grad_fn=lambda p, _: gradient(p))
                other = optax.apply_updates(other, updates)
        assert_close(own, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("has_aux", [False, True])
def test_the_loss_is_that_of_the_parameters_and_the_gradient_that_of_the_neighbour(has_aux):
    fun = squared_error if has_aux else loss_fn
    value, grads = SAM(rho=0.1).value_and_grad(fun, has_aux=has_aux)(PARAMS, X, y=Y)
    here, first = jax.value_and_grad(fun, has_aux=has_aux)(PARAMS, X, Y)
    assert_close(value, here)
    there = SAM(rho=0.1).perturb(PARAMS, first)
    assert_close(grads, jax.grad(lambda p: loss_fn(p, X, Y))(there), rtol=1e-5)
    assert float(loss_fn(there, X, Y)) > float(here[0] if has_aux else here)


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "complex64", "bfloat16"])
def test_zero_gradients_perturb_nothing(adaptive, dtype):
    params = make_params(dtype)
    zeros = jax.tree.map(jnp.zeros_like, params)
    assert bits(SAM(adaptive=adaptive).perturb(params, zeros)) == bits(params)
    if adaptive:
        assert bits(SAM(adaptive=True).perturb(zeros, params)) == bits(zeros)
    # Its derivative is finite there, too.
    size = lambda grads: sum(jnp.sum(jnp.abs(leaf) ** 2) for leaf in jax.tree.leaves(SAM().perturb(params, grads)))  # noqa: E731
    if dtype == "float32":
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.grad(size)(zeros)))


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1.0, 1e12, 1e30])
@pytest.mark.parametrize("adaptive", [False, True])
def test_the_scale_of_the_gradients_does_not_matter(scale, adaptive):
    params, grads = make_params(), make_params(seed=1)
    sam = SAM(rho=0.5, adaptive=adaptive)
    assert_close(
        sam.perturb(params, jax.tree.map(lambda g: g * scale, grads)), sam.perturb(params, grads), rtol=2e-6, atol=2e-6
    )


@pytest.mark.parametrize("bad", [jnp.inf, jnp.nan])
def test_a_gradient_that_is_not_finite_spoils_all(bad):
    there = SAM().perturb({"a": jnp.ones(2), "b": jnp.ones(2)}, {"a": jnp.array([bad, 0.0]), "b": jnp.ones(2)})
    assert np.isnan(jax.tree.leaves(there)).all()


def test_what_has_no_gradient_is_not_perturbed_and_does_not_count():
    params = {"a": jnp.array([3.0]), "b": jnp.array([1.0]), "n": 3, "f": jnp.tanh}
    grads = {"a": jnp.array([2.0]), "b": None, "n": None, "f": None}
    there = SAM(rho=0.5).perturb(params, grads)
    assert float(there["a"][0]) == 3.5
    assert all(there[name] is params[name] for name in ("b", "n", "f"))
    with pytest.raises(ValueError, match=r"at 'a' the parameter is float32\[1\] but the gradient is float32\[2\]"):
        SAM().perturb(params, {**grads, "a": jnp.ones(2)})


# Under the trainer.


def scaled_step(trainer, sam, params, state):
    loss, grads = sam.value_and_grad(loss_fn, trainer=trainer)(params, state, X, Y)
    return trainer.update(params, grads, state, loss=loss)


@pytest.mark.parametrize("policy", ["float32", "float16"])
def test_the_loss_scale_does_not_change_the_step(policy):
    """ε comes from unscaled gradients: to a power of two nothing changes, to the last bit in float32."""
    results = []
    for scale in (1.0, 2.0**4, 2.0**10):
        trainer = trainer_of(SGD(learning_rate=0.1), policy=policy, loss_scale=scale)
        params, _, success = scaled_step(trainer, SAM(rho=0.1), PARAMS, trainer.init(PARAMS))
        assert bool(success)
        results.append(params)
    for other in results[1:]:
        assert_close(other, results[0], rtol=2e-2 if policy == "float16" else 0, atol=2e-3 if policy == "float16" else 0)
    alone = SGD(learning_rate=0.1)
    _, grads = SAM(rho=0.1).value_and_grad(loss_fn)(PARAMS, X, Y)
    expected, _ = alone.update(PARAMS, grads, alone.init(PARAMS))
    assert_close(results[0], expected, rtol=2e-2 if policy == "float16" else 1e-6, atol=2e-3 if policy == "float16" else 1e-7)


@pytest.mark.parametrize("leaf", ["w1", "b1", "w2"])
def test_an_overflow_of_the_first_gradient_skips_the_step(leaf):
    """Whatever the loss makes of a parameter that is not finite: here it does not see it the second time."""

    def blind(params, x, y):
        return loss_fn(params, x, y) + jnp.sum(jnp.where(jnp.isfinite(params[leaf]), params[leaf], 0)).astype(jnp.float32) * 6e4

    trainer = trainer_of(Adam(learning_rate=0.1), loss_scale=2.0**20, max_loss_scale=2.0**20)
    state = trainer.init(PARAMS)
    loss, grads = SAM().value_and_grad(blind, trainer=trainer)(PARAMS, state, X, Y)
    params, after, success = trainer.update(PARAMS, grads, state, loss=loss)
    assert np.isfinite(float(loss))
    assert not bool(success)
    assert bits((params, after.optimizer)) == bits((PARAMS, state.optimizer))
    assert (float(after.loss_scale.scale), int(after.loss_scale.bad_input)) == (2.0**19, 0)


def test_accumulated_it_is_the_mean_over_micro_batches():
    sam, halves = SAM(rho=0.1), [(X[:4], Y[:4]), (X[4:], Y[4:])]
    trainer = trainer_of(Accumulate(SGD(learning_rate=0.1), every=2), policy="float32")
    params, state = PARAMS, trainer.init(PARAMS)
    for x, y in halves:
        loss, grads = sam.value_and_grad(loss_fn, trainer=trainer)(params, state, x, y)
        params, state, _ = trainer.update(params, grads, state, loss=loss)
    each = [sam.value_and_grad(loss_fn)(PARAMS, x, y)[1] for x, y in halves]
    expected = jax.tree.map(lambda p, a, b: p - 0.1 * (a + b) / 2, PARAMS, *each)
    assert_close(params, expected)


def test_micro_batches_perturb_by_the_whole_batch():
    trainer = trainer_of(SGD(), policy="float32")
    run = SAM(rho=0.1).value_and_grad(loss_fn, trainer=trainer, micro_batches=2)
    loss, grads = run(PARAMS, trainer.init(PARAMS), X, Y)
    expected = SAM(rho=0.1).value_and_grad(loss_fn)(PARAMS, X, Y)
    assert_close((loss, grads), expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="SAM: micro_batches are the trainer's; without one they must be 1, got 2"):
        SAM().value_and_grad(loss_fn, micro_batches=2)


def test_frozen_groups_are_not_perturbed():
    multi = MultiOptimizer({"fixed": Frozen(), "rest": SGD(learning_rate=0.1)}, groups={"fixed": "w1", "rest": ...})
    trainer, sam = trainer_of(multi, policy="float32"), SAM(rho=0.5)
    _, grads = sam.value_and_grad(loss_fn, trainer=trainer)(PARAMS, trainer.init(PARAMS), X, Y)
    first = {**jax.grad(loss_fn)(PARAMS, X, Y), "w1": None}
    there = sam.perturb(PARAMS, first)
    assert there["w1"] is PARAMS["w1"]
    assert_close(grads, jax.grad(loss_fn)(there, X, Y))
    assert bits(sam.perturb(PARAMS, multi.drop_frozen(PARAMS, jax.grad(loss_fn)(PARAMS, X, Y)))) == bits(there)


def test_one_trace_whatever_the_radius_and_a_sweep():
    traces = []

    @jax.jit
    def step(sam, params):
        traces.append(None)
        return sam.perturb(params, params)

    alone = [step(SAM(rho=rho), PARAMS) for rho in (0.1, 0.2)]
    assert len(traces) == 1
    swept = jax.vmap(lambda rho: SAM(rho=rho).perturb(PARAMS, PARAMS))(jnp.array([0.1, 0.2]))
    for i in range(2):
        assert_close(jax.tree.map(lambda leaf, i=i: leaf[i], swept), alone[i])
    assert jax.tree.leaves(SAM(rho=0.3, adaptive=True)) == [0.3]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: SAM(rho=-1.0), ValueError, r"SAM: rho must be a number in \[0, inf\), got -1.0"),
        (lambda: SAM(adaptive=1), TypeError, "SAM: adaptive must be True or False"),
        (lambda: SAM(rho=lambda step: 0.1), TypeError, "SAM: rho must be a number"),
    ],
)
def test_bad_input(make, error, message):
    with pytest.raises(error, match=message):
        make()
