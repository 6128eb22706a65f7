"""The tests on several versions of Python and JAX: `python scripts/matrix.py`. Made for `make matrix`.

Each cell is an environment of its own, made by uv with the newest versions that pyproject.toml admits, or with the oldest of
what the library itself needs. A Python that is neither on this machine nor to be had is said to be missing. The table is
printed, and written to docs/versions.md between its two marks.
"""

import argparse
import platform
import re
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "versions.md"
CELLS = (("3.11", "oldest"), ("3.11", "newest"), ("3.12", "newest"), ("3.13", "newest"))
OLDEST = re.compile(r'"(\w+)>=([\d.]+)"')
HEADER = "| Python | JAX | optax | tests | day |\n|---|---|---|---|---|\n"
MARKS = re.compile(r"(?<=<!-- begin -->\n).*(?=<!-- end -->)", re.DOTALL)


def oldest() -> list[str]:
    """The dependencies in the lowest versions that pyproject.toml admits; jaxlib is as old as jax."""
    line = re.search(r"^dependencies = (\[.*\])$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    pins = [f"{name}=={version}" for name, version in OLDEST.findall(line.group(1) if line else "")]
    return pins + [pin.replace("jax", "jaxlib") for pin in pins if pin.startswith("jax==")]


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def make(uv: str, python: str, versions: str, folder: Path) -> str | None:
    """Make an environment in `folder`; what went wrong, if anything did."""
    made = run(uv, "venv", "--quiet", "--python", python, str(folder))
    if made.returncode:
        return f"no Python {python} here"
    pins = oldest() if versions == "oldest" else []
    packages = ("-e", ".[test]", *pins)
    done = run(uv, "pip", "install", "--quiet", "--python", str(folder / "bin" / "python"), *packages)
    return f"not installed: {done.stderr.strip().splitlines()[-1]}" if done.returncode else None


def version(python: Path, package: str) -> str:
    program = f"import importlib.metadata as m; print(m.version({package!r}))"
    return run(str(python), "-c", program).stdout.strip()


def measure(uv: str, python: str, versions: str, arguments: list[str]) -> tuple[str, bool]:
    """A row of the table, and whether its tests passed."""
    with tempfile.TemporaryDirectory() as folder:
        if problem := make(uv, python, versions, Path(folder) / "venv"):
            return f"| {python} | {versions} | | {problem} | {date.today()} |\n", False
        program = Path(folder) / "venv" / "bin" / "python"
        tests = run(str(program), "-m", "pytest", "-q", "-n", "auto", "--dist", "worksteal", *arguments)
        last = (tests.stdout.strip().splitlines() or ["no output"])[-1]
        full = run(str(program), "-c", "import platform; print(platform.python_version())").stdout.strip()
        row = f"| {full} | {version(program, 'jax')} | {version(program, 'optax')} | {last.strip('= ')} | {date.today()} |\n"
        if tests.returncode:
            print(tests.stdout, file=sys.stderr)
        return row, tests.returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", nargs="+", metavar="PYTHON-JAX", help="only these: 3.11-oldest, 3.13-newest, …")
    options, arguments = parser.parse_known_args()
    chosen = [cell for cell in CELLS if options.cells is None or "-".join(cell) in options.cells]
    uv = str(Path(sys.executable).parent / "uv")
    rows = [measure(uv, *cell, arguments) for cell in chosen]
    table = HEADER + "".join(row for row, _ in rows)
    print(f"{platform.platform()}\n{table}", end="")
    if options.cells is None:
        PAGE.write_text(MARKS.sub(table, PAGE.read_text()))
    return 0 if all(passed for _, passed in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
