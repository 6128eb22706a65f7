"""Muon against its definition by singular values, against optax, on stacks, convolutions and heads, and on many devices."""

import functools
import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxprs import branches, equations

from mithril_opt import Accumulate, AdamW, MultiOptimizer, Muon, hidden_matrices

JORDAN = ((3.4445, -4.7750, 2.0315),) * 9
POLAR_EXPRESS = (
    (8.2051, -22.9019, 16.4607),
    (4.0664, -2.8612, 0.5184),
    (3.9096, -2.8234, 0.5250),
    (3.2856, -2.4153, 0.4853),
    (2.2779, -1.6198, 0.3985),
    *((1.875, -1.25, 0.375),) * 4,
)
STEPS = 8


def array(*shape, seed=0, dtype="float64"):
    normal = np.random.default_rng([seed, *shape]).normal
    imaginary = 1j if dtype.startswith("complex") else 0
    return (normal(size=shape) + imaginary * normal(size=shape)).astype(dtype)


def gradients(*shape, dtype="float64"):
    """Of every step, of sizes far apart."""
    return [array(*shape, seed=1 + i, dtype=dtype) * (1, 0.05, 3)[i % 3] for i in range(STEPS)]


def orthogonal(u, triples):
    """O by its definition: the polynomials act on the singular values of u / ‖u‖."""
    left, values, right = np.linalg.svd(u, full_matrices=False)
    values = values / np.linalg.norm(values)
    for a, b, c in triples:
        values = a * values + b * values**3 + c * values**5
    return (left * values) @ right


SCALES = {
    "match_rms_adamw": lambda n, m: 0.2 * max(n, m) ** 0.5,
    "original": lambda n, m: max(1, m / n) ** 0.5,
    "spectral": lambda n, m: (m / n) ** 0.5,
}


def muon(p, grads, rate, beta=0.95, nesterov=True, decay=0.1, scale="match_rms_adamw", triples=JORDAN[:5]):
    """p after each step, the momentum as the sum that it stands for; `rate` is a function of t = 1, 2, …"""
    for t, g in enumerate(grads, start=1):
        m = (1 - beta) * sum(beta ** (t - i) * grads[i - 1] for i in range(1, t + 1))
        u = beta * m + (1 - beta) * g if nesterov else m
        p = p - rate(t) * (SCALES[scale](*p.shape) * orthogonal(u, triples) + decay * p)
        yield p


PAPERS = {Muon: muon}


def train(optimizer, params, grads):
    """The parameters after every step."""
    state, update, trajectory = optimizer.init(params), jax.jit(optimizer.update), []
    for grad in grads:
        params, state = update(params, grad, state)
        trajectory.append(params)
    return trajectory


CASES = {
    "defaults": ({}, {}),
    "original": (dict(scaling="original", weight_decay=0.0), dict(scale="original", decay=0)),
    "spectral": (dict(scaling="spectral", nesterov=False), dict(scale="spectral", nesterov=False)),
    "polar-express": (dict(ns_coefficients="polar_express", ns_steps=7), dict(triples=POLAR_EXPRESS[:7])),
    "few": (dict(ns_coefficients="polar_express", ns_steps=3, beta=0.5), dict(triples=POLAR_EXPRESS[:3], beta=0.5)),
    "own": (dict(ns_coefficients=[(2, -1.5, 0.5)], ns_steps=4, beta=0.0), dict(triples=((2, -1.5, 0.5),) * 4, beta=0.0)),
    "scheduled": (dict(learning_rate=lambda step: 0.125 * 0.5**step), dict(rate=lambda t: 0.25 * 0.5**t)),
}


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("shape", [(4, 6), (6, 4), (5, 5), (1, 3)], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_paper_in_float64(case, shape, dtype):
    ours, theirs = CASES[case]
    with jax.enable_x64(True):
        optimizer = Muon(**{"learning_rate": 0.0625, **ours})
        ascent = gradients(*shape, dtype=dtype)
        actual = train(optimizer, jnp.asarray(array(*shape, dtype=dtype)), [jnp.conj(grad) for grad in ascent])
    expected = muon(array(*shape, dtype=dtype), ascent, **{"rate": lambda t: 0.0625, **theirs})
    np.testing.assert_allclose(actual, np.stack([*expected]), rtol=2e-11, atol=2e-12)


@pytest.mark.parametrize("case", CASES)
def test_paper_in_float32(case):
    ours, theirs = CASES[case]
    with jax.default_matmul_precision("highest"):
        actual = train(Muon(**{"learning_rate": 0.0625, **ours}), *jax.tree.map(np.float32, (array(6, 4), gradients(6, 4))))
    expected = muon(array(6, 4), gradients(6, 4), **{"rate": lambda t: 0.0625, **theirs})
    np.testing.assert_allclose(actual, np.stack([*expected]), rtol=1e-5, atol=1e-5)


def optaxs(transformation, params, grads):
    """The same by optax."""
    with jax.numpy_dtype_promotion("standard"):
        params, update, trajectory = jnp.asarray(params), jax.jit(transformation.update), []
        state = transformation.init(params)
        for grad in grads:
            updates, state = update(jnp.asarray(grad), state, params)
            params = optax.apply_updates(params, updates)
            trajectory.append(params)
    return trajectory


@pytest.mark.parametrize(("scaling", "consistent_rms"), [("original", None), ("match_rms_adamw", 0.2)])
@pytest.mark.parametrize("shape", [(4, 6), (6, 4)], ids=str)
def test_optax(shape, scaling, consistent_rms):
    """Its bias correction is a factor, which Newton–Schulz takes away; with Nesterov it would change what is added up."""
    problem = jax.tree.map(np.float32, (array(*shape), gradients(*shape)))
    theirs = optax.contrib.muon(0.0625, nesterov=False, weight_decay=0.1, consistent_rms=consistent_rms, eps=1e-30)
    ours = train(Muon(0.0625, nesterov=False, scaling=scaling), *problem)
    np.testing.assert_allclose(ours, optaxs(theirs, *problem), rtol=1e-5, atol=1e-5)


def test_optax_with_nesterov_is_ours_once_the_start_is_forgotten():
    problem = np.float32(array(4, 6)), [np.float32(array(4, 6, seed=i)) for i in range(60)]
    ours = train(Muon(0.1, beta=0.8, weight_decay=0.0), *problem)
    theirs = optaxs(optax.contrib.muon(0.1, beta=0.8, consistent_rms=0.2), *problem)
    apart = [np.max(np.abs((ours[t] - ours[t - 1]) - (theirs[t] - theirs[t - 1]))) for t in (1, 59)]
    assert apart[0] > 1e-3
    assert apart[1] < 1e-6


def one_step(params, grads, **arguments):
    """The step of the first update."""
    optimizer = Muon(**{"learning_rate": 1.0, "weight_decay": 0.0, **arguments})
    new, _ = optimizer.update(params, grads, optimizer.init(params))
    return jax.tree.map(lambda p, q: np.asarray(p) - np.asarray(q), params, new)


# What Newton–Schulz promises.


def test_singular_values_of_a_random_matrix():
    u = np.float32(array(64, 256))
    for preset, low, high in (("jordan", 0.66, 1.16), ("polar_express", 0.85, 1.14)):
        values = np.linalg.svd(one_step(np.zeros_like(u), u, scaling="original", ns_coefficients=preset) / 2)[1]
        assert low < values.min() < 1 < values.max() < high


@pytest.mark.parametrize("scale", [1e-33, 1e-20, 1e-8, 1e8, 1e20, 1e36])
def test_small_and_large_gradients_are_gradients(scale):
    """The authors' ‖u‖ + 1e-7 is off by 18 % at 1e-8."""
    grad = jnp.asarray(array(4, 6, dtype="float32"))
    np.testing.assert_allclose(one_step(grad, grad * scale), one_step(grad, grad), rtol=2e-5, atol=2e-5)


def test_a_norm_that_no_float32_holds():
    signs = jnp.sign(jnp.asarray(array(4, 6, dtype="float32")))
    large, ones = (one_step(signs, signs * size, beta=0.0) for size in (3e38, 1.0))
    np.testing.assert_allclose(large, ones, rtol=2e-5, atol=2e-5)


def test_a_zero_momentum_moves_nothing_but_the_decay():
    params, zeros = jnp.ones((3, 2)), jnp.zeros((3, 2))
    optimizer = Muon(learning_rate=0.5, weight_decay=0.5)
    new, state = optimizer.update(params, zeros, optimizer.init(params))
    np.testing.assert_array_equal(new, 0.75)
    _, state = optimizer.update(params, params, state)
    new, _ = optimizer.update(params, zeros, state)  # but once something was there, a zero gradient does not stop it
    assert np.all(new < 0.75)


@pytest.mark.parametrize(("dtype", "error"), [("bfloat16", 0.03), ("float16", 0.004)])
def test_a_narrow_newton_schulz_keeps_two_digits(dtype, error):
    """Measured: 1e-2 in bfloat16, 1e-3 in float16."""
    grad = jnp.asarray(array(32, 48, dtype="float32"))
    wide, narrow = one_step(grad, grad), one_step(grad, grad, ns_dtype=dtype)
    difference = np.linalg.norm(narrow - wide) / np.linalg.norm(wide)
    assert error / 30 < difference < error


def products(optimizer, params):
    """The products of matrices in an update."""
    jaxpr = jax.make_jaxpr(optimizer.update)(params, params, optimizer.init(params)).jaxpr
    return [eqn for eqn in equations(jaxpr) if eqn.primitive.name == "dot_general"]


def test_a_narrow_newton_schulz_multiplies_narrow_numbers_and_adds_wide_ones():
    for eqn in products(Muon(ns_dtype=jnp.bfloat16), jnp.ones((3, 2))):
        assert [var.aval.dtype for var in eqn.invars] == [jnp.bfloat16] * 2
        assert eqn.outvars[0].aval.dtype == jnp.float32


def test_matrices_of_one_shape_go_together():
    params = {"a": jnp.ones((3, 2)), "b": jnp.ones((2, 3)), "c": jnp.ones((3, 2)), "d": jnp.ones((2, 2))}
    assert len(products(Muon(ns_steps=4), params)) == 2 * 4 * 3
    together = one_step(*({name: jnp.asarray(array(*leaf.shape, seed=s)) for name, leaf in params.items()} for s in (0, 1)))
    for name, leaf in params.items():
        alone = one_step(*(jnp.asarray(array(*leaf.shape, seed=s)) for s in (0, 1)))
        np.testing.assert_allclose(together[name], alone, rtol=1e-5, atol=2e-5)


def test_newton_schulz_runs_where_a_window_closes_alone():
    optimizer, params = Accumulate(Muon(), every=3), jnp.ones((3, 2))
    jaxpr = jax.make_jaxpr(optimizer.update)(params, params, optimizer.init(params)).jaxpr
    (cond,) = branches(jaxpr)
    inside = [sum(eqn.primitive.name == "dot_general" for eqn in equations(branch)) for branch in cond]
    assert sorted(inside) == [0, len(products(Muon(), params))]
    assert sum(eqn.primitive.name == "dot_general" for eqn in equations(jaxpr)) == max(inside)


def test_the_state_is_four_bytes_for_a_parameter():
    state = Muon().init({"w": jnp.ones((3, 2), jnp.bfloat16)})
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(state.slots)) == 4 * 6


# Where the matrices are.


@pytest.mark.parametrize("scaling", SCALES)
def test_a_transposed_matrix_with_transposed_axes(scaling):
    params, grads = (jnp.asarray(array(4, 6, seed=seed, dtype="float32")) for seed in (0, 1))
    step = one_step(params, grads, scaling=scaling)
    np.testing.assert_allclose(one_step(params.T, grads.T, scaling=scaling, matrix_axes=(1, 0)).T, step, rtol=1e-5, atol=2e-5)


LAYOUTS = {
    # axes, shape, how it becomes matrices (count, in, out)
    "stacked": ("stacked", (3, 4, 5), lambda x: x),
    "stacked-twice": ("stacked", (2, 3, 4, 5), lambda x: x.reshape(6, 4, 5)),
    "conv": ("conv", (2, 2, 3, 5), lambda x: x.reshape(1, 12, 5)),
    "dense-as-conv": ("conv", (4, 5), lambda x: x[None]),
    "heads-together": ((0, (1, 2)), (4, 2, 3), lambda x: x.reshape(1, 4, 6)),
    "heads-apart": ((0, 2), (4, 2, 3), lambda x: x.transpose(1, 0, 2)),
    "heads-out": (((0, 1), -1), (2, 3, 4), lambda x: x.reshape(1, 6, 4)),
    "last-first": ((2, 0), (5, 3, 4), lambda x: x.transpose(1, 2, 0)),
    "torch-conv": (((1, 2, 3), 0), (5, 3, 2, 2), lambda x: x.reshape(1, 5, 12).transpose(0, 2, 1)),
    "row": (((), 0), (5,), lambda x: x.reshape(1, 1, 5)),
    "function": (lambda path, leaf: "stacked" if path == "w" else None, (3, 4, 5), lambda x: x),
}


@pytest.mark.parametrize("scaling", SCALES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_leaf_equals_its_matrices(layout, scaling):
    axes, shape, split = LAYOUTS[layout]
    params, grads = ({"w": jnp.asarray(array(*shape, seed=seed, dtype="float32"))} for seed in (0, 1))
    sizes = jnp.asarray([0.1, 10.0] * 3)[: len(split(grads["w"])), None, None]  # each matrix has a norm of its own
    grads["w"] = grads["w"] * jax.vjp(split, grads["w"])[1](jnp.broadcast_to(sizes, split(grads["w"]).shape))[0]
    actual = split(one_step(params, grads, matrix_axes=axes, scaling=scaling)["w"])
    for i, matrix in enumerate(split(grads["w"])):
        expected = SCALES[scaling](*matrix.shape) * orthogonal(np.float64(matrix), JORDAN[:5])
        np.testing.assert_allclose(actual[i], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("axes", [None, "conv", ((1, 2), 3)])
def test_layers_may_be_counted_by_unit_axes(axes):
    shape = (3, 2, 4, 5) if axes else (3, 4, 5)
    params, grads = (jnp.asarray(array(*shape, seed=seed, dtype="float32")) for seed in (0, 1))
    together = one_step(params, grads, matrix_axes=axes, unit_axes=0)
    for layer in range(3):
        alone = one_step(params[layer], grads[layer], matrix_axes="conv" if axes else None)
        np.testing.assert_allclose(together[layer], alone, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("axes", "shape", "message"),
    [
        (None, (3,), r"at 'w': Muon.matrix_axes=None needs a leaf with two axes, got \(3,\); name the axes"),
        (None, (2, 3, 4), r"at 'w': Muon.matrix_axes=None needs a leaf with two axes, got \(2, 3, 4\)"),
        ("stacked", (), r"at 'w': Muon.matrix_axes='stacked' needs a leaf with two or more axes, got \(\)"),
        ("conv", (3,), r"at 'w': Muon.matrix_axes='conv' needs a leaf with two or more axes, got \(3,\)"),
        ((0, 2), (3, 3), r"at 'w': Muon.matrix_axes must be different axes of \(3, 3\), got \(0, 2\)"),
        ((0, -2), (3, 3), r"at 'w': Muon.matrix_axes must be different axes of \(3, 3\), got \(0, -2\)"),
    ],
)
def test_a_leaf_without_such_matrices(axes, shape, message):
    params = {"w": jnp.ones(shape)}
    with pytest.raises(ValueError, match=message):
        Muon(matrix_axes=axes).init(params)


def test_matrix_axes_that_count_layers():
    with pytest.raises(ValueError, match=r"at 'w': Muon.matrix_axes must name no axes that count layers, \(0,\), got \(0, 1\)"):
        Muon(matrix_axes=(0, 1), unit_axes=0).init({"w": jnp.ones((2, 3, 4))})


@pytest.mark.parametrize("axes", ["convolution", 1, (0,), (0, 1, 2), (0, 1.0), [0, 1], (True, 0)])
def test_what_are_no_matrix_axes(axes):
    with pytest.raises(TypeError, match=r"Muon: matrix_axes must be None, 'stacked', 'conv', a pair of axes \(in, out\)"):
        Muon(matrix_axes=axes)
    with pytest.raises(TypeError, match=r"at 'w': Muon.matrix_axes must be None"):
        Muon(matrix_axes=lambda path, leaf: axes).init({"w": jnp.ones((2, 2))})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(scaling="rms"), "Muon: scaling must be one of 'match_rms_adamw', 'original', 'spectral', got 'rms'"),
        (dict(ns_steps=0), "Muon: ns_steps must be an integer of at least 1, got 0"),
        (
            dict(ns_coefficients="muon"),
            "must be one of 'jordan', 'polar_express' or at most ns_steps = 5 triples",
        ),
        (dict(ns_coefficients=[(1, 2)]), "Muon: ns_coefficients must be one of"),
        (dict(ns_coefficients=[(1, 2, 3)] * 6), "Muon: ns_coefficients must be one of"),
        (dict(ns_coefficients=[]), "Muon: ns_coefficients must be one of"),
        (dict(ns_coefficients=[(float("nan"), 1, 1)]), "Muon: ns_coefficients must be one of"),
        (dict(ns_coefficients=[(1, float("inf"), 1)]), "Muon: ns_coefficients must be one of"),
        (dict(ns_coefficients=("123", "123")), "Muon: ns_coefficients must be one of"),
        (dict(ns_coefficients=[("1", "2", "3")]), "Muon: ns_coefficients must be one of"),
        (dict(ns_dtype="int8"), "Muon: ns_dtype must be a real floating dtype or None, got 'int8'"),
        (dict(ns_dtype="complex64"), "Muon: ns_dtype must be a real floating dtype or None, got 'complex64'"),
        (dict(ns_dtype="bf"), "Muon: ns_dtype must be a real floating dtype or None, got 'bf'"),
    ],
)
def test_bad_settings(arguments, message):
    with pytest.raises(ValueError, match=message):
        Muon(**arguments)


@pytest.mark.parametrize("sharding", ["data", P(), P(None, "data")])
def test_bad_shardings(sharding):
    with pytest.raises(TypeError, match="Muon: ns_sharding must be a NamedSharding or a PartitionSpec whose first entry"):
        Muon(ns_sharding=sharding)


def test_a_complex_leaf_with_a_real_dtype():
    with pytest.raises(ValueError, match=r"at 'w': Muon.ns_dtype=bfloat16 cannot hold complex numbers"):
        Muon(ns_dtype=jnp.bfloat16).init({"w": jnp.ones((2, 2), jnp.complex64)})


# On many devices.

LEAVES = {
    "stack": {"query": (8, 6, 10), "key": (8, 6, 10), "out": (8, 10, 6)},
    "loose": {f"w{i}": (8, 12) for i in range(6)},
}
SPREAD = Muon(learning_rate=0.1, matrix_axes="stacked", ns_sharding=P("data"))
# The leaves, how they are sharded, the optimizer, and the collectives of an update: with automatic and with explicit axes.
DISTRIBUTED = {
    "layers": ("stack", P("data"), Muon(learning_rate=0.1, matrix_axes="stacked"), {}, {}),
    "layers-spread": ("stack", P("data"), SPREAD, {}, {}),
    "columns": ("loose", P(None, "data"), SPREAD, {"all-to-all"}, {"all-gather"}),
    "replicated": ("loose", P(), SPREAD, {"all-gather"}, {"all-gather"}),
}


def collectives(compiled):
    return Counter(re.findall(r" (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)\(", compiled.as_text()))


@functools.cache
def on_one_device(leaves):
    params, *grads = ({name: jnp.asarray(array(*s, seed=i), "float32") for name, s in LEAVES[leaves].items()} for i in range(4))
    return jax.device_get(train(Muon(learning_rate=0.1, matrix_axes="stacked"), params, grads)[-1])


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
@pytest.mark.parametrize("case", DISTRIBUTED)
def test_four_devices_compute_what_one_does_with_no_other_collectives(case, axis_type):
    leaves, spec, optimizer, auto, explicit = DISTRIBUTED[case]
    mesh = jax.make_mesh((4,), ("data",), axis_types=(axis_type,), devices=jax.devices()[:4])
    with jax.set_mesh(mesh):
        trees = ({name: array(*s, seed=i, dtype="float32") for name, s in LEAVES[leaves].items()} for i in range(4))
        params, *grads = (jax.device_put(tree, NamedSharding(mesh, spec)) for tree in trees)
        state = optimizer.init(params)
        found = collectives(jax.jit(optimizer.update).lower(params, grads[0], state).compile())
        new = train(optimizer, params, grads)[-1]
    assert set(found) == set(auto if axis_type == AxisType.Auto else explicit)
    if axis_type == AxisType.Auto:
        assert found.total() <= 2  # there and back, not for each leaf
    for name, leaf in new.items():
        assert leaf.sharding.is_equivalent_to(NamedSharding(mesh, spec), leaf.ndim)
        np.testing.assert_allclose(leaf, on_one_device(leaves)[name], rtol=1e-5, atol=2e-5)


def test_a_named_sharding_needs_no_mesh_around_it():
    mesh = jax.make_mesh((4,), ("data",), devices=jax.devices()[:4])
    optimizer = Muon(learning_rate=0.1, matrix_axes="stacked", ns_sharding=NamedSharding(mesh, P("data")))
    params, *grads = ({name: array(*s, seed=i, dtype="float32") for name, s in LEAVES["loose"].items()} for i in range(4))
    new = train(optimizer, *jax.device_put((params, grads), NamedSharding(mesh, P())))[-1]
    for name, leaf in new.items():
        np.testing.assert_allclose(leaf, on_one_device("loose")[name], rtol=1e-5, atol=2e-5)


# Which leaves it is for.

NAMES = {
    True: [
        "params/Dense_0/kernel",
        "params/MultiHeadDotProductAttention_0/query/kernel",
        "params/encoder/layers/attn/out_proj/kernel",
        "blocks/0/mlp/fc_in/weight",
        "transformer/h3_attn/query/w",
        "decoder/gating/w",
        "state/whitehead/normalize_inputs/w",
        "layers/beta/w",
        "blocks/multi_head_attention/query/w",
        "blocks/attention_heads/w",
        "blocks/position_wise_mlp/w",
        "params/PositionwiseFeedForward_0/Dense_0/kernel",
        "blocks/compose/w",
        "blocks/normal_mlp/w",
    ],
    False: [
        "params/Embed_0/embedding",
        "params/TokenEmbedder_0/kernel",
        "wte/weight",
        "transformer/wpe",
        "pos_emb",
        "params/posembed_input/pos_embedding",
        "lm_head/kernel",
        "params/head/kernel",
        "params/LMHead_0/kernel",
        "unembed/w",
        "decoder/logits_dense/kernel",
        "attn/lora_a",
        "attn/q_lora/B",
        "params/layers/Dense_0/bias",
        "params/layers/LayerNorm_0/scale",
        "blocks/norm1/weight",
        "blocks/ln_2/weight",
        "encoder/RMSNorm_0/w",
        "transformer/layer_norm/offset",
        "transformer/linear/b",
        "bn/gamma",
        "position/kernel",
        "pos_encoding",
        "positional_encoding",
        "position_table",
        "params/PositionalEncoding_0/table",
        "lm_heads/kernel",
        "heads/0/kernel",
        "token_embs",
        "norms/0/w",
        "blocks/layer_norms/w",
        "blocks/biases",
    ],
}


@pytest.mark.parametrize(("path", "hidden"), [(path, hidden) for hidden, paths in NAMES.items() for path in paths])
def test_hidden_matrices_by_whole_words(path, hidden):
    assert hidden_matrices(path, jax.ShapeDtypeStruct((4, 4), jnp.float32)) == hidden
    assert not hidden_matrices(path, jnp.ones(4))


def split(params):
    """The paths of the leaves that Muon gets."""
    optimizer = MultiOptimizer({"muon": Muon(matrix_axes="stacked"), "adamw": AdamW()}, {"muon": hidden_matrices, "adamw": ...})
    rows = optimizer.describe(params).rows
    assert all(row[4] == {"muon": "Muon", "adamw": "AdamW"}[row[3]] for row in rows)
    return {row[0] for row in rows if row[3] == "muon"}


def test_a_model_of_flax_linen():
    from flax import linen as nn

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            x = x + nn.MultiHeadDotProductAttention(num_heads=2)(nn.LayerNorm()(x))
            return x + nn.Dense(8)(nn.gelu(nn.Dense(16)(nn.LayerNorm()(x)))), None

    class Model(nn.Module):
        @nn.compact
        def __call__(self, tokens):
            x = nn.Embed(11, 8)(tokens)
            layers = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
            x, _ = layers()(x, None)
            return nn.Dense(11, name="lm_head")(nn.LayerNorm()(x))

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        params = jax.eval_shape(Model().init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    (layers,) = (name for name in params if name.startswith("ScanBlock"))
    attention = {f"{layers}/MultiHeadDotProductAttention_0/{name}/kernel" for name in ("query", "key", "value", "out")}
    assert split(params) == attention | {f"{layers}/Dense_0/kernel", f"{layers}/Dense_1/kernel"}


def test_a_model_of_nnx():
    from flax import nnx

    class Model(nnx.Module):
        def __init__(self, rngs):
            self.embed = nnx.Embed(11, 8, rngs=rngs)
            self.blocks = nnx.List([nnx.Linear(8, 8, rngs=rngs), nnx.LayerNorm(8, rngs=rngs), nnx.Linear(8, 8, rngs=rngs)])
            self.attention = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)
            self.lm_head = nnx.Linear(8, 11, rngs=rngs)

    params = nnx.state(Model(nnx.Rngs(0)), nnx.Param)
    attention = {f"attention/{name}/kernel" for name in ("query", "key", "value", "out")}
    assert split(params) == attention | {"blocks/0/kernel", "blocks/2/kernel"}


def test_a_model_of_equinox():
    import equinox as eqx

    class Model(eqx.Module):
        embedding: eqx.nn.Embedding
        blocks: eqx.nn.MLP
        norm: eqx.nn.LayerNorm
        attention: eqx.nn.MultiheadAttention
        head: eqx.nn.Linear

    keys = jax.random.split(jax.random.key(0), 4)
    model = Model(
        eqx.nn.Embedding(11, 8, key=keys[0]),
        eqx.filter_vmap(lambda key: eqx.nn.MLP(8, 8, 16, depth=1, key=key))(jax.random.split(keys[1], 3)),
        eqx.filter_vmap(lambda _: eqx.nn.LayerNorm(8))(jnp.arange(3)),
        eqx.nn.MultiheadAttention(2, 8, key=keys[2]),
        eqx.nn.Linear(8, 11, key=keys[3]),
    )
    attention = {f"attention/{name}_proj/weight" for name in ("query", "key", "value", "output")}
    assert split(eqx.filter(model, eqx.is_array)) == attention | {"blocks/layers/0/weight", "blocks/layers/1/weight"}


def test_a_model_of_haiku():
    import haiku as hk

    def model(tokens):
        x = hk.Embed(11, 8)(tokens)
        x = hk.LayerNorm(-1, create_scale=True, create_offset=True)(x)
        x = hk.nets.MLP([16, 8])(x + hk.MultiHeadAttention(2, 4, model_size=8, w_init=hk.initializers.Constant(1.0))(x, x, x))
        return hk.Linear(11, name="logits")(x)

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        params = jax.eval_shape(hk.transform(model).init, jax.random.key(0), jnp.zeros((4,), jnp.int32))
    attention = {f"multi_head_attention/{name}/w" for name in ("query", "key", "value", "linear")}
    assert split(params) == attention | {"mlp/~/linear_0/w", "mlp/~/linear_1/w"}
