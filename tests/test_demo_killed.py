"""A run of the demo that is killed, in the middle of a save too, and goes on: the bits of the run that was not."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from orbax.checkpoint import StandardCheckpointer
from test_demo import call, refuses

from mithril_opt.demo import __main__ as command
from mithril_opt.demo import report, train
from mithril_opt.demo.checkpoints import go_back, mark

TIME_LIMIT = 120


def arguments(folder, steps, *more):
    checkpoints = [f"--checkpoint-dir={folder / 'checkpoints'}", "--checkpoint-every=2"]
    return [f"--steps={steps}", "--seed=3", f"--out={folder}", *checkpoints, *more]


def killed(folder, steps, moment):
    """Start a run, or go on with it, and kill it when `moment(folder)` returns; whether it was still running."""
    program = [sys.executable, "-W", "error", "-m", "mithril_opt.demo", *arguments(folder, steps, "--resume")]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=os.environ | {"JAX_PLATFORMS": "cpu"}) as run:
        running = lambda: run.poll() is None  # noqa: E731
        moment(folder, running)
        was_running = running()
        run.send_signal(signal.SIGKILL)
        output = run.communicate(timeout=TIME_LIMIT)[0]
    assert was_running or run.returncode in (0, 1), output
    return was_running


def after_lines(count, seconds):
    """The moment some time after the metrics have so many lines."""

    def wait(folder, running):
        metrics = folder / "metrics.jsonl"
        while running() and not (metrics.exists() and metrics.read_bytes().count(b"\n") >= count):
            time.sleep(0.002)
        time.sleep(seconds)

    return wait


def in_a_save(number, seconds):
    """The moment some time after the start of a save, while it is not complete."""

    def wait(folder, running):
        started = set()
        while running() and len(started) < number:
            started |= {path.name for path in (folder / "checkpoints").glob("*tmp*")}
        time.sleep(seconds)

    return wait


def final(folder, steps):
    """All that a run leaves: its metrics, its picture and the arrays of its last checkpoint."""
    with StandardCheckpointer() as checkpointer:
        arrays = checkpointer.restore(folder / "checkpoints" / str(steps) / "arrays")
    arrays = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(arrays)]
    assert len(arrays) > 50
    return [(folder / name).read_bytes() for name in (command.METRICS, command.CURVES)] + arrays


def summary(stdout):
    """What is printed of a run, but for the clock and the places of the files."""
    lines = dict(line.split(maxsplit=1) for line in stdout.splitlines()[-8:])
    return {name: value for name, value in lines.items() if name not in ("speed", "time", "written")}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """A function that makes the run of so many steps, once."""
    done = {}

    def run(steps):
        if steps not in done:
            folder = tmp_path_factory.mktemp(f"whole-{steps}")
            done[steps] = call(*arguments(folder, steps), out=folder)
        return done[steps]

    return run


def test_killed_at_a_random_moment(uninterrupted, tmp_path):
    lines, seconds = random.randrange(2, 8), random.uniform(0.0, 0.3)
    print(f"killed {seconds} s after {lines} lines")
    whole = uninterrupted(8)
    assert killed(tmp_path, 8, after_lines(lines, seconds)), "the run was over"
    resumed = call(*arguments(tmp_path, 8, "--resume"), out=tmp_path)
    assert final(tmp_path, 8) == final(whole.out, 8)
    assert resumed.status == whole.status
    assert summary(resumed.stdout) == summary(whole.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_killed_again_and_again(seed, uninterrupted, tmp_path):
    draw, steps, kills = random.Random(seed), 40, 0
    for _ in range(8):
        saves, lines, seconds = draw.randrange(1, 6), draw.randrange(1, 12), draw.uniform(0.0, 0.05)
        have = report.read_metrics(tmp_path / "metrics.jsonl") if kills else []
        moment = in_a_save(saves, seconds) if draw.random() < 0.7 else after_lines(len(have) + lines, 4 * seconds)
        kills += killed(tmp_path, steps, moment)
    assert kills > 2
    done = call(*arguments(tmp_path, steps, "--resume"), out=tmp_path)
    assert final(tmp_path, steps) == final(uninterrupted(steps).out, steps)
    assert summary(done.stdout) == summary(uninterrupted(steps).stdout)
