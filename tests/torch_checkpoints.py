"""The checkpoints of torch in data/torch_runs.npz, and the model that they are of."""

import copy
import json

import jax.numpy as jnp
import numpy as np
from oracles import torch_runs as oracle

from mithril_opt import AdamW, LambdaLR, MultiOptimizer, ReduceLROnPlateau, params_from_torch, state_from_torch

with np.load(oracle.FILE) as file:
    DATA = dict(file)
CHECKPOINTS = json.loads(str(DATA.pop("description")))["runs"]
NAMES = {
    "embed.weight": "embed",
    "body.weight": "body/w",
    "body.bias": "body/b",
    "head.weight": "head/w",
    "head.bias": "head/b",
}
TURNED = ["body/w", "head/w"]
# The order of the groups: another one than that of the model.
ORDER = ["head/w", "body/w", "embed", "head/b", "body/b"]
PATTERNS = {"decayed": "*/w", "rest": ...}
SCALING = {"growth_interval": oracle.SCALER["growth_interval"], "policy": "float16"}


def part(prefix):
    return {key.removeprefix(prefix): value for key, value in DATA.items() if key.startswith(prefix)}


def template():
    width, rows, classes = oracle.WIDTH, oracle.ROWS, oracle.CLASSES
    layer = lambda n: {"w": jnp.zeros((width, n)), "b": jnp.zeros(n)}  # noqa: E731
    return {"embed": jnp.zeros((rows, width)), "body": layer(width), "head": layer(classes)}


def params_of(run, where="model"):
    return params_from_torch(template(), part(f"{run}/{where}/"), NAMES, TURNED)


def state_dict(run, optimizer=0):
    entries = {}
    for key, value in part(f"{run}/state/{optimizer}/").items():
        index, name = key.split("/")
        entries.setdefault(int(index), {})[name] = value
    return {"state": entries, "param_groups": copy.deepcopy(CHECKPOINTS[run]["param_groups"][optimizer])}


def scheduler_of(run):
    return dict(CHECKPOINTS[run]["schedulers"][0])


def scaler_of(run):
    return dict(CHECKPOINTS[run]["scaler"])


def two_groups(rate, rest=AdamW):
    """AdamW for PyTorch's two groups; `rate(peak)` is a number or a schedule."""
    (first, second), settings = oracle.GROUPS, {"weight_decay": 0.0} if rest is AdamW else {"momentum": 0.9}
    decayed = AdamW(learning_rate=rate(first["lr"]), weight_decay=first["weight_decay"])
    return MultiOptimizer({"decayed": decayed, "rest": rest(learning_rate=rate(second["lr"]), **settings)}, groups=PATTERNS)


def warmup(peak, skipped=0):
    return LambdaLR(peak, lambda k: jnp.minimum(1, (k + 1 + skipped) / oracle.WARMUP))


def plateau(peak):
    return ReduceLROnPlateau(peak, **oracle.PLATEAU)


def moved(optimizer, run="warmup", saved=None, names=ORDER, **kwargs):
    return state_from_torch(optimizer, params_of(run), saved or state_dict(run), names, TURNED, **kwargs)
