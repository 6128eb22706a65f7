"""The benchmark runs, and its tables say what was measured. How fast anything is, is no test."""

import json

import jax
import numpy as np
import pytest
from interop import promotion  # noqa: F401

from benchmarks import growth, host, pytorch, race
from benchmarks.__main__ import main
from benchmarks.candidates import make_works
from benchmarks.workloads import WORKLOADS
from mithril_opt.demo import model


@pytest.mark.usefixtures("promotion")
def test_a_quick_table(tmp_path, capsys):
    assert main(["--quick", "--work", "full", "--workload", "one", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "| mithril_opt |" in printed
    assert (tmp_path / "benchmarks.md").read_text() in printed
    assert (tmp_path / "benchmarks.png").stat().st_size > 10_000
    (table,) = json.loads((tmp_path / "benchmarks.json").read_text())["tables"]
    own, peer = table["rows"]
    assert own["ms"] / peer["ms"] == pytest.approx(own["ratio"])
    assert own["bytes"] < peer["bytes"]


@pytest.mark.usefixtures("promotion")
@pytest.mark.parametrize("backend", ["gpu", "tpu"])
def test_on_an_accelerator(backend, tmp_path, capsys, monkeypatch):
    """Where programs are read for what they move, and kernels counted. It computes here, without one."""
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(pytorch, "available", lambda: False)
    assert main(["--quick", "--work", "adamw", "--workload", "one", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "- device: " in printed
    assert "- copy bandwidth: " in printed
    own, peer, _ = json.loads((tmp_path / "benchmarks.json").read_text())["tables"][0]["rows"]
    assert own["bytes"] == pytest.approx(40, abs=0.01)
    assert ("launches" in own) == ("launches" in peer) == (backend == "gpu")
    assert ("| launches |" in printed) == (backend == "gpu")


@pytest.mark.usefixtures("promotion")
def test_what_is_measured_when_it_is_interrupted_is_written(tmp_path, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(host, "measure_compilation", interrupt)
    assert main(["--quick", "--work", "adamw", "compile", "--workload", "one", "--out", str(tmp_path)]) == 0
    (table,) = json.loads((tmp_path / "benchmarks.json").read_text())["tables"]
    assert table["rows"][0]["ms"] > 0


@pytest.mark.usefixtures("promotion")
def test_growth(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(growth, "QUICK_SIZES", {growth.LEAVES: [1, 2, 3], growth.PARAMETERS: [1e4, 2e4, 4e4]})
    assert main(["growth", "--quick", "--out", str(tmp_path)]) == 0
    assert "mithril_opt: compile_s ∝ n^" in capsys.readouterr().out
    assert (tmp_path / "growth.png").stat().st_size > 10_000


def test_a_race(tmp_path, capsys):
    rules = ["--rules", "Muon", "--factors", "1", "1e30"]
    assert main(["race", "--quick", *rules, "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "| Muon, rate 0.001 |" in printed  # the other rate leads nowhere
    (table,) = json.loads((tmp_path / "race.json").read_text())["tables"]
    (row,) = table["rows"]
    assert row["held_out"] < np.log(model.VOCABULARY)
    assert len(row["losses"]) == race.QUICK_STEPS
    assert (tmp_path / "race.png").stat().st_size > 10_000


def test_the_exponent_of_a_power_law():
    rows = [{"candidate": "a", "size": n, **dict.fromkeys(growth.QUANTITIES, 3e-6 * n**1.5)} for n in (10, 100, 1000, 10_000)]
    assert list(growth.exponents({"leaves": rows}).values()) == pytest.approx([1.5] * 3)


def test_workloads():
    assert {name: (len(workload.shapes), workload.count) for name, workload in WORKLOADS.items()} == {
        "one": (1, 33_554_432),
        "gpt": (76, 66_355_200),
        "many": (2000, 6_176_000),
    }
    thin = WORKLOADS["many"].thin(make_works()["full"].most_leaves)
    assert (len(thin.shapes), len(set(thin.shapes))) == (200, 2)
    assert WORKLOADS["gpt"].thin(200) is WORKLOADS["gpt"]


def test_what_is_unknown(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["--work", "adamax"])
    assert "invalid choice: 'adamax'" in capsys.readouterr().err
