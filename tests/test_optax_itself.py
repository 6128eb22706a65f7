"""optax's own tests pass with our optimizers in place of optax's: python -m pytest -m slow tests/test_optax_itself.py"""

import os
import re
import subprocess
import sys
from pathlib import Path

import optax_plugin
import pytest


@pytest.mark.slow
def test_optax_passes_its_own_tests_with_ours(tmp_path):
    pytest.importorskip("absl")
    pytest.importorskip("sklearn")
    (tmp_path / "pytest.ini").write_text("[pytest]\npython_files = *_test.py\n")
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment = own | {"PYTHONPATH": str(Path(__file__).parent), "JAX_PLATFORMS": "cpu"}
    program = [sys.executable, "-m", "pytest", "-c", "pytest.ini", "-p", "optax_plugin", "-n", "2", "-q", "--pyargs"]
    done = subprocess.run(
        program + optax_plugin.MODULES, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1200, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr
    print(done.stdout.splitlines()[-1])
    assert int(re.search(r"(\d+) passed", done.stdout).group(1)) > 300
