"""PyTorch's fused optimizers, for orientation, where PyTorch is installed."""

import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks.candidates import CLIP_NORM
from benchmarks.workloads import Workload


def available() -> bool:
    """Whether PyTorch can be measured on the kind of device that JAX uses."""
    if importlib.util.find_spec("torch") is None or jax.default_backend() not in ("cpu", "gpu"):
        return False
    import torch  # pyright: ignore[reportMissingImports]

    return jax.default_backend() == "cpu" or torch.cuda.is_available()


def runner(kind: str, workload: Workload) -> tuple[str, Callable[[int], None]]:
    """The name of a candidate, and a function that takes so many steps with it and waits for them.

    Args:
        kind: "AdamW", "clip + AdamW" or "SGD".
        workload: the parameters.
    """
    import torch  # pyright: ignore[reportMissingImports]

    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    tensors = [torch.tensor(np.asarray(leaf), device=device) for leaf in workload.tree(seed=0).values()]
    for tensor, grad in zip(tensors, workload.tree(seed=1).values(), strict=True):
        tensor.grad = torch.tensor(np.asarray(grad), device=device)
    if kind == "SGD":
        optimizer: Any = torch.optim.SGD(tensors, lr=0.01, momentum=0.9, fused=True)
    else:
        optimizer = torch.optim.AdamW(tensors, lr=1e-3, weight_decay=0.01, fused=True)

    def run(steps: int) -> None:
        for _ in range(steps):
            if kind.startswith("clip"):
                torch.nn.utils.clip_grad_norm_(tensors, CLIP_NORM)
            optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return f"PyTorch {kind}, fused", run
