"""A step that may not be taken, over many devices, and which platform gets which form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interop import assert_close
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxprs import primitives
from steps import PARAMS, gradients, trainer_of

from mithril_opt import SGD, Accumulate, Adam, AdamW, MultiOptimizer
from mithril_opt.core.branch import by_branch, by_loop, by_selection

FORMS = {"branch": by_branch, "selection": by_selection, "loop": by_loop}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
@pytest.mark.parametrize("every", [None, 2])
def test_under_shard_map_each_device_has_its_own_verdict(force, form, axis_type, every):
    """With its default checks; device 3 overflows."""
    force(form)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    spec, trainer = PartitionSpec("data"), trainer_of(SGD(learning_rate=0.5) if every is None else Accumulate(SGD(0.5), every))

    def step(params, grads):
        state = trainer.init(params)
        for _ in range(every or 1):
            params, state, success = trainer.update(params, grads * state.loss_scale.scale, state)
        return params, success[None], state.optimizer[0][None] if every is None else state.optimizer.optimizer.step[None]

    place = functools.partial(jax.device_put, device=NamedSharding(mesh, spec))
    grads = np.arange(16, dtype=np.float32)
    grads[7] = np.inf
    run = jax.jit(jax.shard_map(step, mesh=mesh, in_specs=spec, out_specs=spec))
    params, success, steps = run(place(jnp.ones(16)), place(grads))
    np.testing.assert_array_equal(success, np.arange(8) != 3)
    np.testing.assert_array_equal(steps, np.arange(8) != 3)
    np.testing.assert_array_equal(params, np.where(np.arange(16) // 2 == 3, 1, 1 - 0.5 * grads))


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def test_sharded_parameters_stay_where_they_are(force, form, axis_type):
    force(form)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    params = jax.device_put({"w": jnp.ones((16, 3))}, rows)
    for optimizer in (Adam(), Accumulate(Adam(), 2)):
        trainer = trainer_of(optimizer, clip_norm=1.0)
        state = trainer.init(params)
        compiled = jax.jit(trainer.update).lower(params, params, state).compile()
        assert compiled.as_text().count(" all-reduce(") == 1
        assert " all-gather(" not in compiled.as_text()
        new_params, new_state, _ = compiled(params, params, state)
        for old, new in zip(jax.tree.leaves((params, state)), jax.tree.leaves((new_params, new_state)), strict=True):
            assert new.sharding.is_equivalent_to(old.sharding, old.ndim) or old.ndim == 0


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_donated_buffers_are_all_used(force, form):
    force(form)
    trainer = trainer_of(Accumulate(Adam(), every=2))
    params = jax.tree.map(jnp.copy, PARAMS)
    state = trainer.init(params)
    step = jax.jit(trainer.update, donate_argnums=(0, 2))
    for i in range(3):
        old = jax.tree.leaves((params, state))
        params, state, _ = step(params, gradients(i), state)
        assert all(leaf.is_deleted() for leaf in old)


# Which platform gets which form.


def forms(optimizer, platform):
    """How often the update branches, loops, and selects there."""
    found = primitives(jax.make_jaxpr(optimizer.update)(PARAMS, PARAMS, optimizer.init(PARAMS)).jaxpr, platform)
    return found["cond"], found["while"], found["select_n"]


@pytest.mark.parametrize("platform", ["cpu", "tpu", "cuda", "rocm"])
def test_how_a_step_is_committed(platform):
    """By one branch on CPUs; elsewhere by selecting parameters and state: 2 parameters, 4 moments, a count."""
    branches, loops, selections = forms(trainer_of(AdamW()), platform)
    *_, fewest = forms(trainer_of(AdamW()), "cpu")
    assert (branches, loops) == ((1, 0) if platform == "cpu" else (0, 0))
    assert selections >= fewest + (0 if platform == "cpu" else 7)


ACCUMULATING = {
    "alone": (Accumulate(AdamW(), 2), 1),
    "trainer": (trainer_of(Accumulate(AdamW(), 2)), 2),
    "groups": (trainer_of(MultiOptimizer({"a": Accumulate(AdamW(), 2), "b": Accumulate(SGD(), 2)}, {"a": "e*", "b": ...})), 3),
}


@pytest.mark.parametrize("platform", ["cpu", "tpu", "cuda", "rocm"])
@pytest.mark.parametrize("name", ACCUMULATING)
def test_how_a_window_is_closed(platform, name):
    """By a branch for each group, and one for the verdict around them; on GPUs by loops."""
    optimizer, number = ACCUMULATING[name]
    branches, loops, _ = forms(optimizer, platform)
    assert (branches, loops) == ((number, 0) if platform in ("cpu", "tpu") else (0, number))


@pytest.mark.parametrize("optimizer", [AdamW(), Accumulate(AdamW(), 2)], ids=["adamw", "accumulate"])
def test_one_exported_program_for_all_platforms(optimizer):
    trainer = trainer_of(optimizer, clip_norm=1.0)
    params, state = PARAMS, trainer.init(PARAMS)
    program = jax.export.export(jax.jit(trainer.update), platforms=("cpu", "cuda", "tpu"))(params, params, state)
    assert program.platforms == ("cpu", "cuda", "tpu")
    for seed in range(4):
        expected = trainer.update(params, gradients(seed), state)
        params, state, success = jax.jit(program.call)(params, gradients(seed), state)
        assert_close((params, state, success), expected)
