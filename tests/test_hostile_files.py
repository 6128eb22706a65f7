"""Files from strangers: damaged, forged and foreign ones give an error that names the entry, and change nothing."""

import io
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zoo import bits

from mithril_opt import EMA, Accumulate, Adam, from_state_dict, to_state_dict

PARAMS = {"w": jnp.ones((2, 3)), "b": jnp.zeros(3, jnp.bfloat16)}
OPTIMIZER = EMA(Accumulate(Adam(), every=2))
STATE = OPTIMIZER.update(PARAMS, PARAMS, OPTIMIZER.init(PARAMS))[1]
NU, STEP = "optimizer/optimizer/slots/nu/w", "optimizer/optimizer/step"


def saved(**changes):
    """What is saved of `STATE`, with some entries replaced; without those that are None."""
    entries = {name: np.array(value) for name, value in to_state_dict(STATE).items()} | changes
    return {name: value for name, value in entries.items() if value is not None}


def file_of(entries, save=np.savez):
    buffer = io.BytesIO()
    save(buffer, **entries)
    return buffer.getvalue()


def loads(data):
    """The state in the bytes of an npz file."""
    with np.load(io.BytesIO(data)) as file:
        return from_state_dict(STATE, file)


def refused(mapping, strict=True):
    """The message with which `mapping` is refused; the template is as it was."""
    before = bits(STATE)
    with pytest.raises(ValueError) as error:  # noqa: PT011
        from_state_dict(STATE, mapping, strict=strict)
    assert bits(STATE) == before
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(STATE))
    assert len(str(error.value)) <= 2000
    assert len(str(error.value).splitlines()) <= 20
    return str(error.value)


def test_what_is_sound_loads():
    assert bits(loads(file_of(saved()))) == bits(STATE)
    assert bits(loads(file_of(saved(), np.savez_compressed))) == bits(STATE)


@pytest.mark.parametrize(
    "value",
    [
        np.zeros((2, 3), np.float16),
        np.zeros((2, 3), ">f4"),
        np.zeros((2, 3), "V4"),
        np.zeros((2, 3), [("a", "f4")]),
        np.zeros((3, 2), np.float32),
        np.zeros((2, 3), np.int32),
        np.full((2, 3), "text"),
        np.array([[None] * 3] * 2, object),
        np.zeros(6, np.float32),
        [[1.0] * 3] * 2,
        [[1.0], [2.0, 3.0]],
        None.__class__,
        lambda: None,
        "text",
    ],
    ids=lambda value: "function" if callable(value) else str(value),
)
def test_an_entry_of_another_kind(value):
    assert NU in refused(saved(**{NU: value}))


@pytest.mark.parametrize("value", [np.float32("nan"), np.float64(3.0), np.int64(3), np.bool(True), np.zeros(1, np.int32), -1])
@pytest.mark.parametrize("name", [STEP, "optimizer/micro_step"])
def test_a_count_that_is_none(name, value):
    assert name in refused(saved(**{name: np.int32(-1) if type(value) is int else value}))


def test_a_negative_count_of_any_wrapper():
    state = EMA(Adam(), debias=True).init(PARAMS)
    with pytest.raises(ValueError, match="updates must not be negative, got -2"):
        from_state_dict(state, {**to_state_dict(state), "updates": np.array(-2, np.int32)})


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", f"{NU}/x", "", "x" * 5000, "a\nb\x1b[2J", 3, b"w", ("w",)])
def test_a_name_that_nobody_expects(name):
    message = refused({**saved(), name: np.zeros(2)})
    assert "unexpected: " in message
    assert "\x1b" not in message


class Watched(Mapping):
    """A mapping that knows which of its entries were read."""

    def __init__(self, entries):
        self.entries, self.read = entries, set()

    def __getitem__(self, name):
        self.read.add(name)
        return self.entries[name]

    def __iter__(self):
        return iter(self.entries)

    def __len__(self):
        return len(self.entries)


@pytest.mark.parametrize("strict", [True, False])
def test_only_what_is_expected_is_read(strict):
    mapping = Watched({**saved(), "extra": np.zeros(2)})
    if strict:
        assert "unexpected: extra" in refused(mapping)
    else:
        from_state_dict(STATE, mapping, strict=False)
    assert mapping.read == set(saved()) - (set() if strict else {"format_rules"})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.zeros(3), "format_rules must be text as uint8, got float64[3]"),
        (np.zeros((2, 2), np.uint8), "format_rules must be text as uint8, got uint8[2,2]"),
        (np.array([{}], object), "format_rules must be text as uint8, got object[1]"),
        ("slots: AdamSlots", "format_rules must be text as uint8, got str"),
        (np.full(10**6, 255, np.uint8), "the saved state is another rule's"),
        (np.zeros(0, np.uint8), "it has 'nothing more', expected ': EMAState(optimizer, average)'"),
    ],
)
def test_a_forged_header(value, message):
    assert message in refused(saved(format_rules=value))


def test_a_header_with_more_than_there_is():
    text = np.frombuffer(bytes(saved()["format_rules"]) + b"; more: Slots(mu)", np.uint8)
    assert "it has 'more: Slots(mu)', expected 'nothing more'" in refused(saved(format_rules=text))


@pytest.mark.parametrize("version", [np.array(["3"], object), np.float32(3), "3", [3], np.int32(99), np.int32(-3)])
def test_a_forged_version(version):
    message = refused(saved(format_version=version))
    assert "format_version must be an integer" in message or "the state was saved in format" in message


class Bomb:
    def __reduce__(self):
        return Path.touch, (Path("exploded"),)


@pytest.mark.parametrize("name", [NU, STEP, "format_rules", "format_version"])
def test_a_pickle_is_not_opened(name, tmp_path, monkeypatch):
    """Nor is it if the whole file is one."""
    monkeypatch.chdir(tmp_path)
    forged = file_of(saved(**{name: np.array([Bomb()], object)}))
    with np.load(io.BytesIO(forged)) as file:
        message = refused(file)
    assert f"{name!r} cannot be read" in message
    assert "allow_pickle=False" in message
    with pytest.raises(ValueError, match="pickle"):
        loads(pickle.dumps(Bomb()))
    assert not Path("exploded").exists()
    pickle.loads(pickle.dumps(Bomb()))
    assert Path("exploded").exists()


@pytest.mark.parametrize("shape", [(10**18,), (10**9, 10**9), (2**63,), (-3,)])
def test_a_header_that_declares_more_than_there_is(shape):
    """Nothing of that size is made."""
    array = io.BytesIO()
    np.lib.format.write_array_header_1_0(array, {"descr": "<f4", "fortran_order": False, "shape": shape})
    refused_with(array.getvalue() + bytes(24))


def refused_with(data):
    """A file is refused in which the entry NU has `data` as its bytes."""
    with zipfile.ZipFile(io.BytesIO(file_of(saved()))) as sound:
        entries = {name: sound.read(name) for name in sound.namelist()} | {f"{NU}.npy": data}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as forged:
        for name, content in entries.items():
            forged.writestr(name, content)
    with np.load(io.BytesIO(buffer.getvalue())) as file:
        message = refused(file)
    assert f"{NU!r} cannot be read" in message or f"expected float32[2,3] but found bytes: {NU}" in message


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_file_in_which_a_bit_is_flipped(save):
    """It is refused, if not by NumPy, which opens it, then with a ValueError; or the bit meant nothing."""
    sound, outcomes = file_of(saved(), save), []
    generator = np.random.default_rng(0)
    for position in generator.integers(len(sound), size=400):
        data = bytearray(sound)
        data[position] ^= 1 << generator.integers(8)
        try:
            file = np.load(io.BytesIO(bytes(data)))
        except Exception:
            outcomes.append("not opened")
            continue
        try:
            assert bits(from_state_dict(STATE, file)) == bits(STATE)
            outcomes.append("the same")
        except ValueError:
            outcomes.append("refused")
    assert outcomes.count("refused") > 100


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_file_that_is_cut_short(save):
    sound = file_of(saved(), save)
    for length in np.linspace(0, len(sound) - 1, 50, dtype=int):
        with pytest.raises((ValueError, EOFError, zipfile.BadZipFile)):
            loads(sound[:length])


def test_an_entry_that_is_cut_short():
    with zipfile.ZipFile(io.BytesIO(file_of(saved()))) as sound:
        data = sound.read(f"{NU}.npy")
    for length in (0, 5, 100, len(data) - 4):
        refused_with(data[:length])


def test_the_state_of_other_parameters_and_of_another_setting():
    others = {name: np.array(value) for name, value in to_state_dict(OPTIMIZER.init({"v": jnp.ones(2)})).items()}
    assert "missing: optimizer/optimizer/slots/mu/w float32[2,3]" in refused(others)
    amsgrad = to_state_dict(EMA(Accumulate(Adam(amsgrad=True), every=2)).init(PARAMS))
    assert "AdamSlots(mu, nu, nu_max)', expected 'optimizer/optimizer/slots: AdamSlots(mu, nu)'" in refused(amsgrad)
    swapped = to_state_dict(Accumulate(EMA(Adam()), every=2).init(PARAMS))
    assert "AccumulateState(optimizer, mean, micro_step, verdict)', expected ': EMAState(optimizer, average)'" in refused(
        swapped
    )


def test_a_path_that_leads_out_of_its_folder():
    with pytest.raises(ValueError, match=r"the path of a leaf leads out of its folder: \.\./w"):
        to_state_dict({"..": {"w": jnp.ones(1)}})
    with pytest.raises(ValueError, match=r"leads out of its folder: a/\.\./\.\./w"):
        to_state_dict({"a/../../w": jnp.ones(1)})
    assert "a..b/..c" in to_state_dict({"a..b": {"..c": jnp.ones(1)}})
