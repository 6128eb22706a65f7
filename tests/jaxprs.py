"""Questions about what a function compiles to, asked of its jaxpr."""

from collections import Counter

import jax
import jax.extend


def inner(eqn):
    """The jaxprs that an equation calls, as plain jaxprs: the body of a jit, the branches of a cond."""
    values = [value for param in eqn.params.values() for value in (param if isinstance(param, tuple | list) else (param,))]
    return [getattr(value, "jaxpr", value) for value in values if hasattr(getattr(value, "jaxpr", value), "eqns")]


def equations(jaxpr):
    """All equations of a jaxpr, those of the jaxprs in it included."""
    return [found for eqn in jaxpr.eqns for found in (eqn, *(e for sub in inner(eqn) for e in equations(sub)))]


def primitives(jaxpr):
    """How often each primitive occurs."""
    return Counter(eqn.primitive.name for eqn in equations(jaxpr))


def branches(jaxpr):
    """The branches of every cond, the innermost included, but for those that only choose by the platform."""
    conds = [eqn for eqn in equations(jaxpr) if eqn.primitive.name == "cond"]
    return [inner(eqn) for eqn in conds if not eqn.params.get("branches_platforms")]


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
