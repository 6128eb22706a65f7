"""Files of every version of the format: they load, and training goes on from them as it did when they were written."""

from pathlib import Path

import golden_states
import jax
import numpy as np
import pytest
from golden_states import FOLDER, MIDDLE, RUNS, STEPS, train
from zoo import VARIANTS

from mithril_opt import from_state_dict
from mithril_opt.interop.state_dict import FORMAT_VERSION

FILES = sorted(file.relative_to(FOLDER).as_posix() for file in FOLDER.glob("v*/*.npz"))


@pytest.mark.parametrize(
    "file", [pytest.param(file, marks=[pytest.mark.slow] if Path(file).stem in VARIANTS else []) for file in FILES]
)
def test_training_goes_on_from_a_file(file):
    run = RUNS[Path(file).stem]
    optimizer, params = run.make(), run.params(run.dtype)
    template = jax.eval_shape(lambda: {"start": params, "state": optimizer.init(params)})
    with np.load(FOLDER / file) as saved:
        arrays = dict(saved)
    end = from_state_dict(
        params, {name.removeprefix("end/"): arrays.pop(name) for name in [*arrays] if name.startswith("end/")}
    )
    restored = from_state_dict(template, arrays)
    if "soap" not in file:  # the signs of eigenvectors are the machine's
        close(restored["state"], train(run, optimizer, params, optimizer.init(params), range(1, MIDDLE + 1))[1])
    close(train(run, optimizer, *restored.values(), range(MIDDLE + 1, STEPS + 1))[0], end)


def close(found, expected):
    """Whether two trees are the same but for the last digits, in which machines differ."""
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert ours.dtype == theirs.dtype
        if ours.dtype in (np.int8, np.int16):  # codes, and remainders, which go on below the parameter where they end
            apart = np.abs(np.asarray(ours) - np.asarray(theirs))
            assert apart.max() <= (16 if ours.dtype == np.int8 else 200)
            continue
        digits = 1e-2 if ours.dtype.itemsize == 2 else 1e-5
        ours, theirs = (
            np.asarray(leaf, np.promote_types(np.float32, leaf.dtype) if leaf.dtype.kind == "V" else None)
            for leaf in (ours, theirs)
        )
        np.testing.assert_allclose(ours, theirs, rtol=digits, atol=digits)


def test_every_kind_of_state_has_a_file_of_this_version():
    have = {Path(file).stem for file in FILES if Path(file).parent.name == f"v{FORMAT_VERSION}"}
    missing = sorted(RUNS.keys() - have)
    assert not missing, f"run `{golden_states.__file__}`, which writes them, and commit what it wrote"


def test_every_version_has_files():
    assert {Path(file).parent.name for file in FILES} == {f"v{version}" for version in range(1, FORMAT_VERSION + 1)}
