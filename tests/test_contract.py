"""What every optimizer must do, tested on every row of the table."""

import pickle

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from zoo import OPTIMIZERS, bits, core, make_params, specs, unrecorded, with_core

from mithril_opt import DecayRate, Muon, OptState, Round
from mithril_opt.core.slots import kept
from mithril_opt.core.updates import plain

DTYPES = ["float32", "bfloat16", "float16", "complex64"]


@pytest.fixture(params=OPTIMIZERS, name="optimizer")
def fixture_optimizer(request):
    return OPTIMIZERS[request.param]()


def rows_with(*dtypes):
    """Every row with every one of `dtypes` that it takes."""
    pairs = [(name, dtype) for name, row in OPTIMIZERS.items() for dtype in dtypes if dtype not in row.refused]
    return pytest.mark.parametrize(("optimizer", "dtype"), pairs, indirect=["optimizer"])


def run(optimizer, params, steps, state=None, seed=1):
    state = optimizer.init(params) if state is None else state
    step = jax.jit(optimizer.update)
    for i in range(steps):
        params, state = step(params, gradients(params, seed + i), state)
    return params, state


def gradients(params, seed):
    return make_params(jax.tree.leaves(params)[0].dtype, seed)


def is_rate(node):
    return isinstance(node, DecayRate)


def assert_close(actual, expected, rtol=2e-6, atol=5e-7):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=rtol, atol=atol)


@rows_with(*DTYPES)
def test_update_keeps_structure_shapes_dtypes_and_weak_types(request, optimizer, dtype):
    keeps_structure(optimizer, dtype, OPTIMIZERS[request.node.callspec.params["optimizer"]].stored)


def keeps_structure(optimizer, dtype, stored=()):
    params = make_params(dtype)
    state = optimizer.init(params)
    new_params, new_state = jax.eval_shape(optimizer.update, params, gradients(params, 1), state)
    assert specs(new_params) == specs(params)
    assert specs(new_state) == specs(state)
    for leaf in jax.tree.leaves(state):
        assert leaf.dtype in ("int32", "float32", "complex64", "bool", *stored)


def test_float64_stays_float64(optimizer):
    with jax.enable_x64(True):
        params = make_params(jnp.float64)
        state = optimizer.init(params)
        new_params, new_state = optimizer.update(params, gradients(params, 1), state)
        assert specs(new_params) == specs(params)
        assert specs(new_state) == specs(state)
        own = unrecorded(core(state)._replace(schedules={}))
        assert all(leaf.dtype in (jnp.float64, jnp.int32, jnp.bool) for leaf in jax.tree.leaves(own))


@rows_with("bfloat16", "float16")
def test_narrow_parameters_follow_the_float32_arithmetic(optimizer, dtype):
    params = make_params(dtype)
    grads = gradients(params, 1)
    widened = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (params, grads))
    narrow, narrow_state = optimizer.update(params, grads, optimizer.init(params))
    wide, wide_state = optimizer.update(*widened, optimizer.init(widened[0]))
    if isinstance(optimizer, Round) and optimizer.remainder == 0:  # one of two neighbours, not always the nearer
        assert_close(*(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree) for tree in (narrow, wide)), rtol=2.0**-7)
    else:
        assert bits(narrow) == bits(jax.tree.map(lambda leaf: leaf.astype(dtype), wide))
    assert bits(slots_of(narrow_state)) == bits(slots_of(wide_state))


def slots_of(state, besides=("average", "slow", "x", "remainder")):
    """The leaves of `state`, without what is recorded, and without what depends on how parameters are rounded."""
    fields = {jax.tree_util.GetAttrKey(name) for name in besides}
    return [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(unrecorded(state)) if not fields & set(path)]


def test_one_trace_whatever_the_numbers(optimizer):
    traces = []

    @jax.jit
    def step(optimizer, params, grads, state):
        traces.append(None)
        return optimizer.update(params, grads, state)

    params = make_params()
    state = optimizer.init(params)
    for scale in (1.0, 0.5, 0.25):
        changed = jax.tree.map(lambda number, scale=scale: number * scale if isinstance(number, float) else number, optimizer)
        params, state = step(changed, params, gradients(params, 1), state)
    assert len(traces) == 1


def test_jit_equals_eager(optimizer):
    params = make_params()
    jitted, state = run(optimizer, params, 5)
    eager, eager_state = params, optimizer.init(params)
    for i in range(5):
        eager, eager_state = optimizer.update(eager, gradients(params, 1 + i), eager_state)
    assert_close((jitted, state), (eager, eager_state))


def test_as_argument_equals_closed_over(optimizer):
    params = make_params()
    as_argument = jax.jit(lambda optimizer, *args: optimizer.update(*args))
    closed_over, _ = run(optimizer, params, 5)
    passed, passed_state = params, optimizer.init(params)
    for i in range(5):
        passed, passed_state = as_argument(optimizer, passed, gradients(params, 1 + i), passed_state)
    assert_close(passed, closed_over)


def test_scan_equals_a_loop(optimizer):
    params = make_params()
    grads = [gradients(params, 1 + i) for i in range(5)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *grads)

    def body(carry, grads):
        return optimizer.update(carry[0], grads, carry[1]), None

    scanned, _ = jax.lax.scan(body, (params, optimizer.init(params)), stacked)
    assert_close(scanned, run(optimizer, params, 5))


def test_cond_takes_an_update_or_leaves_it(optimizer):
    params = make_params()
    state = optimizer.init(params)

    @jax.jit
    def maybe(apply, params, state):
        return jax.lax.cond(
            apply, lambda p, s: optimizer.update(p, gradients(params, 1), s), lambda p, s: (p, s), params, state
        )

    assert bits(maybe(False, params, state)) == bits((params, state))
    assert_close(maybe(True, params, state), optimizer.update(params, gradients(params, 1), state))


def two_vectors(seed=0):
    """A tree of one shape, which is traced fastest."""
    normal = np.random.default_rng(seed).normal
    return {"embed": jnp.asarray(normal(size=2)), "w": jnp.asarray(normal(size=2))}


def test_vmap_over_the_numbers_is_a_sweep(optimizer):
    scales = jnp.array([0.5, 1.0, 0.25])
    params = two_vectors()

    @jax.jit
    def train(scale):
        swept = jax.tree.map(lambda number: number * scale if isinstance(number, float) else number, optimizer)
        new, state = params, swept.init(params)
        for i in range(3):
            new, state = swept.update(new, two_vectors(1 + i), state)
        return new

    together = jax.jit(jax.vmap(train))(scales)
    for i, scale in enumerate(scales):
        assert_close(jax.tree.map(lambda leaf, i=i: leaf[i], together), train(scale), rtol=1e-5, atol=1e-6)


def test_gradient_with_respect_to_the_numbers_is_finite_and_true(optimizer):
    """Against a central difference in float64."""
    with jax.enable_x64(True):
        params = two_vectors()
        numbers, structure = jax.tree.flatten(optimizer)
        reals = jnp.asarray([number for number in numbers if isinstance(number, float)])
        grads = jax.tree.map(lambda *leaves: jnp.stack(leaves), two_vectors(1), two_vectors(2))

        @jax.jit
        def loss(scale):
            scaled = iter(reals * scale)
            swept = structure.unflatten([next(scaled) if isinstance(number, float) else number for number in numbers])
            (new, _), _ = jax.lax.scan(
                lambda at, grads: (swept.update(at[0], grads, at[1]), None), (params, swept.init(params)), grads
            )
            return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(new))

        if reals.size:
            slope = jax.jit(jax.grad(loss))(1.0)
            difference = (loss(1 + 1e-4) - loss(1 - 1e-4)) / 2e-4
            # Schedules are float32 by contract, so their difference quotients carry float32 noise.
            np.testing.assert_allclose(slope, difference, rtol=2e-2, atol=1e-3)


def test_pickle_and_equality(optimizer):
    copy = pickle.loads(pickle.dumps(optimizer))
    assert copy == optimizer
    assert jax.tree.structure(copy) == jax.tree.structure(optimizer)
    assert repr(copy) == repr(optimizer)


def test_repr_names_the_class_and_its_numbers(optimizer):
    text = repr(optimizer)
    assert text.startswith(type(optimizer).__name__ + "(")
    rests = {
        number for rate in jax.tree.leaves(optimizer, is_leaf=is_rate) if is_rate(rate) for number in jax.tree.leaves(rate)[1:]
    }
    assert all(str(number) in text for number in jax.tree.leaves(optimizer) if number not in rests)


def test_none_gradient_leaves_parameter_and_slots_alone(optimizer):
    params = make_params()
    _, state = run(optimizer, params, 2)
    grads = gradients(params, 1)
    grads["body"]["w"] = None
    new_params, new_state = optimizer.update(params, grads, state)
    assert bits(new_params["body"]["w"]) == bits(params["body"]["w"])
    before, after = (dict(jax.tree_util.tree_leaves_with_path(core(s).slots)) for s in (state, new_state))
    for path, slot in before.items():
        same = bits(slot) == bits(after[path])
        assert same or "'w'" not in jax.tree_util.keystr(path)
    assert int(core(new_state).step) == 3


def test_no_gradients_at_all_still_counts(optimizer):
    params = make_params()
    state = optimizer.init(params)
    new_params, new_state = optimizer.update(params, jax.tree.map(lambda _: None, params), state)
    assert bits(new_params) == bits(params)
    before, after = (slots_of(core(s).slots, besides=("step",)) for s in (state, new_state))  # a group may have its own clock
    assert bits(after) == bits(before)
    assert int(core(new_state).step) == 1


def test_zero_gradient_is_a_gradient(optimizer):
    params = make_params()
    zeros = jax.tree.map(jnp.zeros_like, params)
    new_params, new_state = optimizer.update(params, zeros, optimizer.init(params))
    assert all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves((new_params, core(new_state).slots)))


def test_passengers_come_back_identical(optimizer):
    key = jax.random.key(0)
    passengers = {
        "count": jnp.arange(3),
        "flag": True,
        "n": 7,
        "name": "relu",
        "act": jnp.tanh,
        "key": key,
        "mask": np.array([True]),
    }
    params = {**make_params(), "rest": passengers}
    anything = {
        "count": np.zeros(3, jax.dtypes.float0),
        "flag": None,
        "n": 1.5,
        "name": None,
        "act": "no",
        "key": None,
        "mask": {},
    }
    grads = {**gradients(make_params(), 1), "rest": anything}
    new_params, state = optimizer.update(params, grads, optimizer.init(params))
    assert all(new_params["rest"][name] is passengers[name] for name in passengers)
    alone = {name: leaf for name, leaf in params.items() if name != "rest"}
    expected, _ = optimizer.update(alone, gradients(alone, 1), optimizer.init(alone))
    assert bits({name: new_params[name] for name in alone}) == bits(expected)
    assert specs(state) == specs(optimizer.init(params))


@pytest.mark.parametrize("tree", [{}, (), None, {"a": None, "b": []}, {"n": 3}])
def test_trees_without_parameters(optimizer, tree):
    state = optimizer.init(tree)
    new_tree, new_state = optimizer.update(tree, tree, state)
    assert new_tree == tree
    assert int(core(new_state).step) == 1
    assert specs(new_state) == specs(state)


def test_python_floats_zero_size_and_scalar_leaves(optimizer):
    params = {"embed": 1.5, "w": jnp.zeros((0, 3)), "s": jnp.float32(2.0)}
    grads = {"embed": 0.5, "w": jnp.zeros((0, 3)), "s": 1.0}
    state = optimizer.init(params)
    new_params, new_state = optimizer.update(params, grads, state)
    assert specs(new_state) == specs(state)
    assert [jnp.shape(leaf) for leaf in jax.tree.leaves(new_params)] == [(), (), (0, 3)]
    assert all(jnp.result_type(leaf) == jnp.float32 for leaf in jax.tree.leaves(new_params))


def test_donated_buffers_are_reused_and_nothing_is_shared(optimizer):
    params = make_params()
    state = optimizer.init(params)
    leaves = jax.tree.leaves((params, state))
    pointers = [leaf.unsafe_buffer_pointer() for leaf in leaves if leaf.size]
    assert len(set(pointers)) == len(pointers)
    grads = gradients(params, 1)
    jax.block_until_ready(jax.jit(optimizer.update, donate_argnums=(0, 2))(params, grads, state))
    # The clock of a group is overruled by that of all groups, and not read.
    assert all(leaf.is_deleted() for leaf in leaves if leaf.ndim)


def test_init_inside_jit_shares_nothing_either(optimizer):
    params = make_params()
    leaves = jax.tree.leaves((params, jax.jit(optimizer.init)(params)))
    pointers = [leaf.unsafe_buffer_pointer() for leaf in leaves]
    assert len(set(pointers)) == len(pointers)


@rows_with(*DTYPES)
def test_init_of_abstract_parameters(optimizer, dtype):
    params, expected = make_params(dtype), specs(optimizer.init(make_params(dtype)))
    sharding = NamedSharding(jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,)), PartitionSpec())
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), params)
    assert specs(jax.eval_shape(optimizer.init, abstract))[0] == expected[0]
    state = optimizer.init(abstract)
    assert specs(state) == expected
    for leaf, (_, index, _) in zip(jax.tree.leaves(state), kept(optimizer, abstract), strict=True):
        assert index is None or not leaf.ndim or leaf.sharding.is_equivalent_to(sharding, leaf.ndim)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_slots_inherit_the_sharding(optimizer, axis_type):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    params = {"embed": jax.device_put(jnp.ones((16, 3)), sharding), "w": jax.device_put(jnp.ones((8,)), sharding)}
    state = optimizer.init(params)
    new_params, new_state = jax.jit(optimizer.update)(params, params, state)
    shapes = {leaf.shape for leaf in params.values()}  # the bases of an axis have another, and lie on every device
    for slot in jax.tree.leaves((unrecorded(core(state).slots), unrecorded(core(new_state).slots), new_params)):
        if slot.shape in shapes:
            assert slot.sharding.is_equivalent_to(sharding, slot.ndim)


def test_the_counter_saturates(optimizer):
    params = make_params()
    last = jnp.int32(2**31 - 1)
    state = with_core(optimizer.init(params), step=last)
    new_params, new_state = optimizer.update(params, gradients(params, 1), state)
    assert int(core(new_state).step) == 2**31 - 1
    assert all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves((new_params, core(new_state).slots)))


def test_observing_keeps_the_structure_and_changes_the_memory_of_schedules_alone(optimizer):
    state = optimizer.init(make_params())
    observed = jax.jit(optimizer.observe)(state, 1.0)
    assert specs(observed) == specs(state)
    assert bits(with_core(observed, schedules=core(state).schedules)) == bits(state)
    if not jax.tree.leaves(core(state).schedules):
        assert bits(optimizer.observe(state, 1.0)) == bits(state)


def test_at_gives_numbers_that_update_the_same(optimizer):
    params = make_params()
    params, state = run(optimizer, params, 4)
    at = optimizer.at(core(state).step, core(state).schedules)
    found, expected = (each.update(params, gradients(params, 9), state)[0] for each in (at, optimizer))
    if isinstance(optimizer, Muon):  # whose products XLA rounds differently in two programs
        assert_close(found, expected, rtol=1e-6, atol=2e-7)
    else:
        assert bits(found) == bits(expected)


def test_get_learning_rate_is_float32(optimizer):
    state = optimizer.init(make_params())
    for rate in jax.tree.leaves(optimizer.get_learning_rate(state)):
        assert (rate.dtype, rate.shape, rate.weak_type) == (jnp.float32, (), False)


def test_descends_on_a_parabola(optimizer):
    params = make_params()
    loss = lambda params: sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))  # noqa: E731

    def body(carry, _):
        params, state = carry
        return optimizer.update(params, jax.grad(loss)(params), state), None

    (new_params, _), _ = jax.lax.scan(body, (params, optimizer.init(params)), length=60)
    assert loss(new_params) < 0.8 * loss(params)


def test_compute_updates_is_what_update_applies(optimizer):
    params = make_params()
    params, state = run(optimizer, params, 2)
    grads = gradients(params, 5)
    updates, updated_state = optimizer.compute_updates(params, grads, state)
    new_params, new_state = optimizer.update(params, grads, state)
    none_as_zero = jax.tree.map(lambda p, u: p if u is None else p + u, params, plain(updates), is_leaf=lambda x: x is None)
    assert_close((none_as_zero, updated_state), (new_params, new_state), rtol=1e-6)


def a_real_and_a_complex_leaf(seed, row):
    other = "float32" if "complex64" in row.refused else "complex64"
    return {"embed": make_params(seed=seed)["embed"], "body": {"w": make_params(other, seed=seed)["body"]["w"]}}


def finite(tree):
    return all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_derivatives_are_finite_where_gradients_and_parameters_are_zero(name):
    """By the parameters, the gradients and every number of the optimizer, schedules' included."""
    row, optimizer = OPTIMIZERS[name], OPTIMIZERS[name]()
    trees = (a_real_and_a_complex_leaf(seed, row) for seed in (0, 1))
    params, grads = (jax.tree.map(lambda leaf: leaf.at[..., :1].set(0), tree) for tree in trees)

    def loss(optimizer, params, grads):
        def step(carry, scale):
            params, state = carry
            return optimizer.update(params, jax.tree.map(lambda grad: grad * scale.astype(grad.dtype), grads), state), None

        (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), jnp.array([0.0, 1.0, 0.0]))
        return sum(jnp.sum(jnp.abs(leaf) ** 2) for leaf in jax.tree.leaves(params))

    numbers, structure = jax.tree.flatten(optimizer)
    real = [isinstance(number, float) for number in numbers]
    given = [number for number, is_real in zip(numbers, real, strict=True) if is_real]

    def of_numbers(given, params, grads):
        values = iter(given)
        return loss(structure.unflatten([next(values) if r else n for n, r in zip(numbers, real, strict=True)]), params, grads)

    assert finite(jax.jit(jax.grad(of_numbers, argnums=(0, 1, 2)))(given, params, grads))


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if not name.startswith("custom")])
def test_a_step_is_exported_and_serialized(name):
    """A user's own NamedTuples are the user's to register."""
    optimizer, params = OPTIMIZERS[name](), make_params()
    state = optimizer.init(params)
    exported = jax.export.export(jax.jit(optimizer.update))(params, params, state)
    loaded = jax.export.deserialize(exported.serialize())
    assert_close(loaded.call(params, params, state), optimizer.update(params, params, state))


# Bad input: every message names the place, what was given and what is expected.


@pytest.mark.parametrize(("name", "dtype"), [(name, dtype) for name, row in OPTIMIZERS.items() for dtype in row.refused])
def test_a_dtype_that_a_rule_refuses(name, dtype):
    params = {"body": jnp.ones(2), "embed": jnp.ones(2, dtype)}
    with pytest.raises(ValueError, match=rf"at 'embed': .*{dtype}"):
        OPTIMIZERS[name]().init(params)


def test_other_structure_names_the_path(optimizer):
    params = make_params()
    grads = gradients(params, 1)
    del grads["body"]["w"]
    with pytest.raises(ValueError, match=r"at 'body/w' the parameter is float32\[2,3\] but there is no gradient"):
        optimizer.update(params, grads, optimizer.init(params))


def test_surplus_gradient_names_the_path(optimizer):
    params = make_params()
    grads = {**gradients(params, 1), "more": jnp.ones(2)}
    with pytest.raises(ValueError, match=r"at 'more' there is a gradient, float32\[2\], but no parameter"):
        optimizer.update(params, grads, optimizer.init(params))


@pytest.mark.parametrize("shape", [(3, 2), (1, 3), (3,), ()])
def test_other_shape_names_path_and_both_shapes(optimizer, shape):
    params = make_params()
    grads = gradients(params, 1)
    grads["body"]["w"] = jnp.ones(shape)
    given_shape = ",".join(map(str, shape))
    with pytest.raises(
        ValueError, match=rf"at 'body/w' the parameter is float32\[2,3\] but the gradient is float32\[{given_shape}\]"
    ):
        optimizer.update(params, grads, optimizer.init(params))


def test_complex_gradient_of_a_real_parameter(optimizer):
    params = make_params()
    with pytest.raises(ValueError, match=r"the parameter is float32\[.*\] but the gradient is complex64"):
        optimizer.update(params, make_params(jnp.complex64), optimizer.init(params))


def test_arguments_in_the_order_of_optax(optimizer):
    params = make_params()
    with pytest.raises(ValueError, match=r"takes \(params, grads, state\).*optax's order \(grads, state, params\)"):
        optimizer.update(gradients(params, 1), optimizer.init(params), params)


def test_parameters_in_place_of_the_state(optimizer):
    params = make_params()
    with pytest.raises(ValueError, match="takes the state that init returned"):
        optimizer.update(params, gradients(params, 1), params)


def test_state_of_other_parameters(optimizer):
    params = make_params()
    state = optimizer.init({"embed": jnp.ones(3), "other": jnp.ones(2)})
    if jax.tree.leaves(core(state).slots):
        with pytest.raises(ValueError, match="does not belong to this optimizer and these parameters"):
            optimizer.update(params, gradients(params, 1), state)


def test_state_is_a_named_tuple(optimizer):
    state = optimizer.init(make_params())
    assert isinstance(state, optimizer.state_type)
    assert isinstance(core(state), OptState)
    assert core(state)._fields == ("step", "slots", "schedules", "shared")
    assert (core(state).step.dtype, core(state).step.shape) == (jnp.int32, ())


SHAPES = st.lists(st.integers(0, 3), max_size=3).map(tuple)
LEAVES = st.tuples(SHAPES, st.sampled_from(DTYPES))
TREES = st.dictionaries(st.sampled_from("abcd"), st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=2), max_leaves=4))


@settings(max_examples=4, deadline=None)
@given(tree=TREES, embed=LEAVES, body=LEAVES)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_any_tree_keeps_its_shapes_and_dtypes(name, tree, embed, body):
    row, optimizer = OPTIMIZERS[name], OPTIMIZERS[name]()
    is_leaf = lambda node: isinstance(node, tuple)  # noqa: E731
    ones = lambda leaf: jnp.ones(leaf[0], "float32" if leaf[1] in row.refused else leaf[1])  # noqa: E731
    params = jax.tree.map(ones, {**tree, "embed": embed, "body": body}, is_leaf=is_leaf)
    state = optimizer.init(params)
    new_params, new_state = jax.eval_shape(optimizer.update, params, params, state)
    assert specs(new_params)[0] == specs(params)[0]
    assert [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(new_params)] == [
        (leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(params)
    ]
    assert [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(new_state)] == [
        (leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(state)
    ]
