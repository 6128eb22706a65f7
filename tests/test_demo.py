"""The demo: its text, its model, its training step and its command line."""

import json
import math
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zoo import OPTIMIZERS

import mithril_opt
from mithril_opt import AdamW
from mithril_opt.demo import __main__ as command
from mithril_opt.demo import data, model, picture, report, train

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def corpus():
    return data.build_corpus(data.read_text(), model.VOCABULARY)


@pytest.fixture(scope="module")
def params():
    return model.init(np.random.default_rng(0))


class Done(NamedTuple):
    status: int
    stdout: str
    stderr: str
    out: Path


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    """A run of two steps through the command line, into a folder that it has to make."""
    return call("--steps=2", "--seed=3", "--precision=float32", out=tmp_path_factory.mktemp("demo") / "new" / "run")


def call(*arguments, out):
    strict = {"JAX_PLATFORMS": "cpu", "JAX_NUMPY_DTYPE_PROMOTION": "strict", "JAX_NUMPY_RANK_PROMOTION": "raise"}
    program = [sys.executable, "-W", "error", "-m", "mithril_opt.demo", f"--out={out}", *arguments]
    done = subprocess.run(program, capture_output=True, text=True, env=os.environ | strict, timeout=120, check=False)
    return Done(done.returncode, done.stdout, done.stderr, out)


def read_metrics(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def fake_blocks(validation_loss, steps=2):
    step = {"loss": 3.0, "rates": {"body": 0.1, "embedding": 0.2}, "grad_norm": 1.0, "loss_scale": 2.0, "skipped": False}
    yield train.Block([{"step": 0, "validation_loss": 8.0}], 0.5)
    yield train.Block([{"step": i, **step} for i in range(1, steps + 1)], 0.5, memory=12.04)
    yield train.Block([{"step": steps, "validation_loss": validation_loss}], 0.5)


def test_last_tenth_is_held_out(corpus):
    tokens = data.tokenize(data.read_text())
    assert len(corpus.train) + len(corpus.validation) == len(tokens) > 50_000
    assert len(corpus.validation) == pytest.approx(len(tokens) / 10, abs=1)
    words = [corpus.vocabulary[i] for i in corpus.validation]
    pairs = zip(words, tokens[len(corpus.train) :], strict=True)
    assert all(word in (token, data.UNKNOWN) for word, token in pairs)


def test_vocabulary_is_the_most_frequent_of_the_training_part():
    corpus = data.build_corpus("a a a a a b b b b c c c d d e e e e d d", 4)
    assert corpus.vocabulary == [data.UNKNOWN, "a", "b", "e"]
    assert corpus.train.dtype == corpus.validation.dtype == np.int32
    assert corpus.train.tolist() == [1] * 5 + [2] * 4 + [0] * 5 + [3] * 4
    assert corpus.validation.tolist() == [0, 0]


def test_vocabulary_properties(corpus):
    assert len(set(corpus.vocabulary)) == len(corpus.vocabulary) <= model.VOCABULARY
    counts = Counter(data.tokenize(data.read_text())[: len(corpus.train)])
    sizes = [counts[token] for token in corpus.vocabulary[1:]]
    assert sizes == sorted(sizes, reverse=True)
    assert 0 <= corpus.train.min() <= corpus.train.max() < len(corpus.vocabulary)
    assert corpus.validation.max() < len(corpus.vocabulary)
    assert np.mean(corpus.validation == 0) < 0.1


def test_tokens():
    assert data.tokenize("The  if_stmt, twice:\n   --") == ["The", "if_stmt", ",", "twice", ":", "\n", "-", "-"]


def test_consecutive_windows_predict_each_token_once():
    starts = data.consecutive_starts(23, 5)
    assert [i for start in starts for i in range(start + 1, start + 6)] == list(range(1, 21))


def test_random_windows_reach_the_whole_text():
    starts = data.random_starts(np.random.default_rng(0), 8, 500, 5)
    assert starts.dtype == np.int32
    assert set(starts.tolist()) == {0, 1, 2}


def test_unigram_loss_of_equally_frequent_tokens():
    corpus = data.Corpus(np.array([0, 1, 2, 3]), np.array([3, 1]), ["a", "b", "c", "d"])
    assert data.unigram_loss(corpus) == pytest.approx(math.log(4))


def test_later_tokens_do_not_change_earlier_logits(params):
    tokens = jax.random.randint(jax.random.key(1), (2, model.CONTEXT), 0, model.VOCABULARY, jnp.int32)
    apply = jax.jit(model.apply)
    logits, changed = apply(params, tokens), apply(params, tokens.at[:, 40].add(1) % model.VOCABULARY)
    assert logits.shape == (2, model.CONTEXT, model.VOCABULARY)
    np.testing.assert_array_equal(logits[:, :40], changed[:, :40])
    assert jnp.all(jnp.max(jnp.abs(logits - changed)[:, 40:], axis=-1) > 0)


def test_loss_at_the_start_is_that_of_a_uniform_guess(params, corpus):
    windows = train.windows(jnp.asarray(corpus.train), np.arange(8, dtype=np.int32))
    assert windows.shape == (8, model.CONTEXT + 1)
    assert float(jax.jit(model.loss)(params, windows)) == pytest.approx(math.log(model.VOCABULARY), abs=0.3)


def test_counts(params):
    counts = model.count()
    assert counts["embedding"] == pytest.approx(530_000, rel=0.02)
    assert counts["body"] == pytest.approx(390_000, rel=0.02)
    assert sum(counts.values()) == sum(leaf.size for leaf in jax.tree.leaves(params))


def test_half_precision(params):
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    assert jax.eval_shape(model.apply, half, jnp.zeros((2, 8), jnp.int32)).dtype == jnp.bfloat16
    assert jax.eval_shape(model.loss, half, jnp.zeros((2, 9), jnp.int32)).dtype == jnp.float32


@pytest.mark.parametrize("steps", [1, 2, 3, 9, 10, 11, 600])
def test_schedule(steps):
    schedule = train.warmup_cosine(1.0, steps)
    rates = np.asarray(schedule(np.arange(steps)))
    assert np.all(rates > 0)
    assert np.all(rates <= 1)
    assert np.argmax(rates) == steps // 10
    assert rates[-1] < 0.05 or steps < 11


@pytest.mark.parametrize("steps", [1, 2, 10, 11, 50, 123])
def test_blocks_cover_every_step_once(steps):
    blocks = train.blocks(steps)
    assert [i for block in blocks for i in block] == list(range(1, steps + 1))
    assert set(range(train.VALIDATE_EVERY, steps + 1, train.VALIDATE_EVERY)) <= {block[-1] for block in blocks}


def test_groups_and_decay(params):
    optimizer = train.make_optimizer(100)
    rows = optimizer.describe(params).rows
    assert {row[0]: row[4] for row in rows if row[3] == "embedding"} == {
        f"embedding/{x}": "Adam" for x in ("position", "token")
    }
    assert {row[4] for row in rows if row[3] == "body"} == {"AdamW"}
    decays = {row[0] for row in rows if row[3] == "body" and train.is_matrix(row[0], np.empty(row[1]))}
    assert decays == {f"blocks/{i}/{name}" for i in range(model.LAYERS) for name in ("qkv", "out", "up", "down")}


@pytest.mark.parametrize("name", train.named_optimizers())
def test_one_rule_for_all_parameters(name, params):
    optimizer, plain = train.make_named(name, 100), getattr(mithril_opt, name)()
    rules = {type(rule): rule for _, rule in optimizer.rules(params)}
    rule = rules[type(plain)]
    assert set(rules) - {type(plain)} <= ({AdamW} if type(plain) in train.FOR_MATRICES else set())
    assert float(jnp.max(jnp.asarray(rule.learning_rate(np.arange(100))))) == np.float32(plain.learning_rate)
    assert rule.at(10).learning_rate == jnp.float32(plain.learning_rate)
    moved, _ = jax.eval_shape(optimizer.update, params, params, jax.eval_shape(optimizer.init, params))
    assert jax.tree.structure(moved) == jax.tree.structure(params)


def test_every_rule_has_a_name():
    rules = {type(make()) for make in OPTIMIZERS.values()}
    assert {rule.__name__ for rule in rules if rule.__module__.startswith("mithril_opt.optimizers.")} == set(
        train.named_optimizers()
    )


def test_a_run_of_one_rule(corpus):
    start, first, *_, end = [block.records[0] for block in train.train(corpus, 2, 3, "float32", "NAdam")]
    assert first["rates"] == {"learning_rate": 2e-3}
    assert report._describe([first]).endswith("rate 2.0e-03")
    assert end["validation_loss"] < start["validation_loss"]


def test_same_seed_same_run(corpus, two_steps):
    records = [record for block in train.train(corpus, 2, seed=3, precision="float32") for record in block.records]
    assert records == read_metrics(two_steps.out)
    assert records[-1]["validation_loss"] < records[0]["validation_loss"]


def test_overflows_of_float16_are_skipped(corpus):
    """A scale of 2²⁴ is more than float16 holds: the first steps change nothing but the scale."""
    start, first, second, end = [block.records[0] for block in train.train(corpus, 2, seed=3, precision="float16")]
    assert (first["loss_scale"], second["loss_scale"]) == (2.0**24, 2.0**23)
    assert first["skipped"]
    assert second["skipped"]
    assert not math.isfinite(first["grad_norm"])
    assert math.isfinite(first["loss"])
    assert end["validation_loss"] == start["validation_loss"]
    assert first["rates"] == second["rates"]
    assert first["update_ratio"] == 0.0


def test_another_seed_another_run(corpus, two_steps):
    first = next(train.train(corpus, 2, seed=4, precision="float32"))
    assert first.records != read_metrics(two_steps.out)[:1]
    starts = [data.random_starts(np.random.default_rng(seed), 1000, 16, 64).tolist() for seed in (3, 4)]
    assert starts[0] != starts[1]


def test_bar_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert len(report.follow(fake_blocks(2.0), 2)) == 3
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "2/2" in printed.err
    assert "loss 3.00, rate 1.0e-01" in printed.err


def test_lines_elsewhere(capsys):
    assert len(report.follow(fake_blocks(2.0), 2)) == 3
    assert capsys.readouterr().out == "step 2/2: loss 3.00, rate 1.0e-01, validation 2.00\n"


def test_speed_leaves_out_the_first_block_of_steps():
    first = train.Block([{"step": 1, "loss": 1.0}], 9.0)
    validation = train.Block([{"step": 3, "validation_loss": 1.0}], 9.0)
    second = train.Block([{"step": i, "loss": 1.0} for i in (2, 3)], 0.5)
    assert report.tokens_per_second([first, second, validation]) == train.BATCH * model.CONTEXT * 4
    assert report.tokens_per_second([first]) == train.BATCH * model.CONTEXT / 9


def test_a_loss_that_is_not_a_number(tmp_path):
    records = [{**record, "loss": math.nan} for block in fake_blocks(math.nan) for record in block.records]
    missing = {"rates": {"body": 0.1}, "grad_norm": math.inf, "loss_scale": 1.0, "skipped": True}
    records = [{**missing, **record} for record in records]
    picture.plot(records, 5.0, tmp_path / "curves.png")
    assert math.isnan(report.perplexity(math.nan))
    assert math.isfinite(report.perplexity(1e6))


def test_two_steps_cannot_beat_the_baseline(two_steps):
    assert two_steps.status == 1, two_steps.stderr
    assert two_steps.stderr.splitlines()[-1] == "the validation loss did not beat the unigram baseline after 2 steps"
    assert "Traceback" not in two_steps.stderr
    assert "step 2/2" in two_steps.stdout
    labels = "device", "parameters", "precision", "memory", "unigram baseline", "validation loss", "speed", "time", "written"
    for label in labels:
        assert f"\n{label} " in two_steps.stdout


def test_files(two_steps):
    assert (two_steps.out / "curves.png").read_bytes().startswith(PNG)
    records = read_metrics(two_steps.out)
    assert [list(record) for record in records] == [
        ["step", "validation_loss"],
        ["step", "loss", "rates", "grad_norm", "update_ratio", "loss_scale", "skipped"],
        ["step", "loss", "rates", "grad_norm", "update_ratio", "loss_scale", "skipped"],
        ["step", "validation_loss"],
    ]
    assert [record["step"] for record in records] == [0, 1, 2, 2]
    assert records[1]["rates"] == {"body": train.BODY_RATE, "embedding": train.EMBEDDING_RATE}
    assert 0.001 < records[1]["update_ratio"] < 0.5


def test_beating_the_baseline(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(command, "train", lambda corpus, steps, *_: fake_blocks(2.0, steps))
    (tmp_path / "metrics.jsonl").write_text("an earlier run\n" * 100)
    assert command.main(["--steps", "5", "--out", str(tmp_path)]) == 0
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1 + 5 + 1
    printed = capsys.readouterr()
    assert "2.000 (perplexity 7.4)" in printed.out
    assert printed.err == ""


def test_help(tmp_path):
    done = call("--help", out=tmp_path)
    assert done.status == 0
    for option in ("--steps", "--seed", "--precision", "--optimizer", "--storage", "--out", "--checkpoint-dir", "--resume"):
        assert option in done.stdout


@pytest.mark.parametrize("steps", ["0", "-5", "2.5", "many", ""])
def test_bad_steps(steps, tmp_path, capsys):
    refuses(capsys, "--steps", f"--steps={steps}", f"--out={tmp_path}")


def test_bad_optimizer(tmp_path, capsys):
    assert "Lion" in refuses(capsys, "--optimizer", "--optimizer=Lyon", f"--out={tmp_path}")


def test_optimizer_reaches_the_training(monkeypatch, tmp_path):
    names = []
    monkeypatch.setattr(command, "train", lambda *arguments: names.append(arguments[4]) or fake_blocks(2.0, 5))
    for given in ([], ["--optimizer=lion"]):
        command.main(["--steps=5", f"--out={tmp_path}", *given])
    assert names == ["Adam+AdamW", "Lion"]


def test_storage():
    """What is asked for is what is kept, and trains."""
    corpus = data.Corpus(np.arange(400) % 50, np.arange(200) % 50, ["word"] * 50)
    *_, trained, validation = train.train(corpus, 2, 0, "float32", storage="bfloat16+8bit")
    assert 5 < trained.memory < 5.2
    assert math.isfinite(validation.records[0]["validation_loss"])
    *_, trained, _ = train.train(corpus, 2, 0, "float32")
    assert 12 < trained.memory < 12.1


def test_bad_seed(tmp_path, capsys):
    refuses(capsys, "--seed", "--seed=-1", f"--out={tmp_path}")


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_out_is_a_file(name, tmp_path, capsys):
    (tmp_path / "file").touch()
    refuses(capsys, "--out", f"--out={tmp_path / name}")


def test_out_is_not_writable(tmp_path, capsys):
    (tmp_path / "metrics.jsonl").mkdir()
    refuses(capsys, "--out", f"--out={tmp_path}")


@pytest.mark.parametrize("name", ["matplotlib", "tqdm"])
def test_missing_extra(name, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, name, None)
    message = refuses(capsys, name, f"--out={tmp_path}")
    assert f"{name} not found; run: pip install {name}" in message


def test_interrupt(tmp_path):
    program = [sys.executable, "-m", "mithril_opt.demo", f"--out={tmp_path}"]
    pipe = subprocess.PIPE
    with subprocess.Popen(program, stdout=pipe, stderr=pipe, text=True, env=os.environ | {"JAX_PLATFORMS": "cpu"}) as process:
        assert process.stdout.readline().startswith("training on cpu")
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60)[1].strip() == "interrupted"
    assert process.returncode == 130


def refuses(capsys, word, *arguments):
    with pytest.raises(SystemExit) as stopped:
        command.main([*arguments])
    message = capsys.readouterr().err
    assert stopped.value.code == 2
    assert word in message
    assert len(message.splitlines()) == 1
    return message
