"""What Adafactor keeps of a leaf, beside what test_papers_factored.py says of its numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from zoo import bits

from mithril_opt import Adafactor, from_state_dict, to_state_dict
from mithril_opt.core.slots import state_bytes


def first_and_last(path, leaf):
    return (0, -1) if path in ("matrix", "experts") else ()


@pytest.mark.parametrize(
    ("shape", "row", "col"),
    [
        ((128, 128), (128,), (128,)),
        ((512, 256), (256,), (512,)),
        ((127, 300), None, None),
        ((300,), None, None),
        ((), None, None),
        ((3, 3, 256, 512), (3, 3, 256), (3, 3, 512)),
        ((200, 3, 150), (3, 150), (200, 3)),
        ((130, 128, 129), (128, 129), (130, 128)),
        ((130, 130, 129), (130, 129), (130, 129)),
    ],
    ids=str,
)
def test_the_two_largest_axes_are_factored(shape, row, col):
    slots = jax.eval_shape(Adafactor().init, jnp.zeros(shape)).slots
    assert [None if slot is None else slot.shape for slot in slots] == [row, col, shape if row is None else None, None]


def test_axes_that_count_layers_are_not_factored():
    params = {"layers": jnp.zeros((256, 130, 128)), "bias": jnp.zeros((256, 130)), "head": jnp.zeros((130, 128))}
    optimizer = Adafactor(unit_axes=lambda path, leaf: None if path == "head" else 0)
    slots = jax.eval_shape(optimizer.init, params).slots
    assert (slots.row["layers"].shape, slots.col["layers"].shape) == ((256, 128), (256, 130))
    assert slots.nu["bias"].shape == (256, 130)
    assert slots.row["head"].shape == (128,)


def test_the_axes_to_factor_can_be_named():
    heads = {"query": jnp.zeros((256, 4, 128)), "w": jnp.zeros((256, 128)), "scale": jnp.zeros(256)}
    slots = jax.eval_shape(Adafactor(matrix_axes=(0, -1)).init, heads).slots
    assert (slots.row["query"].shape, slots.col["query"].shape, slots.row["w"].shape) == ((256, 4), (4, 128), (256,))
    assert slots.nu["scale"].shape == (256,)
    by_name = Adafactor(matrix_axes=lambda path, leaf: () if path == "w" else None)
    assert jax.eval_shape(by_name.init, heads).slots.nu["w"].shape == (256, 128)
    assert jax.eval_shape(Adafactor(matrix_axes=()).init, heads).slots.row is None
    short = Adafactor(matrix_axes=lambda path, leaf: (0, 1))  # and a named axis may be too short
    assert jax.eval_shape(short.init, heads).slots.nu["query"].shape == (256, 4, 128)


def test_axes_by_name_of_no_leaf():
    optimizer = Adafactor(min_dim_size_to_factor=1, matrix_axes=first_and_last, unit_axes=lambda path, leaf: 0)
    assert optimizer.update({}, {}, optimizer.init({}))[0] == {}


def test_axes_of_one_element():
    """V is then one row or one column, which is exact."""
    params = {"row": jnp.ones((1, 3)), "column": jnp.ones((3, 1))}
    grads = {"row": jnp.asarray([[1.0, -2.0, 3.0]]), "column": jnp.asarray([[1.0], [-2.0], [3.0]])}
    factored, whole = Adafactor(min_dim_size_to_factor=1), Adafactor(min_dim_size_to_factor=2)
    assert factored.init(params).slots.row["row"].shape == (1,)
    expected, _ = whole.update(params, grads, whole.init(params))
    jax.tree.map(np.testing.assert_allclose, factored.update(params, grads, factored.init(params))[0], expected)


@pytest.mark.parametrize(("beta1", "expected"), [(None, 0.024), (0.9, 4.024)])
def test_bytes_of_state(beta1, expected):
    params = {"w": jax.ShapeDtypeStruct((256, 512), jnp.bfloat16)}
    assert state_bytes(Adafactor(beta1=beta1), params)[0] / (256 * 512) == pytest.approx(expected, abs=1e-3)


@pytest.mark.newest
def test_what_is_factored_has_no_temporary_but_one():
    """The update, whose RMS must be known before it is applied. V would be another."""
    optimizer, params = Adafactor(), {"w": jax.ShapeDtypeStruct((512, 1024), jnp.float32)}
    state = jax.eval_shape(optimizer.init, params)
    program = jax.jit(optimizer.update, donate_argnums=(0, 2)).lower(params, params, state).compile()
    assert program.memory_analysis().temp_size_in_bytes < 1.1 * 4 * 512 * 1024


def test_a_checkpoint_of_factored_slots():
    """Leaves lack slots, and another size to factor from is another layout."""
    params = {"w": jnp.ones((4, 3)), "b": jnp.ones(3)}
    optimizer = Adafactor(min_dim_size_to_factor=2, beta1=0.5)
    _, state = optimizer.update(params, params, optimizer.init(params))
    saved = to_state_dict(state)
    assert {name for name in saved if name.startswith("slots/")} == {
        "slots/row/w",
        "slots/col/w",
        "slots/nu/b",
        "slots/mu/b",
        "slots/mu/w",
    }
    assert bits(from_state_dict(optimizer.init(params), saved)) == bits(state)
    with pytest.raises(ValueError, match=r"the saved state is another rule's, or one with other switches"):
        from_state_dict(Adafactor(beta1=0.5).init(params), saved)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
@pytest.mark.parametrize(
    ("spec", "row", "col"),
    [
        (PartitionSpec("data", "model"), PartitionSpec("data"), PartitionSpec("model")),
        (PartitionSpec("data"), PartitionSpec("data"), PartitionSpec(None)),
        (PartitionSpec(), PartitionSpec(None), PartitionSpec(None)),
    ],
    ids=["both", "rows", "none"],
)
def test_factored_slots_are_sharded_like_the_axes_they_keep(spec, row, col, axis_type):
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(axis_type, axis_type))
    sharding = NamedSharding(mesh, spec)
    concrete = {"w": jax.device_put(jnp.ones((8, 16)), sharding)}
    for params in (concrete, {"w": jax.ShapeDtypeStruct((8, 16), jnp.float32, sharding=sharding)}):
        slots = Adafactor(min_dim_size_to_factor=4).init(params).slots
        assert slots.row["w"].sharding.is_equivalent_to(NamedSharding(mesh, row), 1)
        assert slots.col["w"].sharding.is_equivalent_to(NamedSharding(mesh, col), 1)


# Bad input.


@pytest.mark.parametrize("least", [0, -1, 128.0, True, None])
def test_sizes_that_cannot_be_factored(least):
    with pytest.raises(ValueError, match=f"Adafactor: min_dim_size_to_factor must be an integer of at least 1, got {least}"):
        Adafactor(min_dim_size_to_factor=least)


@pytest.mark.parametrize("axes", [0, (0,), (0, 1, 2), (1, 2), (-1, 0)])
def test_axes_that_are_no_matrix(axes):
    optimizer = Adafactor(matrix_axes=axes, unit_axes=2)
    with pytest.raises(ValueError, match=r"at 'w': Adafactor.matrix_axes must be two axes that count no layers, got "):
        optimizer.init({"w": jnp.zeros((4, 4, 4))})


def test_axes_to_factor_that_a_leaf_does_not_have():
    with pytest.raises(ValueError, match=r"at 'w': Adafactor.matrix_axes must be different axes of \(4, 4\), got \(0, 2\)"):
        Adafactor(matrix_axes=(0, 2)).init({"w": jnp.zeros((4, 4))})
    with pytest.raises(TypeError, match="Adafactor: matrix_axes must be an axis, a tuple of axes, None or a function"):
        Adafactor(matrix_axes="last two")
