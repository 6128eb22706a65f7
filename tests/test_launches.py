"""Small arrays that GPUs treat together: which they are, whose compilers know, and that nothing else comes of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from zoo import bits, make_params

from mithril_opt import SGD, Accumulate, AdamW, Clip, global_norm
from mithril_opt.core import launches
from mithril_opt.core.launches import GROUP, SMALL, if_true, truths


@pytest.fixture
def unknown(monkeypatch):
    """CPUs that are treated as GPUs are."""
    monkeypatch.setattr(launches, "GPUS", ("cpu",))
    jax.clear_caches()
    yield
    jax.clear_caches()


def groups(sizes):
    """For each size, or None, what an array of it reads, by number; None for nothing."""
    found = truths([None if size is None else jax.ShapeDtypeStruct((size,), jnp.float32) for size in sizes])
    assert all(truth is None or ((truth.shape, truth.dtype) == ((), bool) and bool(truth)) for truth in found)
    order = list(dict.fromkeys(id(truth) for truth in found if truth is not None))
    return [None if truth is None else order.index(id(truth)) for truth in found]


def test_which_arrays_read_the_same():
    assert groups([]) == []
    assert groups([3]) == [None]
    assert groups([3, None, 4, 0, SMALL]) == [0, None, 0, 0, 0]
    assert groups([3, SMALL + 1]) == [None, None]
    assert groups([3, SMALL + 1, 3]) == [0, None, 0]
    assert groups([*[2] * GROUP, SMALL + 1, 2, 2]) == [*[0] * GROUP, None, 1, 1]


VALUES = {
    "float32": [1.5, -0.0, np.inf, -np.inf, np.nan, 1e-45, 3.4e38],
    "float16": [1.5, -0.0, np.inf, np.nan, 6e-8],
    "bfloat16": [1.5, -0.0, np.inf, np.nan, 1e-40],
    "complex64": [1.5 - 0.0j, complex(np.nan, 1), complex(0.0, -np.inf)],
}


@pytest.mark.usefixtures("unknown")
@pytest.mark.parametrize("dtype", VALUES)
def test_an_array_is_what_it_is_to_the_bit(dtype):
    array = jnp.asarray(VALUES[dtype], dtype)
    assert bits(if_true(None, array)) == bits(array)
    run = lambda array: if_true(truths([array, array])[0], array)  # noqa: E731
    assert bits(run(array)) == bits(jax.jit(run)(array)) == bits(array)


@pytest.mark.parametrize("platform", ["cpu", "cuda", "rocm", "tpu"])
def test_whose_compilers_know(platform):
    params = make_params()
    step = lambda params, state: AdamW().update(params, params, state)  # noqa: E731
    for function, arguments in ((step, (params, AdamW().init(params))), (global_norm, (params,))):
        text = jax.jit(function).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()
        assert ("optimization_barrier" in text) == (platform in launches.GPUS)


def test_nothing_is_left_where_the_compiler_knows(request):
    """One selection more in the program of each leaf that differs from the others in nothing."""
    params = {str(i): jnp.ones(7) for i in range(3)}
    compiled = lambda: jax.jit(SGD().update).lower(params, params, SGD().init(params)).compile().as_text()  # noqa: E731
    assert " select(" not in compiled()
    request.getfixturevalue("unknown")
    assert " select(" in compiled()


TWINS = {"a": jnp.array([1.0, -2.0, 0.0]), "b": jnp.array([0.5, 3.0, 1e-3]), "c": jnp.ones((2, 2))}
GRADS = jax.tree.map(lambda leaf: 0.1 * leaf + 0.01, TWINS)


RULES = {
    "sgd": SGD(learning_rate=0.1, momentum=0.9),
    "adamw": AdamW(learning_rate=0.1),
    "accumulate": Accumulate(Clip(AdamW(learning_rate=0.1), clip_norm=0.1), 2),
}


@pytest.mark.parametrize("optimizer", RULES.values(), ids=RULES)
def test_rules_give_the_same(optimizer, request):
    """Under jit, vmap and scan, with derivatives."""

    def trained(scale):
        def step(carry, _):
            return optimizer.update(carry[0], jax.tree.map(lambda grad: scale * grad, GRADS), carry[1]), None

        (params, _), _ = jax.lax.scan(step, (TWINS, optimizer.init(TWINS)), length=3)
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(params)), global_norm(params)

    run = jax.jit(jax.vmap(jax.value_and_grad(trained, has_aux=True)))
    expected = run(jnp.array([1.0, 2.0]))
    request.getfixturevalue("unknown")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), run(jnp.array([1.0, 2.0])), expected)


@pytest.mark.usefixtures("unknown")
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def test_sharded_leaves_stay_where_they_are(axis_type):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    rows, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    params = {"a": jnp.ones((16, 3)), "b": jnp.ones((16, 3)), "c": jnp.ones(8), "d": jnp.ones(8)}
    params = jax.device_put(params, {"a": rows, "b": rows, "c": rows, "d": whole})
    state = AdamW().init(params)

    def step(params, grads, state):
        return AdamW().update(params, grads, state), global_norm(grads)

    compiled = jax.jit(step).lower(params, params, state).compile()
    assert compiled.as_text().count(" all-reduce(") == 1
    assert not any(name in compiled.as_text() for name in ("all-gather", "all-to-all", "collective-permute"))
    (new, _), norm = compiled(params, params, state)
    assert all(new[name].sharding.is_equivalent_to(params[name].sharding, params[name].ndim) for name in params)
    np.testing.assert_allclose(norm, np.sqrt(112), rtol=1e-6)


@pytest.mark.usefixtures("unknown")
def test_under_shard_map_with_its_checks():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    spec = PartitionSpec("data")
    step = lambda params: AdamW().update(params, params, AdamW().init(params))[0] | {"norm": global_norm(params)[None]}  # noqa: E731
    run = jax.jit(jax.shard_map(step, mesh=mesh, in_specs=spec, out_specs=spec))
    new = run({"a": jnp.ones(16), "b": jnp.ones(16)})
    np.testing.assert_allclose(new["norm"], np.full(8, 2.0), rtol=1e-6)
    np.testing.assert_allclose(new["a"], np.full(16, 1 - 1e-3 - 1e-5), rtol=1e-6)
