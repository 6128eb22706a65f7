"""`examples/train.py`: what it writes, when it stops, and that it goes on, on one device or many, in one process or several."""

import contextlib
import os
import random
import runpy
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from interop import promotion  # noqa: F401
from orbax.checkpoint import StandardCheckpointer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

EXAMPLE = str(Path(__file__).parent.parent / "examples" / "train.py")
TIME_LIMIT = 300


def run(folder, *arguments, **constants):
    """The example in this process, on its eight devices."""
    main = runpy.run_path(EXAMPLE)["main"]
    assert constants.keys() <= main.__globals__.keys()
    main.__globals__.update(constants)
    return main([f"--folder={folder}", *arguments])


def steps(folder):
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdigit())


def final(folder):
    """The arrays of the last checkpoint."""
    return [np.asarray(leaf) for leaf in jax.tree.leaves(restored(folder))]


def restored(folder):
    """Parameters and state, as dictionaries, of the last checkpoint, whatever devices they were on."""
    path, here = (
        folder / "checkpoints" / str(steps(folder)[-1]) / "default",
        jax.sharding.SingleDeviceSharding(jax.devices()[0]),
    )
    place = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here)  # noqa: E731
    with StandardCheckpointer() as checkpointer:
        template = jax.tree.map(place, checkpointer.metadata(path).item_metadata.tree)
        return checkpointer.restore(path, template)


def as_bits(arrays):
    return [(array.dtype, array.shape, array.tobytes()) for array in arrays]


def logged(folder):
    """What TensorBoard shows: {(name, step): values}. What was not in the last checkpoint is logged again."""
    log, shown = EventAccumulator(str(folder / "log"), size_guidance={"tensors": 0}).Reload(), {}
    for name in log.Tags()["tensors"]:
        for event in log.Tensors(name):
            shown.setdefault((name, event.step), set()).add(float(make_ndarray(event.tensor_proto)))
    return shown


@pytest.mark.usefixtures("promotion")
def test_it_learns_stops_on_a_plateau_and_keeps_the_best(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    best, loss = run(tmp_path, VALIDATE_EVERY=20, PATIENCE=4, WIDTH=128)
    log = logged(tmp_path)
    losses = {step: min(values) for (name, step), values in log.items() if name == "validation_loss"}
    assert loss == pytest.approx(min(losses.values()), rel=1e-5) == pytest.approx(losses[best], rel=1e-5)
    assert loss < 0.7 * losses[20]
    assert max(losses) == best + 80 < 3000
    assert steps(tmp_path) == sorted({*sorted(losses, key=losses.get)[:3], max(losses)})
    rates = {step: min(values) for (name, step), values in log.items() if name == "muon"}
    assert rates[60] > rates[max(rates)]
    assert max(rates.values()) == pytest.approx(3e-3)
    assert {"training_loss", "adamw", "grad_norm", "skipped"} <= {name for name, _ in log}


@pytest.mark.usefixtures("promotion")
def test_the_average_is_what_is_validated(tmp_path):
    run(tmp_path, "--steps=40", VALIDATE_EVERY=20)
    example, (params, state) = runpy.run_path(EXAMPLE), restored(tmp_path)
    (logged_loss,) = logged(tmp_path)["validation_loss", 40]
    held_out = example["load_data"](1024, seed=2)
    assert float(example["loss_fn"](state["optimizer"]["average"], *held_out)) == pytest.approx(logged_loss, rel=1e-5)
    assert float(example["loss_fn"](params, *held_out)) != pytest.approx(logged_loss, rel=1e-3)


@pytest.mark.usefixtures("promotion")
@pytest.mark.parametrize("precision", ["float16", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_it_goes_on_to_the_bit(precision, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    expected = run(whole, "--steps=90", f"--precision={precision}", VALIDATE_EVERY=15)
    for end in (40, 60, 90):
        found = run(parts, f"--steps={end}", f"--precision={precision}", VALIDATE_EVERY=15)
    assert found == expected
    assert as_bits(final(parts)) == as_bits(final(whole))
    assert logged(parts) == logged(whole)
    assert steps(parts) == steps(whole)


def test_fewer_steps_than_a_validation_takes(tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(tmp_path, "--steps=49")
    assert "argument --steps: the first validation, and checkpoint, is after 50, got 49" in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]


def test_batches_are_epochs_in_another_order_each():
    example = runpy.run_path(EXAMPLE)
    rows = [example["batch_rows"](step, 4 * example["BATCH"]) for step in range(1, 9)]
    for epoch in (rows[:4], rows[4:]):
        assert sorted(np.concatenate(epoch)) == list(range(4 * example["BATCH"]))
    assert not np.array_equal(np.concatenate(rows[:4]), np.concatenate(rows[4:]))


@contextlib.contextmanager
def started(folder, processes, devices, *arguments):
    """So many processes of so many devices each, as Slurm would start them on one machine; all are killed at the end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    slurm = {"SLURM_JOB_ID": "1", "SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_NTASKS": str(processes)}
    here = {"JAX_PLATFORMS": "cpu", "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo", "JAX_COORDINATOR_PORT": str(port)}
    flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    program = [sys.executable, "-W", "error", EXAMPLE, f"--folder={folder}", "--precision=float32", *arguments]
    program += ["--distributed"] if processes > 1 else []
    ranks = [{"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)} for rank in range(processes)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    running = [subprocess.Popen(program, env=os.environ | slurm | here | flags | rank, **pipes) for rank in ranks]
    try:
        yield running
    finally:
        for process in running:
            process.send_signal(signal.SIGKILL)
        for process in running:
            process.communicate()


def killed(folder, processes, devices, end, moment):
    """Start, or go on, until `moment(begun)` is true of the names of the checkpoints begun so far, then kill all processes."""
    begun, limit = set(), time.monotonic() + TIME_LIMIT
    with started(folder, processes, devices, f"--steps={end}") as running:
        while not moment(begun) and any(process.poll() is None for process in running):
            assert time.monotonic() < limit
            begun |= {path.name for path in (folder / "checkpoints").glob("*")}
            time.sleep(0.002)
        assert all(process.poll() in (None, 0) for process in running), [process.communicate()[0] for process in running]


def finish(folder, processes, devices, steps):
    """Start, or go on, to the end: what is printed, without what Orbax says of a save that was cut off."""
    with started(folder, processes, devices, f"--steps={steps}") as running:
        outputs = [process.communicate(timeout=TIME_LIMIT)[0] for process in running]
        assert [process.returncode for process in running] == [0] * processes, outputs
    lines = [line for output in outputs for line in output.splitlines(keepends=True)]
    return "".join(line for line in lines if not line.startswith("WARNING:absl:"))


def saved(step):
    return lambda begun: str(step) in begun


def in_the_save_of(step):
    """In it, or after it if it took less time than the machine had for us."""
    return lambda begun: any(name.split(".")[0] == str(step) for name in begun)


@pytest.mark.slow
def test_killed_in_saves_and_after_them(tmp_path):
    whole, broken, end = tmp_path / "whole", tmp_path / "broken", 300
    expected = finish(whole, 1, 1, end)
    for step in sorted(random.sample(range(50, end, 50), 3)):
        killed(broken, 1, 1, end, random.choice([saved, in_the_save_of])(step))
    assert finish(broken, 1, 1, end) == expected
    assert as_bits(final(broken)) == as_bits(final(whole))
    assert logged(broken) == logged(whole)


@pytest.mark.slow
def test_killed_and_gone_on_with_in_other_numbers_of_processes(tmp_path):
    whole, moved, end = tmp_path / "whole", tmp_path / "moved", 250
    finish(whole, 1, 1, end)
    killed(moved, 2, 2, end, saved(50))
    killed(moved, 1, 1, end, in_the_save_of(150))
    killed(moved, 2, 1, end, in_the_save_of(200))
    output = finish(moved, 1, 4, end)
    assert "is the best" in output
    assert steps(moved)[-1] == end
    for actual, expected in zip(final(moved), final(whole), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-4)
    assert logged(moved).keys() == logged(whole).keys()
