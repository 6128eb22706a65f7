"""SOAP against its definition in float64, in 16 bits and at zero, on stacks, and what it costs."""

import functools
import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxprs import branches, equations, primitives

from mithril_opt import SOAP, MultiOptimizer

STEPS = 9


def array(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape)


def gradients(*shape, seed=1):
    """Of every step, of sizes far apart."""
    return [array(*shape, seed=seed + i) * (1, 0.05, 3)[i % 3] for i in range(STEPS)]


def average(values, beta):
    """The moving average from zero, as the sum that it stands for."""
    return (1 - beta) * sum(beta ** (len(values) - 1 - i) * value for i, value in enumerate(values))


def along(x, matrices):
    """`x` multiplied by a matrix along every axis that has one."""
    for axis, matrix in matrices.items():
        x = np.moveaxis(np.tensordot(matrix, x, axes=(1, axis)), 0, axis)
    return x


def soap(p, grads, rate, beta1=0.95, beta2=0.95, every=10, epsilon=1e-8, decay=0.01, shampoo_beta=None, longest=10000):
    """p after each step. The first moment is kept where it was taken, and is only looked at from the basis."""
    unfold = lambda g, axis: np.moveaxis(g, axis, 0).reshape(g.shape[axis], -1)  # noqa: E731
    axes = [axis for axis, size in enumerate(p.shape) if p.ndim > 1 and size <= longest]
    bases, v = {}, np.zeros_like(p)
    for k, g in enumerate(grads):
        if k > 0:
            turn = {axis: q.T for axis, q in bases.items()}
            v = beta2 * v + (1 - beta2) * along(g, turn) ** 2
            u = along(along(average(grads[1 : k + 1], beta1), turn) / (np.sqrt(v) + epsilon), bases)
            p = p - rate(k) * (u * np.sqrt(1 - beta2**k) / (1 - beta1**k) + decay * p)
        for axis in axes:
            products = average([unfold(h, axis) @ unfold(h, axis).T for h in grads[: k + 1]], shampoo_beta or beta2)
            if k == 0:
                bases[axis] = np.linalg.eigh(products)[1][:, ::-1]
            elif k % every == 0:
                q = bases[axis]
                order = np.argsort(-np.diag(q.T @ products @ q))
                v, bases[axis] = np.take(v, order, axis), np.linalg.qr(products @ q[:, order])[0]
        yield p


PAPERS = {SOAP: soap}


def train(optimizer, params, grads):
    """The parameters after every step."""
    state, update, trajectory = optimizer.init(params), jax.jit(optimizer.update), []
    for grad in grads:
        params, state = update(params, grad, state)
        trajectory.append(params)
    return trajectory


SHAPES = [(4, 4), (2, 3, 4), (5,), ()]
CASES = {
    "defaults": ({}, {}),
    "every": (dict(every=3, weight_decay=0.0), dict(every=3, decay=0)),
    "always": (dict(every=1, weight_decay=0.5), dict(every=1, decay=0.5)),
    "rates": (
        dict(every=2, beta1=0.5, beta2=0.9, shampoo_beta=0.75, epsilon=0.1),
        dict(every=2, beta1=0.5, beta2=0.9, shampoo_beta=0.75, epsilon=0.1),
    ),
    "short": (dict(every=2, max_precond_dim=3), dict(every=2, longest=3)),
    "scheduled": (dict(learning_rate=lambda step: 0.125 * 0.5**step), dict(rate=lambda k: 0.125 * 0.5**k)),
}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_definition_in_float64(case, shape):
    ours, theirs = CASES[case]
    with jax.enable_x64(True):
        actual = train(SOAP(**{"learning_rate": 0.0625, **ours}), jnp.asarray(array(*shape)), gradients(*shape))
    expected = soap(array(*shape), gradients(*shape), **{"rate": lambda k: 0.0625, **theirs})
    np.testing.assert_allclose(actual, np.stack([*expected]), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("case", CASES)
def test_definition_in_float32(case):
    ours, theirs = CASES[case]
    actual = train(SOAP(**{"learning_rate": 0.0625, **ours}), *jax.tree.map(np.float32, (array(4, 4), gradients(4, 4))))
    expected = soap(array(4, 4), gradients(4, 4), **{"rate": lambda k: 0.0625, **theirs})
    np.testing.assert_allclose(actual, np.stack([*expected]), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize(("axes", "axis"), [(0, 0), (-1, 2), ((1, 0), None)])
def test_a_stack_of_layers_equals_the_layers(axes, axis):
    """Each has bases of its own. With two axes the stack is of two rows of two."""
    layers = [(array(4, 4, seed=i), [grad * 10.0**i for grad in gradients(4, 4, seed=10 * i)]) for i in range(4)]
    stack = lambda xs: np.stack(xs, axis) if axis is not None else np.stack(xs).reshape(2, 2, 4, 4)  # noqa: E731
    optimizer = functools.partial(SOAP, 0.0625, every=2)
    with jax.enable_x64(True):
        apart = [train(optimizer(), jnp.asarray(p), grads)[-1] for p, grads in layers]
        params, grads = stack([p for p, _ in layers]), [stack(rows) for rows in zip(*(g for _, g in layers), strict=True)]
        together = train(optimizer(unit_axes=axes), jnp.asarray(params), grads)[-1]
    np.testing.assert_allclose(together, stack(apart), rtol=1e-11, atol=1e-11)


def after(optimizer, params, count):
    """The state after some updates."""
    state = optimizer.init(params)
    for grad in gradients(*params.shape)[:count]:
        params, state = optimizer.update(params, jnp.asarray(grad, params.dtype), state)
    return params, state


@pytest.mark.parametrize("bad", [0, 2])
@pytest.mark.parametrize("size", [1e20, 1e30])
def test_a_gradient_whose_squares_overflow_spoils_no_basis(size, bad):
    optimizer, grads = SOAP(0.0625, every=2), [np.float32(grad) for grad in gradients(4, 4)]
    grads[bad] = grads[bad] * np.float32(size)
    params, state = jnp.asarray(array(4, 4), jnp.float32), optimizer.init(jnp.ones((4, 4)))
    for i, grad in enumerate(grads):
        params, state = optimizer.update(params, grad, state)
        assert np.isfinite(params).all()
        assert np.isfinite(jnp.stack([*state.slots.outer, *state.slots.basis])).all()
        for q in state.slots.basis if i > 0 else ():
            np.testing.assert_allclose(q @ q.T, np.eye(4), atol=1e-5)


@pytest.mark.parametrize("count", [1, 3, 4])
def test_signs_of_the_bases_do_not_matter(count):
    optimizer = SOAP(0.1, every=3)
    params, state = after(optimizer, jnp.asarray(array(4, 4), jnp.float32), count)
    signs = jnp.asarray([1.0, -1.0, -1.0, 1.0])
    left, right = state.slots.basis
    slots = state.slots._replace(mu=state.slots.mu * signs[:, None], basis=(left * signs[None], right))
    grad = jnp.asarray(array(4, 4, seed=99), jnp.float32)
    flipped, _ = optimizer.update(params, grad, state._replace(slots=slots))
    np.testing.assert_allclose(flipped, optimizer.update(params, grad, state)[0], rtol=1e-5, atol=1e-6)


def test_the_first_gradient_may_be_zero():
    """The eigenvectors of nothing are those of the identity: then it is Adam, until a basis is due."""
    grads = [np.zeros((3, 3), "float32"), *(np.float32(array(3, 3, seed=i)) for i in range(3))]
    params = jnp.ones((3, 3))
    matrices = train(SOAP(0.1), params, grads)
    elements = train(SOAP(0.1, max_precond_dim=1), params, grads)
    np.testing.assert_array_equal(matrices[0], params)
    np.testing.assert_allclose(matrices, elements, rtol=1e-6)


def test_a_leaf_begins_with_its_own_first_gradient():
    """Another one is three updates ahead, and its bases are renewed when they are due."""
    optimizer, grads = SOAP(0.0625, every=2), [np.float32(grad) for grad in gradients(4, 4)]
    start = jnp.asarray(array(4, 4), jnp.float32)
    expected = train(optimizer, start, grads)
    pairs = zip([None, None, None, *grads[:-3]], grads, strict=True)
    actual = train(optimizer, {"late": start, "w": start}, [{"late": late, "w": grad} for late, grad in pairs])
    np.testing.assert_allclose([tree["late"] for tree in actual[3:]], expected[:-3], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose([tree["w"] for tree in actual], expected, rtol=1e-4, atol=1e-5)


def test_bases_of_one_size_are_renewed_together_and_in_a_branch():
    params = {"a": jnp.ones((3, 3)), "b": jnp.ones((3, 2)), "c": jnp.ones(3)}
    jaxpr = jax.make_jaxpr(SOAP().update)(params, params, SOAP().init(params)).jaxpr
    inside = [sum((primitives(branch) for branch in cond), Counter()) for cond in branches(jaxpr)]
    for name in ("eigh", "qr"):
        assert primitives(jaxpr)[name] == 2
        assert sorted(found[name] for found in inside) == [0, 2]


def test_all_products_are_in_full_precision():
    params = {"w": jnp.ones((3, 4))}
    jaxpr = jax.make_jaxpr(SOAP().update)(params, params, SOAP().init(params)).jaxpr
    products = [eqn for eqn in equations(jaxpr) if eqn.primitive.name == "dot_general"]
    assert products
    assert {eqn.params["precision"] for eqn in products} == {(jax.lax.Precision.HIGHEST,) * 2}


def test_bytes_for_a_parameter():
    size = lambda optimizer, *shape: sum(leaf.nbytes for leaf in jax.tree.leaves(optimizer.init(jnp.ones(shape)).slots))  # noqa: E731
    assert size(SOAP(), 10, 10) == 24 * 100 + 4
    assert size(SOAP(), 10, 20) == 8 * 200 + 8 * (100 + 400) + 4
    assert size(SOAP(max_precond_dim=15), 10, 20) == 8 * 200 + 8 * 100 + 4
    assert size(SOAP(unit_axes=0), 10, 4, 4) == 24 * 160 + 4
    assert size(SOAP(), 100) == 800 + 4


def test_a_description_counts_the_bases():
    optimizer = MultiOptimizer({"soap": SOAP()}, groups={"soap": ...})
    assert [row[-1] for row in optimizer.describe({"b": jnp.ones(100), "w": jnp.ones((10, 10))}).rows] == [804, 2404]


@pytest.mark.parametrize("value", [0, 1.5, True, "all"])
def test_longest_axes_that_are_none(value):
    with pytest.raises(ValueError, match=f"SOAP: max_precond_dim must be an integer of at least 1, got {value!r}"):
        SOAP(max_precond_dim=value)


def test_complex_parameters():
    with pytest.raises(ValueError, match="at 'w': SOAP takes no complex parameters, got complex64"):
        SOAP().init({"w": jnp.ones((2, 2), jnp.complex64)})


def test_bases_of_two_sizes_inside_shard_map():
    """One decomposition after the other, on devices that have a layer each."""
    mesh, optimizer = jax.make_mesh((2,), ("x",), axis_types=(AxisType.Auto,)), SOAP(0.1, every=1, unit_axes=0)
    params = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4)), jnp.float32)
    state = optimizer.init(params)
    specs = jax.tree.map(lambda leaf: P("x") if leaf.ndim == 3 else P(), (params, state))
    update = jax.jit(jax.shard_map(optimizer.update, mesh=mesh, in_specs=(specs[0], *specs), out_specs=specs))
    apart, together = (params, state), (params, state)
    for _ in range(3):
        apart, together = update(apart[0], params, apart[1]), jax.jit(optimizer.update)(together[0], params, together[1])
    np.testing.assert_allclose(apart[0], together[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def test_four_devices_compute_what_one_does_and_keep_the_layers_apart(axis_type):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(axis_type,), devices=jax.devices()[:4])
    optimizer, spec = SOAP(0.1, every=2, unit_axes=0), P("data")
    rows = [{name: np.float32(array(8, 4, 4, seed=10 * j + i)) for j, name in enumerate("ab")} for i in range(6)]
    expected = train(optimizer, jax.tree.map(jnp.asarray, rows[0]), rows[1:])[-1]
    with jax.set_mesh(mesh):
        params, *grads = (jax.device_put(row, NamedSharding(mesh, spec)) for row in rows)
        state = optimizer.init(params)
        for leaf in jax.tree.leaves((state.slots.outer, state.slots.basis)):
            assert leaf.sharding.is_equivalent_to(NamedSharding(mesh, spec), leaf.ndim)
        text = jax.jit(optimizer.update).lower(params, grads[0], state).compile().as_text()
        actual = train(optimizer, params, grads)[-1]
    assert not re.findall(r" (?:all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)\(", text)
    for name in expected:
        np.testing.assert_allclose(actual[name], expected[name], rtol=1e-4, atol=1e-5)
