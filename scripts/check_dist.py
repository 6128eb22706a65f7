"""Check what `python -m build` made: `python scripts/check_dist.py dist`. Made for `make dist`.

Looks into the wheel and the sdist, installs the wheel into an empty environment, and imports and uses it there.
"""

import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

SDIST_NEEDS = (
    "pyproject.toml",
    "README.md",
    "CHANGELOG.md",
    "LICENSE",
    "mithril_opt/py.typed",
    "tests/conftest.py",
    "docs/conf.py",
)
SDIST_LACKS = ("docs/_build/", "docs/notebooks/", "runs/", ".venv/", ".git/")
PROGRAM = """
import sys
import mithril_opt
heavy = {"optax", "matplotlib", "tqdm", "flax", "torch"} & set(sys.modules)
assert not heavy, heavy
import jax.numpy as jnp
from mithril_opt import *
params = {"w": jnp.ones(2)}
optimizer = AdamW(learning_rate=0.1)
params, state = optimizer.update(params, params, optimizer.init(params))
assert int(state.step) == 1
to_optax(optimizer).init(params)
print(mithril_opt.__version__, mithril_opt.__file__)
"""


def check(condition: bool, message: str) -> None:
    if not condition:
        sys.exit(f"check_dist: {message}")


def check_wheel(wheel: Path, package: Path) -> None:
    """The wheel has the package, all of it, and its metadata; nothing else."""
    names = {name for name in zipfile.ZipFile(wheel).namelist() if not name.endswith("/")}
    outside = {name for name in names if not name.startswith("mithril_opt/") and ".dist-info/" not in name}
    check(not outside, f"the wheel has files outside the package: {sorted(outside)}")
    sources = {path.relative_to(package.parent).as_posix() for path in package.rglob("*.py")} | {"mithril_opt/py.typed"}
    check(sources <= names, f"the wheel lacks {sorted(sources - names)}")
    others = {name for name in names - sources if name.startswith("mithril_opt/")}
    check(not others, f"the wheel has files that are no sources: {sorted(others)}")
    check(any(name.endswith("licenses/LICENSE") for name in names), "the wheel lacks the license")


def check_sdist(sdist: Path) -> None:
    """The sdist has what is needed to build, to test and to read, and nothing that was built."""
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    missing = set(SDIST_NEEDS) - names
    check(not missing, f"the sdist lacks {sorted(missing)}")
    surplus = {name for name in names if name.startswith(SDIST_LACKS) or "__pycache__" in name}
    check(not surplus, f"the sdist has {sorted(surplus)}")


def check_import(wheel: Path) -> None:
    """The wheel, installed with nothing but its dependencies, imports and makes an update."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = str(Path(folder, "bin", "python"))
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wheel.resolve()], check=True)
        subprocess.run([python, "-W", "error", "-c", PROGRAM], check=True, cwd=folder)


def main() -> None:
    dist = Path(sys.argv[1])
    wheels, sdists = [*dist.glob("*.whl")], [*dist.glob("*.tar.gz")]
    check(len(wheels) == len(sdists) == 1, f"expected one wheel and one sdist in {dist}, found {sorted(dist.iterdir())}")
    check_wheel(wheels[0], Path(__file__).parent.parent / "mithril_opt")
    check_sdist(sdists[0])
    check_import(wheels[0])
    print(f"{wheels[0].name} and {sdists[0].name} are fine")


if __name__ == "__main__":
    main()
