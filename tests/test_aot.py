"""The command that compiles for devices which are not there; here, for CPUs."""

import json

import jax
import jax.numpy as jnp
import pytest
from interop import promotion  # noqa: F401

from benchmarks import aot, compiled, layouts, stacks, stored, targets
from benchmarks.__main__ import main
from benchmarks.compiled import Bound, LayoutCase, ProgramCase, RoundingCase, StepCase
from benchmarks.programs import PROGRAMS
from benchmarks.stacks import StackCase
from benchmarks.stored import StoredCase
from benchmarks.workloads import QUICK, WORKLOADS, Workload


@pytest.fixture
def on_cpus(monkeypatch):
    """CPUs instead of the targets, and small workloads."""
    monkeypatch.setattr(targets, "missing", lambda: [])
    monkeypatch.setattr(targets, "devices", lambda target, number: jax.devices()[:number])
    monkeypatch.setattr(aot, "WORKLOADS", QUICK)
    monkeypatch.setattr(compiled, "SPREAD", Workload("small", ((16, 8), (16, 32), (16,))))
    monkeypatch.setattr(layouts, "WIDTH", 16)
    monkeypatch.setattr(layouts, "BATCH", 64)


@pytest.mark.usefixtures("promotion", "on_cpus")
def test_tables_and_the_targets_that_are_missed(tmp_path, capsys):
    """A step of AdamW moves 40 bytes on a CPU, where nothing else is fused."""
    command = ["aot", "--target", "h100", "v5e", "--part", "steps", "--work", "adamw", "--workload", "one", "--hlo", "--out"]
    assert main([*command, str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "not times" in printed
    assert "missed: h100: adamw, one: bytes 40 > 28.28\n" in printed
    assert "missed: v5e: adamw, one: bytes 40 > 28.28\n" in printed
    assert (tmp_path / "aot.md").read_text() in printed
    gpu, tpu = json.loads((tmp_path / "aot.json").read_text())["tables"]
    (on_gpu,), (on_tpu,) = gpu["rows"], tpu["rows"]
    assert on_gpu["bytes"] == pytest.approx(40, abs=0.01)
    assert on_gpu["peer_bytes"] == pytest.approx(40, abs=0.01)
    assert on_gpu["launches"] > 0
    assert on_tpu["launches"] is None
    assert len(list(tmp_path.glob("*.hlo"))) == 4


@pytest.mark.usefixtures("promotion", "on_cpus")
def test_all_targets_met(tmp_path, capsys, monkeypatch):
    steps = {"adamw": compiled.make_steps()["adamw"]._replace(bound=Bound(40.1, launches=2))}
    monkeypatch.setattr(compiled, "make_steps", lambda: steps)
    assert main(["aot", "--target", "h100", "--part", "steps", "--workload", "one", "--out", str(tmp_path)]) == 0
    assert "missed" not in capsys.readouterr().out


COSTS = {"bytes": 28.0, "other": None, "temp": 0.0, "launches": 78}
MISSED = {
    "adamw": [({}, ""), ({"bytes": 28.3}, "bytes 28.3 > 28.28"), ({"temp": 0.02}, "temp 0.02 > 0.01")],
    "clip": [({"launches": 78}, ""), ({"launches": 79}, "launches 79 > 78"), ({"launches": None}, "")],
    "sgd": [({"bytes": 20, "launches": 79}, ""), ({"bytes": 20, "launches": 80}, "launches 80 > 79")],
    "full": [({"launches": 81}, ""), ({"launches": 82}, "launches 82 > 81.34")],
    "accumulate": [
        ({"other": 12, "launches": 999}, ""),
        ({"other": 13}, "other 13 > 12.1"),
        ({"bytes": 41, "other": 12}, "bytes 41 > 40.1"),
    ],
}


@pytest.mark.parametrize("name", MISSED)
def test_what_a_step_misses(name):
    case = StepCase("h100", name, WORKLOADS["one"])
    for changed, words in MISSED[name]:
        assert case.missed(COSTS | changed, COSTS) == ([f"h100: {name}, one: {words}"] if words else [])


def test_what_a_branch_is_brought_in_vain():
    counts = COSTS | {"other": 12.4}
    assert StepCase("v5p", "accumulate", WORKLOADS["gpt"]).missed(counts, counts) == []
    assert len(StepCase("v5e", "accumulate", WORKLOADS["gpt"]).missed(counts, counts)) == 1


def ignore(*_):
    pass


@pytest.mark.usefixtures("promotion", "on_cpus")
@pytest.mark.parametrize("number", aot.DEVICES)
@pytest.mark.parametrize("name", layouts.LAYOUTS)
def test_layouts(name, number):
    """The update of a step sums once over devices, gathers what only its slots are spread over, and stays where it is."""
    (row,), missed = LayoutCase("h100", name, number).run(ignore, ignore)
    assert missed == []
    assert row["elsewhere"] == 0
    layout = layouts.LAYOUTS[name]
    expected = ({"all-reduce"} if layout.fsdp or layout.model > 1 else set()) | ({"all-gather"} if layout.zero else set())
    assert expected <= set(row["update_collectives"]) <= expected | {"all-reduce"}
    assert "all-reduce" in row["step_collectives"]


@pytest.mark.parametrize(
    ("layout", "found", "elsewhere", "words"),
    [
        ("fsdp", {"all-reduce": 2}, 0, ["all-reduce 2 > 1"]),
        ("fsdp", {"all-reduce": 1, "all-gather": 1}, 0, ["all-gather 1 > 0"]),
        ("zero1", {"all-gather": 16, "all-reduce": 1}, 0, []),
        ("tensor, zero1", {"all-reduce": 5}, 0, ["all-reduce 5 > 4"]),
        ("zero1", {"all-gather": 17}, 0, ["all-gather 17 > 16"]),
        ("data", {}, 3, ["3 results lie elsewhere"]),
    ],
)
def test_what_a_layout_misses(layout, found, elsewhere, words):
    case = LayoutCase("v5e", layout, 4)
    row = {"update_collectives": found, "elsewhere": elsewhere}
    assert case.missed(row) == [f"v5e: {layout}, 4 devices: {each}" for each in words]


@pytest.mark.usefixtures("on_cpus")
def test_results_that_lie_elsewhere(monkeypatch):
    """A step whose results are gathered on every device."""
    layout, devices = layouts.LAYOUTS["fsdp"], jax.devices()[:4]
    update = layouts.compile_update(layout, compiled.SPREAD, devices)
    assert layouts.count_elsewhere(update, layout, compiled.SPREAD) == 0
    everywhere = jax.sharding.NamedSharding(layout.mesh(devices), jax.sharding.PartitionSpec())
    jit = jax.jit
    monkeypatch.setattr(
        jax, "jit", lambda *args, **kwargs: jit(*args, **kwargs | {"out_shardings": everywhere, "donate_argnums": ()})
    )
    gathered = layouts.compile_update(layout, compiled.SPREAD, devices)
    assert layouts.count_elsewhere(gathered, layout, compiled.SPREAD) == 9


@pytest.mark.usefixtures("promotion", "on_cpus")
@pytest.mark.parametrize("name", PROGRAMS)
def test_the_steps_of_demo_and_notebooks(name):
    (row,), missed = ProgramCase("h100", name).run(ignore, ignore)
    assert missed == []
    assert row["memory"] > row["temp_mb"] > 0
    assert row["launches"] > 5


@pytest.mark.usefixtures("on_cpus")
def test_roundings_are_found(monkeypatch):
    (row,), missed = RoundingCase("h100").run(ignore, ignore)
    assert (row["roundings"] >= 2, missed) == (True, [])
    monkeypatch.setattr(RoundingCase, "leaf", jax.ShapeDtypeStruct((512, 384), jnp.float32))
    (row,), missed = RoundingCase("h100").run(ignore, ignore)
    assert row["roundings"] == 0
    assert len(missed) == 1


class Memory:
    """What a compiler says of a program's memory."""

    def __init__(self, allocated, results):
        self.temp_size_in_bytes, self.output_size_in_bytes = allocated, results


@pytest.mark.parametrize(("allocated", "results", "written", "expected"), [(8, 12, 30, 8), (99, 12, 30, 18), (99, 30, 12, 0)])
def test_temporaries(allocated, results, written, expected):
    assert compiled.temporaries(Memory(allocated, results), written) == expected


def all_cases(*arguments):
    return aot.make_cases(aot.make_parser().parse_args(arguments))


def test_quick_is_a_part_of_everything():
    everything, quick = all_cases(), all_cases("--quick")
    assert set(quick) < set(everything)
    assert {(case.target, case.part) for case in quick} == {(target, part) for target in ("h100", "v5e") for part in aot.PARTS}
    assert {case.part for case in everything} == set(aot.PARTS)
    assert {case.target for case in everything} == set(targets.TARGETS)


def test_packages_that_are_missing(monkeypatch, capsys):
    monkeypatch.setattr(targets, "PACKAGES", ("jax", "no-such-compiler"))
    with pytest.raises(SystemExit, match="2"):
        main(["aot"])
    assert "no-such-compiler not found; `make aot` installs" in capsys.readouterr().err


@pytest.mark.usefixtures("promotion", "on_cpus")
def test_storage_is_held_to_its_bytes(monkeypatch):
    run = lambda name: StoredCase("h100", name, Workload("small", ((64, 128),))).run(lambda name: None, lambda *_: None)  # noqa: E731
    monkeypatch.setitem(stored.RULES, "nothing", stored.RULES["slots in 16 bits"]._replace(h100=1e6))
    (row,), missed = run("nothing")
    assert row["bytes"] > 20
    assert missed == ([f"h100: nothing: temp {row['temp']:.4g} > 0.1"] if row["temp"] > 0.1 else [])
    (row,), missed = run("slots in 16 bits")
    assert missed[0] == f"h100: slots in 16 bits: bytes {row['bytes']:.4g} > 20.1"


@pytest.mark.usefixtures("promotion", "on_cpus")
def test_a_stack_over_several_devices(monkeypatch):
    monkeypatch.setattr(stacks, "STACK", jax.ShapeDtypeStruct((8, 4, 6), jnp.float32))
    run = lambda name: StackCase("h100", name, 4).run(lambda name: None, lambda name, text: None)  # noqa: E731
    (row,), missed = run("Muon")
    assert (row["update_collectives"], missed) == ({}, [])
    (row,), missed = run("Prodigy")  # which sums over all
    assert (row["update_collectives"], missed) == ({"all-reduce": 1}, [])
    monkeypatch.setattr(stacks, "COLLECTIVES", {"Muon": {"all-gather": 2}})
    assert run("Prodigy")[1] == ["h100: Prodigy on a stack, 4 devices: all-reduce 1 is not 0"]
    assert run("Muon")[1] == ["h100: Muon on a stack, 4 devices: all-gather 0 is not 2"]
    named = lambda target: {case.name for case in all_cases("--target", target) if isinstance(case, StackCase)}  # noqa: E731
    assert named("h100") - named("v5e") == {"SOAP"}
