"""The sets of parameters that everything is measured on."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Shape = tuple[int, ...]
Tree = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Workload:
    """Parameters by their shapes, all float32."""

    name: str
    shapes: tuple[Shape, ...]

    @property
    def count(self) -> int:
        """The number of parameters."""
        return sum(math.prod(shape) for shape in self.shapes)

    def __str__(self) -> str:
        leaves = "1 leaf" if len(self.shapes) == 1 else f"{len(self.shapes):,} leaves"
        return f"`{self.name}`: {leaves}, {self.count / 1e6:.3g} M parameters"

    def tree(self, seed: int) -> Tree:
        """Random numbers of these shapes, in buffers of their own that may be donated."""
        rng = np.random.default_rng(seed)
        draws = (0.1 * rng.standard_normal(shape, np.float32) for shape in self.shapes)
        return _named([jnp.array(draw) for draw in draws])

    def shape_tree(self) -> dict[str, jax.ShapeDtypeStruct]:
        """What `tree` returns, as shapes and dtypes."""
        return _named([jax.ShapeDtypeStruct(shape, jnp.float32) for shape in self.shapes])

    def cut(self, rows: int) -> "Workload":
        """The same leaves, none longer than `rows` along its first axis."""
        return Workload(f"{self.name}, {rows} rows", tuple((min(shape[0], rows), *shape[1:]) for shape in self.shapes))

    def thin(self, most: int) -> "Workload":
        """About `most` of the leaves, evenly chosen; itself if it has no more."""
        every = -(-len(self.shapes) // most)
        return self if every == 1 else Workload(f"{self.name}, every {every}th leaf", self.shapes[::every])


def _named(leaves: list[Any]) -> dict[str, Any]:
    return {f"leaf{i:04}": leaf for i, leaf in enumerate(leaves)}


def gpt_shapes(vocabulary: int, positions: int, width: int, layers: int) -> tuple[Shape, ...]:
    """A GPT-2: embeddings, and per layer two norms, attention and a feed-forward net four times as wide."""
    w = width
    layer = ((w,), (w,), (w, 3 * w), (3 * w,), (w, w), (w,), (w,), (w,), (w, 4 * w), (4 * w,), (4 * w, w), (w,))
    return ((vocabulary, w), (positions, w), *layer * layers, (w,), (w,))


def many_shapes(matrices: int, vectors: int, width: int) -> tuple[Shape, ...]:
    """Many small leaves of two shapes."""
    return ((width, width),) * matrices + ((width,),) * vectors


WORKLOADS = {
    "one": Workload("one", ((8192, 4096),)),
    "gpt": Workload("gpt", gpt_shapes(30_000, 1024, 768, 6)),
    "many": Workload("many", many_shapes(1500, 500, 64)),
}
QUICK = {
    "one": Workload("one", ((512, 512),)),
    "gpt": Workload("gpt", gpt_shapes(3000, 128, 96, 2)),
    "many": Workload("many", many_shapes(30, 10, 16)),
}
