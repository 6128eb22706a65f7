"""The training steps of the demo and of the notebooks, as programs to be compiled."""

import ast
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import mithril_opt
from mithril_opt.demo import model, train

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
# What their cells import and the steps do not need.
ELSEWHERE = {"glob", "importlib", "matplotlib", "pandas", "sys"}
Namespace = dict[str, Any]
Call = tuple[Any, tuple[Any, ...]]  # a jitted step and its arguments, arrays or their shapes


class Notebook(NamedTuple):
    """A notebook's training step.

    Attributes:
        name: of its file.
        assigned: the names besides functions that the step needs of its cells.
        given: what stands for the names that its cells read or compute.
        call: from what the cells define to the step and its arguments.
    """

    name: str
    assigned: set[str]
    given: Namespace
    call: Callable[[Namespace], Call]

    def __call__(self) -> Call:
        """The step and its arguments."""
        names = jax.tree.map(lambda leaf: jnp.asarray(leaf) if isinstance(leaf, np.ndarray) else leaf, self.given)
        for statement in cells(NOTEBOOKS / f"{self.name}.ipynb"):
            if wanted(statement, self.assigned):
                exec(compile(ast.Module([statement], []), self.name, "exec"), names)
        return self.call(names)


def cells(path: Path) -> list[ast.stmt]:
    """The statements of a notebook, without those of IPython."""
    sources = ["".join(cell["source"]) for cell in json.loads(path.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]
    lines = "\n".join(sources).splitlines()
    return ast.parse("\n".join(line.replace(line.strip(), "pass") if line.strip()[:1] == "%" else line for line in lines)).body


def wanted(statement: ast.stmt, assigned: set[str]) -> bool:
    """Whether a statement defines a function, imports what a step needs, or assigns to one of these names."""
    if isinstance(statement, ast.Import | ast.ImportFrom):
        modules = [statement.module or ""] if isinstance(statement, ast.ImportFrom) else [each.name for each in statement.names]
        return not any(module.split(".")[0] in ELSEWHERE for module in modules)
    if isinstance(statement, ast.Assign):
        targets = {node.id for target in statement.targets for node in ast.walk(target) if isinstance(node, ast.Name)}
        return targets <= assigned
    return isinstance(statement, ast.FunctionDef)


def floats(*shape: int) -> jax.ShapeDtypeStruct:
    """An array of float32 that is not there."""
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def quickstart(names: Namespace) -> Call:
    """A perceptron, AdamW with warm-up and clipping."""
    params = jax.eval_shape(names["init_params"], jax.random.key(0))
    return names["train_step"], (params, jax.eval_shape(names["optimizer"].init, params))


def schedules(names: Namespace) -> Call:
    """A loop of 200 steps of SGD."""
    params = jax.eval_shape(names["init_params"], jax.random.key(0))
    return names["train"], (mithril_opt.SGD(learning_rate=jnp.float32(0.1)), params)


def embeddings(names: Namespace, policy: str) -> Call:
    """Tables under AdaGrad, a perceptron under AdamW, in 16 bits."""
    trainer = mithril_opt.MixedPrecisionTrainer(None, names["pair"], policy=policy, clip_norm=1.0)
    params = jax.eval_shape(names["init_params"], jax.random.key(0))
    rows = jax.ShapeDtypeStruct((names["BATCH"], len(names["COLUMNS"])), jnp.int32)
    late = jax.ShapeDtypeStruct((names["BATCH"],), jnp.bool)
    return names["step"], (trainer, params, jax.eval_shape(trainer.init, params), rows, late)


def from_pytorch(names: Namespace) -> Call:
    """A perceptron, AdamW with a schedule and clipping."""
    params = [{"kernel": floats(8, 32), "bias": floats(32)}, {"kernel": floats(32, 1), "bias": floats(1)}]
    return names["train_step"], (params, jax.eval_shape(names["optimizer"].init, params), floats(64, 8), floats(64, 1))


def four(names: Namespace, rule: str) -> Call:
    """120 steps of the demo's model."""
    names["params"] = model.init(np.random.default_rng(0))
    return jax.jit(functools.partial(names["train"], names["optimizers"][rule][0])), (floats(),)


def storage(names: Namespace) -> Call:
    """A loop of steps with bfloat16 parameters and slots in 8 bits."""
    optimizer, dtype = names["storages"]["bfloat16 and 8 bits, slots in 8"]
    params = jax.tree.map(lambda p: p.astype(dtype), names["init_params"](jax.random.key(0)))
    return names["train"], (optimizer, params, jax.eval_shape(optimizer.init, params))


def demo(precision: str) -> Call:
    """The demo's step."""
    trainer = train.make_trainer(600, precision)
    params = model.init(np.random.default_rng(0))
    tokens, starts = jax.ShapeDtypeStruct((100_000,), jnp.int32), jax.ShapeDtypeStruct((train.BATCH,), jnp.int32)
    return train.make_step(trainer), (params, jax.eval_shape(trainer.init, params), tokens, starts)


SPIRALS = {"x": np.zeros((400, 2), np.float32), "y": np.zeros(400, np.float32)}
BATCHES = {"inputs": np.zeros((32, 512, 16), np.float32), "targets": np.zeros((32, 512, 4), np.float32)}
# How many values each column of the flights has, and how many flights are trained on.
FLIGHTS = {"tailnum": 4037, "flight": 3835, "dest": 104, "carrier": 16, "origin": 3, "month": 12, "weekday": 7, "hour": 19}
TABLES = {"sizes": FLIGHTS, "train": range(261_877)}
WINDOWS = {"batches": np.zeros((120, 4, 65), np.int32), "held_out": np.zeros((64, 65), np.int32)}
TEACHER = {"inputs": np.zeros((32, 128, 32), np.float32), "targets": np.zeros((32, 128, 8), np.float32)}
RATE = {"STEPS", "WARMUP", "warmup", "cosine", "schedule", "optimizer"}


def notebook_of(policy: str) -> Notebook:
    """The notebook that computes in 16 bits."""
    return Notebook(
        "03-embeddings", {"COLUMNS", "BATCH", "EPOCHS", "STEPS", "pair"}, TABLES, lambda names: embeddings(names, policy)
    )


def notebook_with(rule: str) -> Notebook:
    """The notebook that trains with four optimizers, one of them."""
    return Notebook("05-four-optimizers", {"STEPS", "BATCH", "optimizers"}, WINDOWS, lambda names: four(names, rule))


PROGRAMS: dict[str, Callable[[], Call]] = {
    "demo, float16": lambda: demo("float16"),
    "demo, bfloat16": lambda: demo("bfloat16"),
    "notebook 1, float32": Notebook(
        "01-quickstart", {"STEPS", "PEAK", "CLIP_NORM", "decay", "schedule", "optimizer"}, {"train": SPIRALS}, quickstart
    ),
    "notebook 2, float32": Notebook("02-schedules", set(), BATCHES | {"batches": range(32)}, schedules),
    "notebook 3, float16": notebook_of("float16"),
    "notebook 3, bfloat16": notebook_of("bfloat16"),
    "notebook 4, float32": Notebook("04-from-pytorch", RATE, {}, from_pytorch),
    **{f"notebook 5, {rule}": notebook_with(rule) for rule in ("AdamW", "Muon, AdamW", "SOAP, AdamW", "Schedule-Free")},
    "notebook 6, 8 bits": Notebook("06-storage", {"STEPS", "adamw", "storages"}, TEACHER, storage),
}
