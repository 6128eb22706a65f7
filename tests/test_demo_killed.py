"""A run of the demo that is killed, in the middle of a save too, and goes on: the bits of the run that was not."""

import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from orbax.checkpoint import StandardCheckpointer
from test_demo import refuses

from mithril_opt.demo import __main__ as command
from mithril_opt.demo import data, model, picture, report, train

TIME_LIMIT = 120
PROGRAM = [sys.executable, "-W", "error", "-m", "mithril_opt.demo"]
# The demo with a model and a text so small that most of its time is that of imports.
SIZES = {"VOCABULARY": 64, "WIDTH": 16, "LAYERS": 1}
TEXT = data.read_text()[:20_000]
SMALL = f"""
import sys
from mithril_opt.demo import __main__, data, model
vars(model).update({SIZES})
text = data.read_text()[:{len(TEXT)}]
data.read_text = lambda: text
sys.exit(__main__.main())
"""


def arguments(folder, steps, *more):
    checkpoints = [f"--checkpoint-dir={folder / 'checkpoints'}", "--checkpoint-every=2"]
    return [f"--steps={steps}", f"--out={folder}", *checkpoints, *more]


def killed(program, folder, steps, moment):
    """Start a run, or go on with it, and kill it when `moment(folder, running)` returns; whether it was still running."""
    whole = [*program, *arguments(folder, steps, "--resume")]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    with subprocess.Popen(whole, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, text=True) as run:
        running = lambda: run.poll() is None  # noqa: E731
        moment(folder, running)
        run.send_signal(signal.SIGKILL)
        output = run.communicate(timeout=TIME_LIMIT)[0]
    assert run.returncode in (0, 1, -signal.SIGKILL), output
    assert "Traceback" not in output
    return run.returncode == -signal.SIGKILL


def after_lines(count, seconds):
    """The moment some time after the metrics have so many lines."""

    def wait(folder, running):
        while running() and lines(folder) < count:
            time.sleep(0.002)
        time.sleep(seconds)

    return wait


def lines(folder):
    metrics = folder / command.METRICS
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def in_a_save(number, seconds):
    """The moment some time after a save has begun."""

    def wait(folder, running):
        begun = set()
        while running() and len(begun) < number:
            begun |= {path.name for path in (folder / "checkpoints").glob("*tmp*")}
        time.sleep(seconds)

    return wait


def final(folder, steps):
    """All that a run leaves: its metrics, its picture and the arrays of its last checkpoint."""
    with StandardCheckpointer() as checkpointer:
        arrays = checkpointer.restore(folder / "checkpoints" / str(steps) / "arrays")
    assert {"embedding", "blocks", "norm"} <= arrays[0].keys()
    files = [(folder / name).read_bytes() for name in (command.METRICS, command.CURVES)]
    return files + [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(arrays)]


def summary(printed):
    """What is printed of a run, but for what it measures of itself and the places of the files."""
    found = dict(line.split(maxsplit=1) for line in printed.splitlines()[-9:])
    return {name: value for name, value in found.items() if name not in ("memory", "speed", "time", "written")}


@pytest.fixture
def small(monkeypatch):
    """What SMALL does, in this process."""
    for name, size in SIZES.items():
        monkeypatch.setattr(model, name, size)
    monkeypatch.setattr(data, "read_text", lambda: TEXT)


@pytest.mark.usefixtures("small")
def test_killed_at_random_moments(tmp_path, capsys):
    steps, whole, broken = 24, tmp_path / "whole", tmp_path / "broken"
    status, printed = command.main(arguments(whole, steps)), capsys.readouterr().out
    moments = [(random.randrange(*between), random.uniform(0.0, 0.05)) for between in ((2, 10), (10, 20))]
    for count, seconds in moments:
        killed([sys.executable, "-W", "error", "-c", SMALL], broken, steps, after_lines(count, seconds))
    resumed = command.main(arguments(broken, steps, "--resume")), summary(capsys.readouterr().out)
    assert final(broken, steps) == final(whole, steps), f"killed so many lines and seconds after the start: {moments}"
    assert resumed == (status, summary(printed))


@pytest.mark.slow
def test_killed_in_saves_and_between_them(tmp_path):
    steps, kills, whole, broken = 40, 0, tmp_path / "whole", tmp_path / "broken"
    expected = finish(whole, steps)
    while killed(PROGRAM, broken, steps, random_moment(broken)):
        kills += 1
    assert kills > 1
    resumed = finish(broken, steps, "--resume")
    assert final(broken, steps) == final(whole, steps)
    assert sorted(path.name for path in (broken / "checkpoints").iterdir()) == ["38", "40"]
    assert (resumed.returncode, summary(resumed.stdout)) == (expected.returncode, summary(expected.stdout))


@pytest.mark.usefixtures("small")
def test_what_a_resumed_run_says(tmp_path, capsys, monkeypatch):
    """A run that is over has nothing left to train; its time is that of all its parts. The last checkpoints are kept."""
    command.main(arguments(tmp_path, 7))
    first, before = capsys.readouterr().out, final(tmp_path, 7)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["6", "7"]
    clock = time.perf_counter()
    monkeypatch.setattr(time, "perf_counter", lambda: clock)
    command.main(arguments(tmp_path, 7, "--resume"))
    again = capsys.readouterr().out
    assert "from step 7 on" in again
    assert "no step was left to train" in again
    assert summary(again) == summary(first)
    assert 0 < float(again.split("time ")[1].split()[0]) <= float(first.split("time ")[1].split()[0])
    assert final(tmp_path, 7) == before


@pytest.mark.usefixtures("small")
def test_the_last_checkpoint_is_complete_before_the_picture(tmp_path, monkeypatch):
    found = []
    monkeypatch.setattr(picture, "plot", lambda *_: found.extend(path.name for path in (tmp_path / "checkpoints").iterdir()))
    command.main(arguments(tmp_path, 2))
    assert found == ["2"]


@pytest.mark.usefixtures("small")
def test_the_bar_goes_on_where_it_was(tmp_path, capsys, monkeypatch):
    command.main(arguments(tmp_path, 6))
    shutil.rmtree(tmp_path / "checkpoints" / "6")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    command.main(arguments(tmp_path, 6, "--resume"))
    shown = capsys.readouterr().err
    assert "4/6" in shown
    assert "6/6" in shown
    assert "1/6" not in shown


@pytest.fixture
def begun(small, tmp_path, capsys):
    """The folder of a run that is over."""
    command.main(arguments(tmp_path, 2))
    capsys.readouterr()
    return tmp_path


def test_what_does_not_fit_is_refused_and_changes_nothing(begun, capsys):
    before = final(begun, 2)
    assert "--resume" in refuses(capsys, "--checkpoint-dir", *arguments(begun, 2))
    assert "of a run with --steps 2, --seed 0" in refuses(capsys, "", *arguments(begun, 3, "--resume", "--seed=1"))
    assert "--optimizer Adam+AdamW" in refuses(capsys, "", *arguments(begun, 2, "--resume", "--optimizer=lion"))
    refuses(capsys, "does not hold the metrics", *arguments(begun, 2, "--resume"), f"--out={begun / 'elsewhere'}")
    assert final(begun, 2) == before


def test_metrics_of_another_run(begun, capsys):
    metrics = begun / command.METRICS
    metrics.write_text(metrics.read_text().replace("2", "3"))
    refuses(capsys, "does not hold the metrics of the run", *arguments(begun, 2, "--resume"))


def test_options_that_need_a_folder(tmp_path, capsys):
    refuses(capsys, "--resume: needs --checkpoint-dir", f"--out={tmp_path}", "--resume")
    refuses(capsys, "--checkpoint-every: needs --checkpoint-dir", f"--out={tmp_path}", "--checkpoint-every=50")
    (tmp_path / "file").touch()
    refuses(capsys, "--checkpoint-dir: cannot write", f"--out={tmp_path}", f"--checkpoint-dir={tmp_path / 'file' / 'below'}")
    refuses(capsys, "--checkpoint-every", f"--out={tmp_path}", "--checkpoint-every=0")


def test_orbax_is_only_needed_for_checkpoints(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "orbax", None)
    assert "orbax-checkpoint not found; run: pip install orbax-checkpoint" in refuses(capsys, "orbax", *arguments(tmp_path, 2))
    monkeypatch.setattr(command, "run", lambda *_: 0)
    assert command.main([f"--out={tmp_path}"]) == 0


def test_metrics_that_json_does_not_know(tmp_path):
    block = train.Block([{"step": 1, "loss": math.nan, "grad_norm": math.inf, "skipped": True}], 0.5)
    assert list(report.write_metrics([block], tmp_path / "file")) == [block]
    (record,) = report.read_metrics(tmp_path / "file")
    assert math.isnan(record.pop("loss"))
    assert math.isnan(record.pop("grad_norm"))
    assert record == {"step": 1, "skipped": True}


@pytest.mark.parametrize("every", [3, 7, 10, 50])
@pytest.mark.parametrize("done", [0, 7, 20, 49, 50])
def test_blocks_of_a_run_that_goes_on(done, every):
    blocks = train.blocks(50, done, every)
    assert [i for block in blocks for i in block] == list(range(done + 1, 51))
    assert set(range(done + 1, 51)) & {*range(every, 50, every), *range(10, 50, 10)} <= {block[-1] for block in blocks}
    assert max(map(len, blocks), default=0) <= train.READ_EVERY
    assert not blocks or len(blocks[0]) == 1


def random_moment(folder):
    if random.random() < 0.7:
        return in_a_save(random.randrange(1, 5), random.uniform(0.0, 0.05))
    return after_lines(lines(folder) + random.randrange(12), random.uniform(0.0, 0.2))


def finish(*given):
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    whole = [*PROGRAM, *arguments(*given)]
    done = subprocess.run(whole, capture_output=True, text=True, env=environment, timeout=TIME_LIMIT, check=False)
    assert done.returncode in (0, 1), done.stderr
    return done
