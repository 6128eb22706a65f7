"""A whole run to copy: data, validation, early stopping, logs, checkpoints, mixed precision, groups, averages, many devices.

A run that was killed goes on with the same command, on as many devices and machines as there are then. TensorBoard shows the
folder `log`. With --distributed it is one process of several, as under Slurm or on a TPU pod.
"""

import argparse
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN
from tensorboard.summary import Writer

from mithril_opt import (
    EMA,
    AdamW,
    LinearWarmupScheduler,
    MixedPrecisionTrainer,
    MultiOptimizer,
    Muon,
    ReduceLROnPlateau,
    hidden_matrices,
    state_shardings,
)

SEED, BATCH, CLASSES, WIDTH = 0, 128, 3, 64
VALIDATE_EVERY, PATIENCE, KEEP_BEST = 50, 8, 3  # patience: so many validations without a new best end the run


def load_data(size, seed):
    """Noisy points on the arms of a spiral, and their arms. Your data comes here."""
    generator = np.random.default_rng(seed)
    arm, radius = generator.integers(CLASSES, size=size), generator.uniform(0.1, 1.0, size)
    angle = 2 * np.pi * arm / CLASSES + 5.0 * radius + generator.normal(0.0, 0.6, size)
    return np.float32(np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)), np.int32(arm)


def batch_rows(step, size):
    """The rows of a step, in another order in each epoch: a function of the step, so a run that goes on needs nothing else."""
    epoch, i = divmod(step - 1, size // BATCH)
    return np.random.default_rng((SEED, epoch)).permutation(size)[i * BATCH : (i + 1) * BATCH]


def init(key):
    """Fresh parameters. Your model comes here, and in `loss_fn`."""
    shapes = {"embed": (2, WIDTH), "up": (WIDTH, 2 * WIDTH), "down": (2 * WIDTH, WIDTH), "head": (WIDTH, CLASSES)}
    weights = {name: jax.random.normal(jax.random.fold_in(key, i), shape) for i, (name, shape) in enumerate(shapes.items())}
    return {name: {"w": w * w.shape[0] ** -0.5, "bias": jnp.zeros(w.shape[1])} for name, w in weights.items()}


def loss_fn(params, x, y, key=None):
    """The mean cross-entropy; with a key, of inputs with a little noise."""
    if key is not None:
        x = x + 0.02 * jax.random.normal(key, x.shape, x.dtype)
    for name in ("embed", "up", "down"):
        x = jax.nn.gelu(x @ params[name]["w"] + params[name]["bias"][None])
    logits = (x @ params["head"]["w"] + params["head"]["bias"][None]).astype(jnp.float32)
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], axis=1))


def make_trainer(precision):
    """Muon for the hidden matrices, AdamW for the rest; both rates follow the validation loss; an average to evaluate."""
    rate = lambda peak: LinearWarmupScheduler(50, 0.0, peak, ReduceLROnPlateau(peak, factor=0.5, patience=2))  # noqa: E731
    rules = {"muon": Muon(learning_rate=rate(3e-3)), "adamw": AdamW(learning_rate=rate(3e-3))}
    optimizer = EMA(MultiOptimizer(rules, groups={"muon": hidden_matrices, "adamw": ...}), decay=0.98)
    return MixedPrecisionTrainer(None, optimizer, policy=precision, clip_norm=1.0)


def open_checkpoints(folder):
    """The last checkpoint and the best ones, each there whole or not at all; what a killed process left is cleaned away."""
    best = BestN(
        get_metric_fn=lambda metrics: metrics["loss"], reverse=True, n=KEEP_BEST, keep_checkpoints_without_metrics=False
    )
    keep, order = AnyPreservationPolicy([LatestN(1), best]), {"best_fn": best.get_metric_fn, "best_mode": "min"}
    options = ocp.CheckpointManagerOptions(preservation_policy=keep, cleanup_tmp_directories=True, **order)
    return ocp.CheckpointManager(folder.absolute() / "checkpoints", options=options)


def make_steps(trainer, layout):
    """The training step and the validation, compiled for wherever `layout` says that parameters and state live."""

    @functools.partial(jax.jit, donate_argnums=(0, 1), out_shardings=(layout, None))
    def train(params, state, x, y, key):
        loss, grads = trainer.value_and_grad(loss_fn)(params, state, x, y, key)
        params, state, _ = trainer.update(params, grads, state, loss=loss)
        return (params, state), loss

    @functools.partial(jax.jit, donate_argnums=(0, 1), out_shardings=(layout, None))
    def validate(params, state, x, y):
        loss = loss_fn(trainer.eval_params(params, state), x, y)
        readings = {**trainer.learning_rates(state), **trainer.metrics(state)}
        return (params, trainer.observe(state, loss)), {"validation_loss": loss, **readings}

    return train, validate


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/train"), help="for checkpoints and logs")
    parser.add_argument("--steps", type=int, default=3000, help="at most so many")
    parser.add_argument("--precision", default="bfloat16", help="float32, bfloat16 or float16")
    parser.add_argument("--distributed", action="store_true", help="this process is one of several")
    options = parser.parse_args(arguments)
    if options.steps < VALIDATE_EVERY:
        parser.error(f"argument --steps: the first validation, and checkpoint, is after {VALIDATE_EVERY}, got {options.steps}")
    if options.distributed:
        jax.distributed.initialize()  # finds the others under Slurm, MPI, Kubernetes and on TPU pods
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    everywhere, rows = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
    # Each process reads the rows of its own devices only.
    spread = lambda array: jax.make_array_from_callback(array.shape, rows, array.__getitem__)  # noqa: E731

    trainer, key = make_trainer(options.precision), jax.random.key(SEED)
    start = lambda: (params := init(key), trainer.init(params))  # noqa: E731
    shapes = jax.eval_shape(start)
    layout = (jax.tree.map(lambda _: everywhere, shapes[0]), state_shardings(trainer, shapes[0], everywhere, zero_axis="data"))
    train, validate = make_steps(trainer, layout)
    template = jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes, layout)
    checkpoints = open_checkpoints(options.folder)
    done = checkpoints.latest_step() or 0
    run = checkpoints.restore(done, args=ocp.args.StandardRestore(template)) if done else jax.jit(start, out_shardings=layout)()

    (x, y), held_out = load_data(4096, seed=1), [spread(part) for part in load_data(1024, seed=2)]
    log = Writer(str(options.folder / "log")) if jax.process_index() == 0 else None
    for step in range(done + 1, options.steps + 1):
        if (step - 1) % VALIDATE_EVERY == 0 and step - 1 - (checkpoints.best_step() or 0) >= PATIENCE * VALIDATE_EVERY:
            break
        own = batch_rows(step, len(x))
        run, loss = train(*run, spread(x[own]), spread(y[own]), jax.random.fold_in(key, step))
        if step % VALIDATE_EVERY == 0:
            run, readings = validate(*run, *held_out)
            readings = {"training_loss": float(loss), **{name: float(value) for name, value in readings.items()}}
            if log:
                for name, value in readings.items():
                    log.add_scalar(name, value, step)
                log.flush()  # before the checkpoint, or a run that goes on from it would have a gap here
            checkpoints.save(step, args=ocp.args.StandardSave(run), metrics={"loss": readings["validation_loss"]})
    checkpoints.wait_until_finished()
    params, state = checkpoints.restore(best := checkpoints.best_step(), args=ocp.args.StandardRestore(template))
    loss = float(jax.jit(loss_fn)(trainer.eval_params(params, state), *held_out))
    if jax.process_index() == 0:
        print(f"step {best} is the best, with a validation loss of {loss:.4f}")
    return best, loss


if __name__ == "__main__":
    main()
