"""Every step of a batch against the oracle, each from the library's own state before it."""

import jax
import jax.numpy as jnp
import numpy as np

from . import oracle, training
from .backward import backward
from .batches import draw
from .bounded import Bounded, kept
from .compare import Compared, compare, components, is_finite
from .program import run
from .report import tally


def check(structure, rng, entry=None):
    """Run a batch, and compare what it starts from and all of its steps, or those of one entry: a report, and the numbers."""
    constant, batch = draw(structure, rng)
    history = jax.tree.map(np.asarray, run(structure, constant, batch))
    numbers = jax.tree.map(lambda x: x.reshape(-1, 1, 1, 1), batch.numbers)
    count = len(structure.patterns)
    with np.errstate(all="ignore"):
        report = start(structure, numbers, stacked([history[0][:2]]))
        for i in range(count):
            before, after = stacked([step[:2] for step in history[i:-1:count]]), stacked(history[1 + i :: count])
            found = Steps(structure, numbers, batch.gradients[i], before, after).report(entry)
            places = tuple(failure._replace(step=failure.step * count + i) for failure in found.failures)
            report += found._replace(failures=places)
    return report, batch.numbers


def start(structure, numbers, before):
    """What `init` has made, apart from the clocks, which have been set."""
    found = flat(*before)
    params = dict.fromkeys(structure.trained)
    state = {key.removeprefix("state/"): Bounded(components(x)) for key, x in found.items() if key.startswith("state/")}
    if structure.entrance == "update":
        expected = oracle.initial(numbers, params, state, oracle.at(""))
    else:
        expected = training.initial(numbers, params, state)
    comparisons = ((f"state/{key}", compare(x, found[f"state/{key}"], found[f"state/{key}"])) for key, x in expected.items())
    return tally(comparisons, {}, np.ones(found[next(iter(found))].shape[:2], bool))


def stacked(steps):
    """The steps along the second axis."""
    return jax.tree.map(lambda *x: np.stack(x, axis=1), *steps)


def flat(params, state):
    """The leaves of both by path, as NumPy arrays."""
    leaves = jax.tree_util.tree_leaves_with_path({"params": params, "state": state})
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in leaves}


class Steps:
    """The steps of a batch at one place of the pattern."""

    def __init__(self, structure, numbers, gradients, before, step):
        self.structure, self.numbers, self.gradients, self.step = structure, numbers, gradients, step
        self.before, self.after = flat(*before), flat(step.params, step.state)

    def report(self, entry=None):
        expected, success, decided = self.expected()
        if set(expected) != set(self.after):
            raise AssertionError(f"there are {sorted(self.after)}, expected {sorted(expected)}")
        sound = np.logical_and.reduce([is_finite(x) for x in self.before.values()])
        sound &= (np.arange(len(sound)) == entry)[:, None] if entry is not None else True
        found = tally(self.compared(expected, success), self.before, sound & decided)
        return found._replace(cases=int((sound & decided).sum()), undecided=int((sound & ~decided).sum()))

    def expected(self):
        """What must be there, by path; and by entry and step the verdicts, and which of them are sure."""
        structure, before = self.structure, {key: Bounded(components(x)) for key, x in self.before.items()}
        params = {path: before[f"params/{path}"] for path in structure.trained}
        state = {key.removeprefix("state/"): x for key, x in before.items() if key.startswith("state/")}
        given = [path for path in params if path in self.step.grads]
        grads = {path: Bounded(components(self.step.grads[path], params[path].value.shape[-1])) for path in given}
        success = decided = np.ones((1, 1, 1, 1), bool)
        if structure.entrance == "update":
            params, state = oracle.update(self.numbers, params, grads, state, oracle.at(""))
        else:
            narrow = [leaf.path for leaf in structure.leaves if leaf.dtype == jnp.float16]
            finite = np.isfinite(self.step.loss)[..., None, None]
            params, state, success, decided = training.train(self.numbers, params, narrow, grads, state, finite)
        passengers = {leaf.path: kept(before[f"params/{leaf.path}"]) for leaf in structure.leaves if not leaf.trains}
        by_path = {f"params/{path}": x for path, x in (params | passengers).items()}
        lead = self.step.success.shape
        verdicts = (np.broadcast_to(x, (*lead, 1, 1))[..., 0, 0] for x in (success, decided))
        return by_path | {f"state/{key}": x for key, x in state.items()}, *verdicts

    def compared(self, expected, success):
        verdict = components(self.step.success)
        right = verdict == components(success)
        yield "success", Compared(right, components(success), np.zeros_like(verdict), verdict)
        for key, found in self.after.items():
            yield key, compare(expected[key], found, self.before[key])
        if self.structure.entrance in ("value_and_grad", "halves"):
            yield from backward(self.structure, self.numbers.policy, self.gradients, self.before, self.step)
