"""Every example trains; `examples/` is not a package, so each file is run by its path, `train` by `test_example_train.py`."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from interop import promotion  # noqa: F401

EXAMPLES = Path(__file__).parent.parent / "examples"
IN_PROCESS = ["equinox_model", "flax_linen", "flax_nnx", "flax_nnx_functional", "haiku_model"]


def test_no_example_is_forgotten():
    assert sorted([*IN_PROCESS, "keras_stateless", "train"]) == sorted(path.stem for path in EXAMPLES.glob("*.py"))


@pytest.mark.newest
@pytest.mark.parametrize("name", IN_PROCESS)
@pytest.mark.usefixtures("promotion")
def test_the_loss_falls(name):
    losses = runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"](steps=40)
    assert len(losses) == 40
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.slow
def test_keras_in_a_process_of_its_own():
    """Keras chooses its backend when it is imported, and puts settings into the whole process."""
    environment = os.environ | {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    program = [sys.executable, "-W", "error", str(EXAMPLES / "keras_stateless.py")]
    done = subprocess.run(program, capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    first, last = (float(word) for word in done.stdout.split()[1::2])
    assert last < 0.3 * first
