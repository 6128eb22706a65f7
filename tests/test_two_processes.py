"""Two processes on one machine train as one does; they find each other over a free port of this machine."""

import contextlib
import os
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
import two_processes
from interop import promotion  # noqa: F401

TIME_LIMIT = 120


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def two_workers(folder):
    """Two running processes of two devices each, which end with the block whatever happens."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    }
    address = f"127.0.0.1:{free_port()}"
    workers = [
        subprocess.Popen(
            [sys.executable, two_processes.__file__, address, "2", str(rank), str(folder / f"{rank}.npz")],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        yield workers
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()


@pytest.mark.usefixtures("promotion")
@pytest.mark.slow
def test_two_processes_train_as_one_does(tmp_path):
    with two_workers(tmp_path) as workers:
        losses, params = two_processes.run(jax.devices()[:1])
        for worker in workers:
            output, _ = worker.communicate(timeout=TIME_LIMIT)
            assert worker.returncode == 0, output
    assert losses[-1] < losses[0]
    for rank in range(2):
        with np.load(tmp_path / f"{rank}.npz") as file:
            trained = [file[name] for name in file.files]
        np.testing.assert_allclose(trained[0], losses, rtol=1e-5)
        for actual, expected in zip(trained[1:], params, strict=True):
            np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-5)
