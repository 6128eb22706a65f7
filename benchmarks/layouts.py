"""Training steps over several devices, in the layouts of the guide to many devices."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import mithril_opt
from benchmarks.candidates import CLIP_NORM
from benchmarks.workloads import Workload

WIDTH, LAYERS, BATCH = 512, 4, 4096
TRAINER = mithril_opt.MixedPrecisionTrainer(None, mithril_opt.AdamW(learning_rate=1e-3), clip_norm=CLIP_NORM)


class Layout(NamedTuple):
    """Where parameters and slots live.

    Attributes:
        model: the number of devices that a matrix is spread over; the others are data-parallel.
        fsdp: whether parameters are also spread over the data-parallel devices.
        zero: whether only slots are.
        micro_batches: the number of pieces of a batch.
    """

    model: int = 1
    fsdp: bool = False
    zero: bool = False
    micro_batches: int = 1

    def mesh(self, devices: list[Any]) -> Mesh:
        """The devices by data and model."""
        return Mesh(np.array(devices).reshape(-1, self.model), ("data", "model"))

    def spec(self, shape: tuple[int, ...]) -> PartitionSpec:
        """How a parameter is spread: by rows, or, for a model axis, matrices that are wider than high by columns."""
        if self.fsdp and shape:
            return PartitionSpec("data")
        if self.model == 1 or len(shape) != 2:
            return PartitionSpec()
        return PartitionSpec(None, "model") if shape[1] > shape[0] else PartitionSpec("model")


LAYOUTS = {
    "data": Layout(),
    "data, 4 micro-batches": Layout(micro_batches=4),
    "zero1": Layout(zero=True),
    "fsdp": Layout(fsdp=True),
    "tensor": Layout(model=2),
    "tensor, zero1": Layout(model=2, zero=True),
}


def compile_update(layout: Layout, workload: Workload, devices: list[Any]) -> Any:
    """Unscale, check, clip, AdamW and commit of gradients that lie as the parameters do. Where results lie is left to the
    compiler, unless slots alone are spread."""
    params, state, shardings = placed(layout, workload.shape_tree(), devices)

    def step(params: Any, grads: Any, state: Any) -> tuple[Any, Any]:
        return TRAINER.update(params, grads, state)[:2]

    jitted = jax.jit(step, donate_argnums=(0, 2), out_shardings=shardings if layout.zero else None)
    return jitted.lower(params, params, state).compile()


def count_elsewhere(update: Any, layout: Layout, workload: Workload) -> int:
    """How many results of `compile_update` do not lie where they came from."""
    (params, _, state), _ = update.input_shardings
    leaves = jax.tree.leaves((workload.shape_tree(), jax.eval_shape(TRAINER.init, workload.shape_tree())))
    pairs = zip(jax.tree.leaves((params, state)), jax.tree.leaves(update.output_shardings), leaves, strict=True)
    return sum(not new.is_equivalent_to(old, leaf.ndim) for old, new, leaf in pairs)


def compile_step(layout: Layout, devices: list[Any]) -> Any:
    """A whole training step of a small perceptron, its batch spread over the data-parallel devices."""
    shapes = [{"up": (WIDTH, 4 * WIDTH), "down": (4 * WIDTH, WIDTH), "bias": (WIDTH,)} for _ in range(LAYERS)]
    is_shape = lambda node: isinstance(node, tuple)  # noqa: E731
    tree = jax.tree.map(lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32), shapes, is_leaf=is_shape)
    params, state, shardings = placed(layout, tree, devices)
    rows = NamedSharding(layout.mesh(devices), PartitionSpec("data"))
    batch = jax.ShapeDtypeStruct((BATCH, WIDTH), jnp.float32, sharding=rows)

    def step(params: Any, state: Any, x: Any) -> tuple[Any, Any]:
        value_and_grad = TRAINER.value_and_grad(loss_fn, micro_batches=layout.micro_batches)
        loss, grads = value_and_grad(params, state, x)
        return TRAINER.update(params, grads, state, loss=loss)[:2]

    return jax.jit(step, donate_argnums=(0, 1), out_shardings=shardings).lower(params, state, batch).compile()


def loss_fn(params: Any, x: Any) -> Any:
    """The mean square of what a residual perceptron makes of `x`."""
    for layer in params:
        x = x + jnp.tanh(x @ layer["up"]) @ layer["down"] + layer["bias"]
    return jnp.mean(x.astype(jnp.float32) ** 2)


def placed(layout: Layout, shapes: Any, devices: list[Any]) -> tuple[Any, Any, Any]:
    """Parameters and state as shapes on devices, and the shardings of both."""
    mesh = layout.mesh(devices)
    own = jax.tree.map(lambda leaf: NamedSharding(mesh, layout.spec(leaf.shape)), shapes)
    state = jax.eval_shape(TRAINER.init, shapes)
    of_state = mithril_opt.state_shardings(TRAINER, shapes, own, zero_axis="data" if layout.zero else None)
    place = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)  # noqa: E731
    return jax.tree.map(place, shapes, own), jax.tree.map(place, state, of_state), (own, of_state)
