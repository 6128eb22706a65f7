"""Newton–Schulz: the orthogonal factor U Vᴴ of a matrix U S Vᴴ, roughly, by products of matrices alone."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from mithril_opt.core.fields import shown
from mithril_opt.core.numerics import safe_divide
from mithril_opt.core.reductions import norm_at_scale
from mithril_opt.core.typing import Array

Coefficients: TypeAlias = tuple[tuple[float, float, float], ...]

# The polynomials a x + b x³ + c x⁵ of the steps; the last is repeated.
PRESETS: dict[str, Coefficients] = {
    # Steepest at 0 and not convergent: singular values of a random matrix end between 0.68 and 1.14 (Jordan et al. 2024).
    "jordan": ((3.4445, -4.7750, 2.0315),),
    # The best of its degree for what the steps before have left (Amsel et al. 2025), with their margin of 1 % for rounding.
    "polar_express": (
        (8.2051, -22.9019, 16.4607),
        (4.0664, -2.8612, 0.5184),
        (3.9096, -2.8234, 0.5250),
        (3.2856, -2.4153, 0.4853),
        (2.2779, -1.6198, 0.3985),
        (1.875, -1.25, 0.375),
    ),
}


def check_coefficients(where: str, given: Any, steps: int) -> str | Coefficients:
    """`given`, the name of a preset or triples (a, b, c), as it is stored; an error that begins with `where` otherwise."""
    if isinstance(given, str) and given in PRESETS:
        return given
    try:
        triples = tuple((_finite(a), _finite(b), _finite(c)) for a, b, c in given)
    except (TypeError, ValueError):
        triples = ()
    if not 1 <= len(triples) <= steps:
        names = ", ".join(map(repr, PRESETS))
        wanted = f"one of {names} or at most ns_steps = {steps} triples (a, b, c) of finite numbers"
        raise ValueError(f"{where} must be {wanted}, got {shown(given)}")
    return triples


def _finite(value: Any) -> float:
    if isinstance(value, str) or not math.isfinite(value):
        raise ValueError("no finite number")
    return float(value)


def check_spread(where: str, sharding: Any) -> None:
    """Raise a TypeError that begins with `where` unless `sharding` is None or says how a stack is spread."""
    spec = sharding.spec if isinstance(sharding, NamedSharding) else sharding
    if sharding is not None and not (isinstance(spec, P) and len(spec) and spec[0]):
        raise TypeError(
            f"{where} must be a NamedSharding or a PartitionSpec whose first entry names axes, got {shown(sharding)}"
        )


def orthogonalize(
    stacks: Sequence[Array], coefficients: str | Coefficients, steps: int, dtype: Any = None, sharding: Any = None
) -> list[Array]:
    """O = NS(X / ‖X‖) for each matrix in each of `stacks`, arrays (…, rows, columns): stacks of one shape go together.

        X ← a X + (b A + c A²) X,  A = X Xᴴ

    A matrix of zeros gives zeros. What is transposed gives what is transposed, so that the smaller side is taken as rows.

    Args:
        stacks: arrays of any real or complex dtypes.
        coefficients: of the steps.
        steps: k.
        dtype: what X is kept in between the products, which add up in float32 or wider; None for that of each stack.
        sharding: `NamedSharding` or `PartitionSpec`, whose first entry names the mesh axes that the matrices are spread over.
    """
    triples = expanded(coefficients, steps)
    wide = [jnp.swapaxes(x, -1, -2) if x.shape[-2] > x.shape[-1] else x for x in stacks]
    groups: dict[Any, list[int]] = {}
    for i, x in enumerate(wide):
        groups.setdefault(jax.typeof(x), []).append(i)
    for members in groups.values():
        together = jnp.stack([wide[i] for i in members], axis=-3)
        run = functools.partial(_iterate, triples=triples, dtype=dtype)
        results = run(together) if sharding is None else _spread(run, together, sharding)
        for place, i in enumerate(members):
            wide[i] = results[..., place, :, :]
    return [jnp.swapaxes(o, -1, -2) if x.shape[-2] > x.shape[-1] else o for o, x in zip(wide, stacks, strict=True)]


def expanded(coefficients: str | Coefficients, steps: int) -> Coefficients:
    """The triple of each step."""
    known = PRESETS[coefficients] if isinstance(coefficients, str) else coefficients
    return (*known, *[known[-1]] * steps)[:steps]


def _iterate(matrices: Array, triples: Coefficients, dtype: Any) -> Array:
    wide = matrices.dtype
    # A norm that neither underflows nor overflows; ‖X‖ + 1e-7 would be off by 18 % at |x| = 1e-8.
    down, norms = norm_at_scale(matrices, tuple(range(matrices.ndim - 2)))
    x = safe_divide(matrices * down, norms).astype(dtype or wide)
    for a, b, c in triples:
        gram = _product(x, jnp.conj(jnp.swapaxes(x, -1, -2)), wide)
        narrow = gram.astype(x.dtype)
        polynomial = (b * gram + c * _product(narrow, narrow, wide)).astype(x.dtype)
        x = (a * x.astype(wide) + _product(polynomial, x, wide)).astype(x.dtype)
    return x.astype(wide)


def _product(x: Array, y: Array, dtype: Any) -> Array:
    return jnp.matmul(x, y, preferred_element_type=dtype)


def _spread(run: Callable[[Array], Array], matrices: Array, sharding: Any) -> Array:
    """`run` on matrices of one shape, (…, count, rows, columns), spread over devices, and brought back."""
    mesh = jax.sharding.get_abstract_mesh() if isinstance(sharding, P) else sharding.mesh
    names = (sharding if isinstance(sharding, P) else sharding.spec)[0]
    own, flat = NamedSharding(mesh, P(names, None, None)), matrices.reshape(-1, *matrices.shape[-2:])
    surplus = -len(flat) % math.prod(mesh.shape[name] for name in (names if isinstance(names, tuple) else (names,)))
    padded = jnp.concatenate([flat, jnp.zeros((surplus, *flat.shape[1:]), flat.dtype)]) if surplus else flat
    if AxisType.Explicit in mesh.axis_types:
        back = jax.sharding.reshard(run(jax.sharding.reshard(padded, own)), jax.typeof(flat).sharding)
    else:
        # How each matrix lies is left to what it comes from and goes to. A stack of leaves is not sharded over the leaves; said
        # so on both sides, it costs an all-to-all where they are sharded, and a single all-gather where they are not.
        layers = P.UNCONSTRAINED if matrices.ndim > 3 else None
        free = NamedSharding(mesh, P(layers, P.UNCONSTRAINED, P.UNCONSTRAINED))
        padded = jax.lax.with_sharding_constraint(padded, free)
        back = jax.lax.with_sharding_constraint(run(jax.lax.with_sharding_constraint(padded, own)), free)
    return back[: len(flat)].reshape(matrices.shape)
