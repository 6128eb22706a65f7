"""The tests on several versions of Python and JAX: `python scripts/matrix.py`. Made for `make matrix`.

Each row is an environment of its own, made by uv: with the newest versions that pyproject.toml admits, or with the oldest of
what the library itself needs. Left out there are test files that import what wants a newer JAX, and tests marked `newest`. A
Python that uv neither finds nor can download is said to be missing. The table is printed, and written to docs/versions.md;
`--only 3.13` renews its rows.
"""

import argparse
import ast
import functools
import os
import re
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "versions.md"
CELLS = (("3.11", "oldest"), ("3.11", "newest"), ("3.12", "newest"), ("3.13", "newest"))
TOOLS = ("chex", "flatbuffers", "hypothesis", "pytest", "pytest-xdist")
# No doctests, no deprecations that are not ours, and no compilation cache, of which JAX 0.9 complains on stderr.
OLDEST = ("-o", "addopts=--strict-markers", "-m", "not slow and not newest", "-W", "ignore::DeprecationWarning")
HEADER = "| Python | JAX | optax | tests | day |\n|---|---|---|---|---|\n"
MARKS = re.compile(r"(?<=<!-- begin -->\n).*(?=<!-- end -->)", re.DOTALL)
FACTS = """
import importlib.util, platform, jax, optax
print(platform.python_version(), jax.__version__, optax.__version__)
print(*(name for name in {names!r} if importlib.util.find_spec(name) is None))
"""


def oldest() -> list[str]:
    """The dependencies in the lowest versions that pyproject.toml admits; jaxlib is as old as jax."""
    (line,) = re.findall(r"^dependencies = (\[.*\])$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    pins = [dependency.replace(">=", "==") for dependency in ast.literal_eval(line)]
    return [*pins, *(pin.replace("jax", "jaxlib") for pin in pins if pin.startswith("jax=="))]


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=False)


@functools.cache
def imports(path: Path) -> set[str]:
    """The packages that a Python file of the tests imports anywhere, itself or through the files beside it."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
    packages = {name.split(".")[0] for name in names}
    beside = {name: path.with_name(f"{name}.py") for name in packages}
    folders = {name for name in packages if path.with_name(name).is_dir()}  # made numbers and what makes them
    own = {name for name, file in beside.items() if file.exists()}
    return (packages - own - folders).union(*(imports(beside[name]) for name in own))


def make(uv: str, python: str, versions: str, folder: str) -> str:
    """Make an environment in `folder`; what went wrong, if anything did."""
    if run(uv, "venv", "--quiet", "--python", python, folder).returncode:
        return "no such Python on this machine"
    packages = ["-e", ".[test]"] if versions == "newest" else ["-e", ".[demo]", *oldest(), *TOOLS]
    done = run(uv, "pip", "install", "--quiet", "--python", f"{folder}/bin/python", *packages)
    return f"not installed: {done.stderr.strip().splitlines()[-1]}" if done.returncode else ""


def measure(uv: str, python: str, versions: str, folder: str) -> tuple[str, bool]:
    """A row of the table, and whether its tests passed."""
    if problem := make(uv, python, versions, folder):
        return f"| {python} | {versions} | | {problem} | {date.today()} |\n", False
    program = f"{folder}/bin/python"
    needed = {path.relative_to(ROOT).as_posix(): imports(path) for path in sorted((ROOT / "tests").glob("test_*.py"))}
    names = sorted(set().union(*needed.values()))
    facts, lacking = run(program, "-c", FACTS.format(names=names)).stdout.splitlines()
    left_out = [f"--ignore={file}" for file, packages in needed.items() if packages & {*lacking.split()}]
    chosen, cache = ((), "true") if versions == "newest" else (OLDEST, "false")
    pytest = (program, "-m", "pytest", "-q", "-n", "auto", "--dist", "worksteal", *chosen, *left_out)
    tests = run(*pytest, JAX_ENABLE_COMPILATION_CACHE=cache)
    print(tests.stdout, file=sys.stderr)
    last = tests.stdout.strip().splitlines()[-1].strip("= ")
    found = last + (f", {len(left_out)} files left out" if left_out else "")
    return f"| {' | '.join(facts.split())} | {found} | {date.today()} |\n", tests.returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(description="The tests on several versions of Python and JAX.")
    parser.add_argument("--only", metavar="PYTHON", help="only the rows of this version of Python")
    only = parser.parse_args().only
    page, table, passed = PAGE.read_text(), HEADER, True
    for python, versions in CELLS:
        kept = [row for row in page.splitlines(keepends=True) if row.startswith(f"| {python}")]
        if only in (None, python):
            with tempfile.TemporaryDirectory() as folder:
                row, well = measure(str(Path(sys.executable).parent / "uv"), python, versions, folder)
            table, passed = table + row, passed and well
        else:
            table += "".join(row for row in kept if row not in table)
    print(table, end="")
    PAGE.write_text(MARKS.sub(lambda _: table, page))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
