"""What is drawn once for a batch: the tree, the composition, and which numbers there are.

Rules, compositions and what else matters most come out of shuffled decks, so that a short run sees all of them.
"""

import dataclasses
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mithril_opt import Accumulate, Clip, Frozen, MixedPrecisionTrainer, MultiOptimizer

from .draws import ALSO_SCHEDULED, DRAWN, NUMBERS, OPTIONAL, alternating, breaking, decades, function
from .papers import PAPERS

TREES = [{"w": 0}, {"a": 0, "b": {"c": 1}}, {"a": 0, "b": [1, 2]}, {"a": (0, {"b": 1}), "c": [2], "d": 3}]
SHAPES = [(), (3,), (2, 2), (1,), (5,), (0,), (2, 0)]
DTYPES = [jnp.float32, jnp.float32, jnp.bfloat16, jnp.float16, jnp.complex64]


class Deck:
    """Cards dealt in a shuffled order, each once before any of them comes again."""

    def __init__(self, rng, cards):
        self.rng, self.cards, self.left = rng, list(cards), []

    def deal(self):
        if not self.left:
            self.left = [self.cards[i] for i in self.rng.permutation(len(self.cards))]
        return self.left.pop()


class Leaf(NamedTuple):
    """A leaf of the parameters; one that does not train has an integer dtype."""

    path: str
    shape: tuple[int, ...]
    dtype: Any
    grad_dtype: Any

    def __str__(self):
        return f"{jnp.dtype(self.dtype).name}{list(self.shape)}"

    @property
    def trains(self):
        return self.dtype != jnp.int32


@dataclasses.dataclass
class Structure:
    """What is compiled once.

    Attributes:
        tree: the leaves.
        make: from a random generator to an optimizer or a trainer with numbers of its own, always of one structure.
        patterns: the paths that have a gradient, for each of a few steps that are repeated.
        entrance: how a step is taken: "update" without a trainer; with one "scaled", "value_and_grad" or "halves".
        with_loss: whether `update` of the trainer is told the loss.
        batched: whether the batch is a `jax.vmap`, or a loop in which branches are branches.
        constant: whether the numbers are part of the program, the same for all of the batch.
        tame: whether gradients stay where squares are float32s; nothing in between bounds them.
        late: whether the clock may start late.
    """

    tree: Any
    make: Callable[[np.random.Generator], Any]
    patterns: list[list[str]]
    entrance: str
    with_loss: bool
    batched: bool
    constant: bool
    tame: bool
    late: bool

    @property
    def leaves(self):
        return jax.tree.leaves(self.tree, is_leaf=lambda node: isinstance(node, Leaf))

    def __str__(self):
        tree = jax.tree.map(str, self.tree, is_leaf=lambda node: isinstance(node, Leaf))
        entrance = self.entrance + (", with a loss" if self.entrance == "scaled" and self.with_loss else "")
        batch = ("vmap" if self.batched else "map") + (", constant numbers" if self.constant else "")
        return f"{tree}; gradients of {' and '.join(map(str, self.patterns))} in turn; {entrance}; {batch}"

    @property
    def trained(self):
        return [leaf.path for leaf in self.leaves if leaf.trains]


def decays(path, leaf):
    return path != "b/c" and path != "w"


class Composer:
    """Draws structures; `deal()` gives the next one."""

    def __init__(self, rng):
        self.rng = rng
        self.rules = Deck(rng, [(kind, variant) for kind, paper in PAPERS.items() for variant in paper.variants])
        self.rates = Deck(rng, [None] * 6 + DRAWN)
        self.rates_of_trainers = Deck(rng, [None] * 5 + [*DRAWN, function(breaking)])
        self.trees = Deck(rng, [0, 1, 2, 3, 1, 2, 3])
        self.compositions = Deck(
            rng, [(*composition, trainer) for composition in self.COMPOSITIONS for trainer in (True, False)]
        )
        self.entrances = Deck(rng, ["scaled", "value_and_grad", "halves"])
        self.policies = Deck(rng, ["float16", "float16", "bfloat16", "float16", "float32"])

    def deal(self):
        compose, needs_two, trainer = self.compositions.deal()
        tree = self.tree(needs_two)
        self.paths = [leaf.path for leaf in jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, Leaf)) if leaf.trains]
        self.late, self.clipped, self.entrance = True, [], self.entrances.deal() if trainer else "update"
        make = self.trainer(compose(self)) if trainer else compose(self)
        return Structure(
            tree=tree,
            make=make,
            patterns=self.patterns(),
            entrance=self.entrance,
            with_loss=bool(self.rng.random() < 0.7),
            batched=bool(self.rng.random() < 0.5),
            constant=bool(self.rng.random() < 0.3),
            tame=not self.clipped or not all(self.clipped),
            late=self.late,
        )

    def tree(self, needs_two):
        template = TREES[max(self.trees.deal(), int(needs_two))]
        count = len(jax.tree.leaves(template))
        passenger = int(self.rng.integers(count)) if count > 2 and self.rng.random() < 0.4 else None
        shapes = [SHAPES[self.rng.integers(len(SHAPES))] for _ in range(count)]
        while all(0 in shape for i, shape in enumerate(shapes) if i != passenger):
            shapes = [SHAPES[self.rng.integers(len(SHAPES))] for _ in range(count)]

        def leaf(path, i):
            dtype = jnp.int32 if i == passenger else DTYPES[self.rng.integers(len(DTYPES))]
            grad_dtype = jnp.float32 if dtype != jnp.int32 and self.rng.random() < 0.2 else dtype
            return Leaf(jax.tree_util.keystr(path, simple=True, separator="/"), shapes[i], dtype, grad_dtype)

        return jax.tree_util.tree_map_with_path(leaf, template)

    def patterns(self):
        if self.rng.random() < 0.6:
            return [self.paths]
        some = [[path for path in self.paths if self.rng.random() < 0.6] or self.paths[-1:] for _ in range(2)]
        return some if self.rng.random() < 0.5 else [some[0], self.paths]

    # The compositions.

    def rule(self, clipped=False):
        kind, variant = self.rules.deal()
        self.clipped.append(clipped)
        switches = {name: value for name, value in variant.items() if value is not None}
        optional = OPTIONAL - set(variant)
        numbers = {field.name: field.metadata["rule"] for field in dataclasses.fields(kind) if "rule" in field.metadata}
        draws = {name: NUMBERS[name] for name in numbers if name in NUMBERS and name not in optional}
        draws |= {name: switched_on(draw) for name, draw in draws.items() if numbers[name].off}
        if self.rng.random() < 0.75:
            draws["weight_decay"] = NUMBERS["weight_decay"]
            switches |= {"decay_mask": decays} if self.rng.random() < 0.3 else {}
        else:
            switches["weight_decay"] = 0.0
        draws |= self.scheduled(draws)
        return lambda rng: kind(**{name: draw(rng) for name, draw in draws.items()}, **switches)

    def scheduled(self, draws):
        schedules = {"learning_rate": (self.rates if self.entrance == "update" else self.rates_of_trainers).deal()}
        for name in ALSO_SCHEDULED:
            if name in draws and self.rng.random() < 0.1:
                schedules[name] = function(alternating)
        schedules = {name: schedule for name, schedule in schedules.items() if schedule is not None}
        self.late = self.late and not schedules
        return schedules

    def clip(self, make=None, bound=None):
        make = self.rule(clipped=True) if make is None else make
        bound = bound or ("clip_norm" if self.rng.random() < 0.6 else "clip_value")
        return lambda rng: Clip(make(rng), **{bound: decades(-3, 3, zero=0.02)(rng)})

    def accumulate(self, make, every=None):
        every = int(self.rng.integers(1, 5)) if every is None else every
        return lambda rng: Accumulate(make(rng), every=every)

    def multi(self, first, second):
        """Two groups: what is in the first is listed, by a predicate or by a regular expression."""
        count = int(self.rng.integers(1, len(self.paths)))
        chosen = frozenset(self.paths[i] for i in self.rng.permutation(len(self.paths))[:count])
        pattern = lambda path, leaf: path in chosen  # noqa: E731
        if self.rng.random() < 0.5:
            pattern = re.compile("^(" + "|".join(sorted(chosen)) + ")$")
        groups = {"first": pattern, "second": ...}
        return lambda rng: MultiOptimizer({"first": first(rng), "second": second(rng)}, groups)

    def trainer(self, make):
        policy = self.policies.deal()
        halves = self.entrance == "halves"
        clips, dynamic = bool(self.rng.random() < 0.5), bool(self.rng.random() < 0.85)
        if clips:
            self.clipped = [True]

        def trainer(rng):
            initial, growth = 2.0 ** rng.integers(0, 16), float(rng.choice([2.0, rng.uniform(1.1, 4)]))
            return MixedPrecisionTrainer(
                identity if halves else None,
                make(rng),
                loss_scale=float(initial),
                dynamic_loss_scaling=dynamic,
                policy=policy,
                clip_norm=decades(-3, 3)(rng) if clips else None,
                growth_factor=growth,
                backoff_factor=float(rng.choice([0.5, rng.uniform(0.05, 0.95)])),
                growth_interval=int(rng.integers(1, 5)),
                min_loss_scale=float(initial * 2.0 ** -rng.integers(0, 6)),
                max_loss_scale=float(initial * growth ** rng.uniform(0, 4)),
                hysteresis=int(rng.integers(1, 4)),
            )

        return trainer

    def two(self, clipped=False):
        first = self.rule(clipped) if self.rng.random() < 0.8 else frozen
        return self.multi(first, self.clip() if self.rng.random() < 0.5 else self.rule(clipped))

    def windows(self):
        """Two groups that accumulate, over one window; without a trainer sometimes over two, or only one of them."""
        every = int(self.rng.integers(1, 5))
        other = every if self.entrance != "update" or self.rng.random() < 0.5 else int(self.rng.integers(1, 5))
        first = self.rule() if self.entrance == "update" and self.rng.random() < 0.2 else self.accumulate(self.rule(), other)
        return self.multi(first, self.accumulate(self.clip(), every))

    COMPOSITIONS = (
        (lambda self: self.rule(), False),
        (lambda self: self.clip(), False),
        (lambda self: self.accumulate(self.rule()), False),
        (lambda self: self.accumulate(self.clip()), False),
        (lambda self: self.clip(self.accumulate(self.rule(clipped=True))), False),
        (lambda self: self.two(), True),
        (lambda self: self.windows(), True),
        (lambda self: self.multi(frozen, self.rule()), True),
        (lambda self: self.multi(frozen, self.clip()), True),
        (lambda self: self.clip(self.multi(frozen, self.rule(clipped=True)), "clip_norm"), True),
        (lambda self: self.clip(self.two(clipped=True)), True),
        (lambda self: self.accumulate(self.two()), True),
        (lambda self: self.accumulate(self.multi(frozen, self.clip())), True),
    )


def switched_on(draw):
    """A number of which 0 would be a switch, and so another structure."""
    return lambda rng: draw(rng) or 0.5


def frozen(rng):
    return Frozen()


def identity(params, inputs):
    return params
