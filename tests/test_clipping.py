"""Clipping and the global norm, on the cases in which other libraries are quietly wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from zoo import bits, make_params

import mithril_opt.core.norm as norms
from mithril_opt import SGD, Clip, clip_gradients, global_norm
from mithril_opt.core.norm import in_complex64, in_float32, in_float64

NORMS = [
    ([1e20] * 4, jnp.float32, 2e20),
    ([1e38], jnp.float32, 1e38),
    ([3e38], jnp.float32, 3e38),
    ([300.0] * 4, jnp.float16, 600.0),
    ([16.0] * 4096, jnp.float16, 1024.0),
    ([2.0**39] * 10_000, jnp.float32, 2.0**39 * 100),
    ([2.0**41] * 10_000, jnp.float32, 2.0**41 * 100),
    ([3.0, 4.0], jnp.bfloat16, 5.0),
    ([1e-15, 1e-15], jnp.float32, 2**0.5 * 1e-15),
    ([0.0, 0.0], jnp.float32, 0.0),
    ([], jnp.float32, 0.0),
    ([3 + 4j], jnp.complex64, 5.0),
    ([3e30 + 4e30j], jnp.complex64, 5e30),
]


@pytest.mark.parametrize("on_device", [in_float32, in_complex64, in_float64])
@pytest.mark.parametrize(("values", "dtype", "expected"), [*NORMS, (3e38, jnp.float32, 3e38)])
def test_norm_as_each_kind_of_device_sums_it(on_device, values, dtype, expected):
    """Compiled, because XLA would make s² x² of (s x)²; two of a shape, because GPUs treat them together."""
    on_device = jax.jit(on_device)
    leaf = jnp.asarray(values, jnp.float32 if dtype != jnp.complex64 else dtype)
    norm, scaled, bad = on_device([[leaf.real, leaf.imag]] if dtype == jnp.complex64 else [[leaf]])
    np.testing.assert_allclose(norm, expected, rtol=1e-6)
    np.testing.assert_allclose(scaled, expected / 2**64, rtol=1e-6)
    assert bad.tolist() == [0]
    for bad in (jnp.inf, jnp.nan, -jnp.inf):
        norm, scaled, bad = on_device([[jnp.ones(2)], [jnp.array([1.0, bad])]])
        assert bad.tolist() == [0, 1]
        assert not np.isfinite(norm)
        assert not np.isfinite(scaled)


@pytest.mark.parametrize(("values", "dtype", "expected"), NORMS)
def test_norm(values, dtype, expected):
    norm = global_norm({"w": jnp.asarray(values, dtype)})
    assert (norm.dtype, norm.shape, norm.weak_type) == (jnp.float32, (), False)
    np.testing.assert_allclose(norm, expected, rtol=1e-6)


@pytest.mark.parametrize(
    "leaves", [[jnp.ones(1024), *[jnp.ones(())] * 600], [jnp.full(64, 0.01)] * 400, [jnp.full((), 3.0)] * 700]
)
def test_norm_across_many_bfloat16_leaves(leaves):
    leaves = [leaf.astype(jnp.bfloat16) for leaf in leaves]
    exact = np.sqrt(sum(np.sum(np.asarray(leaf, np.float64) ** 2) for leaf in leaves))
    np.testing.assert_allclose(global_norm(leaves), exact, rtol=1e-6)


def test_big_and_ordinary_elements_together():
    values = np.array([2.0**40, 2.0**40 * 1.01, 2.0**39, 1.0, 1e12])
    np.testing.assert_allclose(global_norm(jnp.asarray(values, jnp.float32)), np.sqrt(np.sum(values**2)), rtol=1e-6)


def test_norm_agrees_with_optax_on_random_trees():
    tree = make_params()
    np.testing.assert_allclose(global_norm(tree), optax.tree.norm(tree), rtol=1e-6)


@pytest.mark.parametrize("bad", [jnp.inf, -jnp.inf, jnp.nan])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_nothing_hides_a_nonfinite_element(bad, dtype):
    grads = {"a": jnp.asarray([bad, 1.0], dtype), "b": jnp.ones(3)}
    assert not np.isfinite(global_norm(grads))
    assert bits(clip_gradients(grads, clip_norm=1.0)) == bits(grads)


def test_leaves_that_do_not_count():
    tree = {"w": jnp.array([3.0, 4.0]), "n": jnp.arange(5), "none": None, "f0": np.zeros(3, jax.dtypes.float0), "flag": True}
    assert float(global_norm(tree)) == 5.0
    clipped = clip_gradients(tree, clip_norm=1.0)
    assert all(clipped[name] is tree[name] for name in ("n", "none", "f0", "flag"))


@pytest.mark.parametrize("values", [[1e20] * 4, [300.0] * 4, [1e38], [3.0, 4.0]])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_clips_to_the_norm_in_the_gradients_dtype(values, dtype):
    if max(values) < float(jnp.finfo(dtype).max):
        grads = jnp.asarray(values, dtype)
        clipped = clip_gradients(grads, clip_norm=1.0)
        assert clipped.dtype == dtype
        np.testing.assert_allclose(global_norm(clipped), 1.0, rtol=1e-6 if dtype == jnp.float32 else 4e-3)


def test_exact_identity_at_and_below_the_threshold():
    grads = {"w": jnp.array([3.0, 4.0])}
    assert bits(clip_gradients(grads, clip_norm=5.0)) == bits(grads)
    assert bits(clip_gradients(grads, clip_norm=jnp.inf)) == bits(grads)
    assert bits(clip_gradients(make_params(), clip_norm=1e9)) == bits(make_params())


@pytest.mark.parametrize("size", [1e-30, 1e-20, 0.5, 4.0, 1e30])
def test_the_derivative_of_a_clip(size):
    """That of the identity below the bound; above it that of x / |x|, which leaves nothing along x."""
    x = jnp.array([0.6, 0.8]) * size
    slope = jax.jacobian(lambda x: clip_gradients(x, clip_norm=1.0))(x)
    expected = np.eye(2) if size < 1 else np.array([[0.64, -0.48], [-0.48, 0.36]]) / size
    np.testing.assert_allclose(slope, expected, rtol=1e-5, atol=1e-6 / max(size, 1))


def test_zero_gradients_and_a_zero_bound_give_zero():
    zeros = jax.tree.map(jnp.zeros_like, make_params())
    assert bits(clip_gradients(zeros, clip_norm=1.0)) == bits(zeros)
    assert bits(clip_gradients(zeros, clip_norm=0.0)) == bits(zeros)
    assert bits(clip_gradients(make_params(), clip_norm=0.0)) == bits(jax.tree.map(lambda leaf: leaf * 0.0, make_params()))


def test_clip_value():
    grads = {"w": jnp.array([-3.0, 0.5, jnp.inf]), "h": jnp.array([5.0, -0.25], jnp.float16), "z": jnp.array([3 - 4j])}
    clipped = clip_gradients(grads, clip_value=1.0)
    np.testing.assert_array_equal(clipped["w"], [-1.0, 0.5, 1.0])
    np.testing.assert_array_equal(clipped["h"], np.array([1.0, -0.25], np.float16))
    np.testing.assert_array_equal(clipped["z"], [1 - 1j])
    assert clipped["h"].dtype == jnp.float16


def test_agrees_with_optax_on_random_trees():
    grads = make_params()
    for bound in (0.1, 1.0, 2.0, 100.0):
        expected, _ = optax.clip_by_global_norm(bound).update(grads, None)
        for ours, theirs in zip(*map(jax.tree.leaves, (clip_gradients(grads, clip_norm=bound), expected)), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_a_traced_bound_compiles_once_and_vmaps():
    traces = []

    @jax.jit
    def clip(bound):
        traces.append(None)
        return clip_gradients(make_params(), clip_norm=bound)

    for bound in (0.1, 1.0, 10.0):
        np.testing.assert_allclose(global_norm(clip(bound)), min(bound, float(global_norm(make_params()))), rtol=1e-6)
    assert len(traces) == 1
    swept = jax.vmap(lambda bound: global_norm(clip_gradients(make_params(), clip_norm=bound)))(jnp.array([0.1, 1.0]))
    np.testing.assert_allclose(swept, [0.1, 1.0], rtol=1e-6)


def test_derivatives():
    vector = jnp.array([3.0, 4.0])
    np.testing.assert_allclose(jax.grad(global_norm)(vector), [0.6, 0.8], rtol=1e-6)
    np.testing.assert_array_equal(jax.grad(global_norm)(jnp.zeros(2)), [0.0, 0.0])
    np.testing.assert_allclose(jax.grad(lambda x: global_norm(x * 1e30))(vector), [0.6e30, 0.8e30], rtol=1e-6)
    slopes = jax.jacobian(lambda x: clip_gradients(x, clip_norm=1.0))(vector)
    np.testing.assert_allclose(slopes, (np.eye(2) - np.outer([0.6, 0.8], [0.6, 0.8])) / 5, atol=1e-7)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_sharded_gradients_need_one_collective(axis_type):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    tree = {name: jnp.asarray(np.random.default_rng(i).normal(size=(16, 3)), jnp.float32) for i, name in enumerate("abc")}
    sharded = jax.device_put(tree, NamedSharding(mesh, PartitionSpec("data")))
    compiled = jax.jit(lambda grads: clip_gradients(grads, clip_norm=1.0)).lower(sharded).compile()
    assert compiled.as_text().count(" all-reduce(") == 1
    assert "all-gather" not in compiled.as_text()
    for ours, expected in zip(*map(jax.tree.leaves, (compiled(sharded), clip_gradients(tree, clip_norm=1.0))), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one of clip_value and clip_norm"),
        ({"clip_value": 1.0, "clip_norm": 1.0}, "exactly one of clip_value and clip_norm, got clip_value=1.0, clip_norm=1.0"),
        ({"clip_norm": -1.0}, r"clip_norm must be a number in \[0, inf\], got -1.0"),
        ({"clip_value": -1}, r"clip_value must be a number in \[0, inf\], got -1"),
        ({"clip_norm": float("nan")}, r"clip_norm must be a number in \[0, inf\], got nan"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        clip_gradients(jnp.ones(3), **arguments)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-(2.0**127), 2.0**127, width=32), min_size=8, max_size=8), st.floats(1e-3, 1e6))
def test_any_finite_gradient_is_clipped_without_overflow(values, bound):
    grads = jnp.asarray(values, jnp.float32)
    exact = np.sqrt(np.sum(np.asarray(grads, np.float64) ** 2))
    clipped = clip_gradients(grads, clip_norm=bound)
    assert np.isfinite(clipped).all()
    if 1e-15 < exact < 3.4e38:
        np.testing.assert_allclose(global_norm(grads), exact, rtol=1e-5)
        np.testing.assert_allclose(global_norm(clipped), min(exact, bound), rtol=1e-5)


@pytest.mark.parametrize("other", [0.5, np.inf, np.nan])
def test_what_is_not_clipped_comes_back_to_the_bit(other):
    """A product with 1 would flush subnormal numbers to 0."""
    grads = {"tiny": jnp.array([1e-40, -1e-42]), "other": jnp.array([other])}
    assert bits(clip_gradients(grads, clip_norm=1.0)) == bits(grads)


@pytest.mark.parametrize(
    ("bound", "error", "message"),
    [
        (np.float32(-1), ValueError, r"clip_norm must be a number in \[0, inf\]"),
        (np.int32(-1), ValueError, r"clip_norm must be a number in \[0, inf\]"),
        (True, TypeError, r"clip_norm must be a number in \[0, inf\], got True of type bool"),
        ("1", TypeError, r"clip_norm must be a number in \[0, inf\], got '1' of type str"),
        (np.ones(2), ValueError, r"clip_norm must be a scalar, got shape \(2,\)"),
    ],
)
def test_bounds_that_are_none(bound, error, message):
    with pytest.raises(error, match=message):
        clip_gradients({"w": jnp.ones(2)}, clip_norm=bound)


# The largest finite gradients.


@pytest.mark.parametrize("values", [[3e38] * 4, [3.4e38] * 1000, [1e38, -3e38, 1.0, 1e-30]])
@pytest.mark.parametrize("on_device", ["here", "elsewhere"])
def test_clipping_never_switches_off_for_finite_gradients(values, on_device, monkeypatch):
    if on_device == "elsewhere":
        monkeypatch.setattr(norms, "in_float64", in_float32)
        jax.clear_caches()
    grads = {"w": jnp.asarray(values, jnp.float32), "b": jnp.ones(2)}
    clipped = clip_gradients(grads, clip_norm=2.0)
    exact = np.float64(values) * 2 / np.sqrt(np.sum(np.float64(values) ** 2) + 2)
    np.testing.assert_allclose(clipped["w"], exact, rtol=2e-6, atol=1e-37)
    jax.clear_caches()


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e38, 1e39, 1e150, 1e300, 1e308])
def test_float64_gradients_are_clipped_whatever_their_size(scale):
    with jax.enable_x64(True):
        values = np.array([0.5, -0.25, 1.0, 0.125]) * scale
        grads = {"a": jnp.asarray(values), "b": jnp.asarray([1.0], jnp.float32)}
        clipped = clip_gradients(grads, clip_norm=0.5)
        norm = np.sqrt(np.sum((values / scale) ** 2) + (1 / scale) ** 2) if scale > 1e-3 else 1 / scale
        np.testing.assert_allclose(clipped["a"], values / scale * (0.5 / norm), rtol=1e-12 if scale >= 1 else 1e-6)
        assert clipped["a"].dtype == jnp.float64


@pytest.mark.parametrize("size", [1e-20, 1.0, 1e19, 1e30, 8e37, 2e38, 3e38])
def test_the_derivative_of_the_norm_up_to_the_largest_float32(size):
    tree = {"a": jnp.array([0.6, 0.0], jnp.float32) * size, "b": jnp.float32(0.8 * size)}
    slope = jax.grad(global_norm)(tree)
    np.testing.assert_allclose(slope["a"], [0.6, 0.0], rtol=1e-5)
    np.testing.assert_allclose(slope["b"], 0.8, rtol=1e-5)


def test_the_derivative_of_the_norm_of_a_complex_leaf_is_the_conjugate():
    z = jnp.array([3.0 + 4.0j, -1.0j])
    expected = jax.grad(lambda z: jnp.sqrt(jnp.sum(jnp.real(z) ** 2 + jnp.imag(z) ** 2)))(z)
    np.testing.assert_allclose(jax.grad(global_norm)(z), expected, rtol=1e-6)


def test_derivatives_of_complex_and_16_bit_leaves_together():
    tree = {"z": jnp.array([3.0 + 4.0j]), "h": jnp.ones(2, jnp.bfloat16), "f": jnp.ones(2)}
    for loss in (global_norm, lambda tree: jnp.real(clip_gradients(tree, clip_norm=1.0)["z"]).sum()):
        slope = jax.grad(loss)(tree)
        assert {name: leaf.dtype for name, leaf in slope.items()} == {name: leaf.dtype for name, leaf in tree.items()}
        assert all(np.isfinite(np.asarray(leaf, np.complex64)).all() for leaf in slope.values())


@pytest.mark.parametrize("loss", [lambda g: global_norm(g), lambda g: clip_gradients(g, clip_norm=0.1)["w"].sum()])
def test_derivatives_inside_shard_map(loss):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    grads = {"w": jnp.arange(1.0, 17.0), "b": jnp.ones(8)}
    mapped = jax.shard_map(jax.grad(loss), mesh=mesh, in_specs=PartitionSpec("data"), out_specs=PartitionSpec("data"))
    expected = [jax.grad(loss)({"w": grads["w"][2 * i : 2 * i + 2], "b": grads["b"][i : i + 1]}) for i in range(8)]
    np.testing.assert_allclose(mapped(grads)["w"], np.concatenate([part["w"] for part in expected]), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("bound", [np.array(-1.0), np.float32(-1), np.array(-1)])
@pytest.mark.parametrize("name", ["clip_norm", "clip_value"])
def test_a_negative_bound_of_numpy(name, bound):
    for call in (lambda: clip_gradients(jnp.ones(2), **{name: bound}), lambda: Clip(SGD(), **{name: bound})):
        with pytest.raises(ValueError, match=f"{name} must be a number in"):
            call()
