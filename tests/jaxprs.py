"""Questions about what a function compiles to, asked of its jaxpr."""

from collections import Counter

import jax
import jax.extend


def inner(eqn, platform="cpu"):
    """The jaxprs that an equation calls, as plain jaxprs: the body of a jit, the branches of a cond; of a choice by the
    platform, what runs there."""
    platforms = eqn.params.get("branches_platforms")
    if platforms:
        chosen = next(i for i, names in enumerate(platforms) if names is None or platform in names)
        return [eqn.params["branches"][chosen].jaxpr]
    values = [value for param in eqn.params.values() for value in (param if isinstance(param, tuple | list) else (param,))]
    return [getattr(value, "jaxpr", value) for value in values if hasattr(getattr(value, "jaxpr", value), "eqns")]


def equations(jaxpr, platform="cpu"):
    """All equations of a jaxpr, those of the jaxprs in it included, but for choices by the platform."""
    found = []
    for eqn in jaxpr.eqns:
        own = [] if eqn.params.get("branches_platforms") else [eqn]
        found += own + [e for sub in inner(eqn, platform) for e in equations(sub, platform)]
    return found


def primitives(jaxpr, platform="cpu"):
    """How often each primitive occurs."""
    return Counter(eqn.primitive.name for eqn in equations(jaxpr, platform))


def branches(jaxpr):
    """The branches of every cond, the innermost included."""
    return [inner(eqn) for eqn in equations(jaxpr) if eqn.primitive.name == "cond"]


def uses(jaxpr, tainted):
    """The primitives that read one of the variables in `tainted` or anything computed from them, and which outputs do.

    Looks through jit and cond; to everything else the whole of its outputs depends on the whole of its inputs.
    """
    names, tainted = set(), set(tainted)
    reads = lambda var: not isinstance(var, jax.extend.core.Literal) and var in tainted  # noqa: E731
    for eqn in jaxpr.eqns:
        hits = [reads(var) for var in eqn.invars]
        outputs = [any(hits)] * len(eqn.outvars)
        if any(hits) and inner(eqn):
            outputs = [False] * len(eqn.outvars)
            for sub in inner(eqn):
                own = hits[len(hits) - len(sub.invars) :]
                found, reached = uses(sub, [var for var, hit in zip(sub.invars, own, strict=True) if hit])
                names |= found
                outputs = [a or b for a, b in zip(outputs, reached, strict=True)]
        elif any(hits):
            names.add(eqn.primitive.name)
        tainted |= {var for var, output in zip(eqn.outvars, outputs, strict=True) if output}
    return names, [reads(var) for var in jaxpr.outvars]
