"""A checkpoint of one layout restored into another: fewer devices, FSDP to ZeRO-1 and back; the same bits, and the same run."""

import functools
from typing import NamedTuple

import jax
import pytest
from interop import assert_close
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from orbax.checkpoint import CheckpointManager
from orbax.checkpoint.args import StandardRestore, StandardSave
from test_sharding import TRAINER, batch, gradients, make_params
from zoo import bits

from mithril_opt import state_shardings

STEPS, STOPPED_AT = 6, 3  # in the middle of a window of accumulation


class Layout(NamedTuple):
    """So many devices, the parameters whole or spread, and the slots as they are or spread."""

    devices: int
    spec: P
    zero_axis: str | None


FSDP, ZERO = (P("data"), None), (P(), "data")
LAYOUTS = {
    "fsdp-8": Layout(8, *FSDP),
    "zero-8": Layout(8, *ZERO),
    "fsdp-4": Layout(4, *FSDP),
    "zero-4": Layout(4, *ZERO),
    "one": Layout(1, P(), None),
}


def shardings(layout):
    """Of parameters and state, and of the rows of a batch."""
    mesh = jax.make_mesh((layout.devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[: layout.devices])
    own = {name: NamedSharding(mesh, layout.spec) for name in make_params()}
    return (own, state_shardings(TRAINER, make_params(), own, layout.zero_axis)), NamedSharding(mesh, P("data"))


def start(layout):
    whole = make_params(), TRAINER.init(make_params())
    return jax.device_put(whole, shardings(layout)[0])


def train(run, layout, steps):
    places, rows = shardings(layout)
    update = jax.jit(TRAINER.update, out_shardings=(*places, None))
    for seed in steps:
        grads = gradients(run[0], *(jax.device_put(part, rows) for part in batch(seed)), False)
        *run, _ = update(run[0], jax.device_put(grads, places[0]), run[1])
    return tuple(run)


def moved(run, layout, folder):
    """`run` through a checkpoint into another layout."""
    places = shardings(layout)[0]
    template = jax.tree.map(lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), run, places)
    with CheckpointManager(folder) as checkpoints:
        checkpoints.save(1, args=StandardSave(run))
        checkpoints.wait_until_finished()
        restored = checkpoints.restore(1, args=StandardRestore(template))
    assert jax.tree.map(lambda leaf: leaf.sharding, restored) == places
    assert bits(restored) == bits(run)
    return restored


@functools.cache
def stopped(name):
    return train(start(LAYOUTS[name]), LAYOUTS[name], range(STOPPED_AT))


@functools.cache
def whole(name):
    return train(stopped(name), LAYOUTS[name], range(STOPPED_AT, STEPS))


def share_of_a_device(run):
    """Of parameters and of slots, what the first device holds."""
    held = lambda tree: sum(leaf.addressable_shards[0].data.size for leaf in jax.tree.leaves(tree))  # noqa: E731
    size = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))  # noqa: E731
    return tuple(held(tree) / size(tree) for tree in (run[0], run[1].optimizer.mean))


@pytest.mark.parametrize("target", ["zero-8", "fsdp-4", "zero-4", "one"])
def test_a_run_goes_on_in_another_layout(target, tmp_path):
    layout = LAYOUTS[target]
    assert int(stopped("fsdp-8")[1].optimizer.micro_step) > 0
    restored = moved(stopped("fsdp-8"), layout, tmp_path)
    spread = 1 / layout.devices
    assert share_of_a_device(restored) == (spread if layout.spec == P("data") else 1.0, spread)
    resumed = train(restored, layout, range(STOPPED_AT, STEPS))
    assert bits(resumed) == bits(
        train(jax.device_put(stopped("fsdp-8"), shardings(layout)[0]), layout, range(STOPPED_AT, STEPS))
    )
    assert_close(resumed, whole("fsdp-8"))


@pytest.mark.parametrize("other", ["zero-8", "zero-4", "one"])
def test_there_and_back_is_the_run_that_stayed(other, tmp_path):
    there = moved(stopped("fsdp-8"), LAYOUTS[other], tmp_path / "there")
    back = moved(there, LAYOUTS["fsdp-8"], tmp_path / "back")
    assert bits(train(back, LAYOUTS["fsdp-8"], range(STOPPED_AT, STEPS))) == bits(whole("fsdp-8"))
