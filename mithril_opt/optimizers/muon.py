"""Muon, and which parameters it is for."""

import math
import re
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

from mithril_opt.core.fields import AxesOrFunction, DecayRateOrSchedule, ScalarOrSchedule, count, decay_rate, number, static
from mithril_opt.core.leaf_optimizer import LeafOptimizer
from mithril_opt.core.matrices import as_matrices, check_matrix_axes, from_matrices, matrix_axes_at
from mithril_opt.core.newton_schulz import check_coefficients, check_spread, expanded, orthogonalize
from mithril_opt.core.numerics import ema, zeros
from mithril_opt.core.pytree import pytree, set_field, with_fields
from mithril_opt.core.schedule import check_choice
from mithril_opt.core.state import Counterpart, exported
from mithril_opt.core.typing import Array, DecayMask, PyTree


@exported
class MuonSlots(NamedTuple):
    """The momentum m, float32."""

    mu: Array


@pytree
class Muon(LeafOptimizer):
    """Muon, momentum orthogonalized by Newton–Schulz (Jordan et al. 2024; decay and scale as in Liu et al. 2025).

        m ← β m + (1 − β) g
        u = β m + (1 − β) g              without nesterov u = m
        O = NS(u / ‖u‖)                  of each matrix
        p ← p − η (s O + λ p)

    NS is k steps of X ← a X + (b A + c A²) X with A = X Xᴴ. It brings the singular values of u near 1, those below a thousandth
    of ‖u‖ excepted. O is as large for a small gradient as for a large one, so that clipping does nothing, and Muon never slows
    down by itself: it needs a schedule that ends low. Only where u is exactly 0 nothing moves but the decay.

    The scale s is for a matrix (in, out)

        "match_rms_adamw"    0.2 √max(in, out)     steps as large as AdamW's, whose η and λ may be shared
        "original"           √max(1, out/in)       Jordan's, with η = 0.02
        "spectral"           √(out/in)

    Muon is for the hidden matrices of a model; `hidden_matrices` tells them, and the rest goes to AdamW. Matrices of one shape
    are orthogonalized together.

    Args:
        learning_rate: η ≥ 0.
        beta: β in [0, 1), the decay rate of the momentum, which is not corrected for its start.
        nesterov: whether the gradient enters u once more.
        weight_decay: λ ≥ 0, decoupled; 0.0 switches it off.
        scaling: "match_rms_adamw", "original" or "spectral".
        ns_steps: k ≥ 1.
        ns_coefficients: "jordan", "polar_express" (nearer to 1), or triples (a, b, c) for the steps, the last of which repeats.
        ns_dtype: what X is kept in, `jnp.bfloat16` say, in which products are faster; None for the precision of the parameter.
            On a TPU, and on some GPUs, products of float32 are rounded unless `jax.default_matmul_precision` says otherwise.
        matrix_axes: where the matrices of a leaf are. None for leaves (in, out); "stacked" for the last two axes, with layers
            before; "conv" for kernels (…, in, out), whose last axis is out and all others in; a pair (in, out) of axes or
            tuples of axes, with every other axis counting matrices, such as (0, (1, 2)) for (in, heads, size); or a function
            `(path, leaf) -> axes`. PyTorch's and Equinox's weights (out, in) are (1, 0).
        unit_axes: the axes that count the layers stacked in a leaf, an axis, a tuple, or `(path, leaf) -> axes`; `matrix_axes`
            is then about the others.
        ns_sharding: a `jax.sharding.NamedSharding`, or a `PartitionSpec` for the mesh of `jax.set_mesh`, whose first entry
            names the axes of the mesh over which the matrices of a shape are spread for Newton–Schulz; None leaves it to XLA,
            which needs no communication where a stack is sharded over its layers.
        decay_mask: `(path, leaf) -> bool`, True for the leaves that decay; None for all.

    Raises:
        ValueError: a Python number is out of its range, or a leaf holds no such matrices; names its path.

    Example:
        >>> import jax.numpy as jnp
        >>> from mithril_opt import AdamW, MultiOptimizer, Muon, hidden_matrices
        >>> params = {"embed": jnp.ones((8, 4)), "body": {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)}}
        >>> optimizer = MultiOptimizer({"muon": Muon(), "adamw": AdamW()}, groups={"muon": hidden_matrices, "adamw": ...})
        >>> optimizer.describe(params)
        path         shape   dtype    group  optimizer  state bytes
        body/bias    (4,)    float32  adamw  AdamW               32
        body/kernel  (4, 4)  float32  muon   Muon                64
        embed        (8, 4)  float32  adamw  AdamW              256
        >>> params, state = optimizer.update(params, params, optimizer.init(params))
    """

    learning_rate: ScalarOrSchedule = number(default=1e-3, minimum=0)
    beta: DecayRateOrSchedule = decay_rate(default=0.95)
    nesterov: bool = static(default=True)
    weight_decay: ScalarOrSchedule = number(default=0.1, minimum=0, off=True, masked=True)
    scaling: str = static(default="match_rms_adamw")
    ns_steps: int = static(default=5)
    ns_coefficients: Any = static(default="jordan")
    ns_dtype: Any = static(default=None)
    matrix_axes: Any = static(default=None)
    unit_axes: AxesOrFunction = static(default=None)
    ns_sharding: Any = static(default=None)
    decay_mask: DecayMask | None = static(default=None)

    scale_free: ClassVar = True
    moments: ClassVar = ("mu",)
    scalings: ClassVar = ("match_rms_adamw", "original", "spectral")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self, "scaling", self.scalings)
        set_field(self, "ns_steps", count(self.ns_steps, "Muon: ns_steps"))
        set_field(self, "ns_coefficients", check_coefficients("Muon: ns_coefficients", self.ns_coefficients, self.ns_steps))
        set_field(self, "ns_dtype", _real_dtype("Muon: ns_dtype", self.ns_dtype))
        check_matrix_axes("Muon: matrix_axes", self.matrix_axes)
        check_spread("Muon: ns_sharding", self.ns_sharding)

    @property
    def torch(self) -> Counterpart:
        # Muons of others have no such settings, and those whose momentum is a sum are 1 / (1 − β) times ours.
        settings = frozenset({"ns_steps", "ns_coefficients"})
        fields = {
            "beta": "momentum",
            "nesterov": "nesterov",
            "scaling": ("adjust_lr_fn", lambda name: name or "original"),
            "ns_steps": "ns_steps",
            "ns_coefficients": ("ns_coefficients", self._coefficients_of),
        }
        return Counterpart("Muon", {"mu": "momentum_buffer"}, settings, fields=fields, counts=False, squares=False)

    def _coefficients_of(self, triple: Any) -> Any:
        """PyTorch's `triple` of all steps as ours: in our words if it is the same."""
        ours, theirs = self.ns_coefficients, (tuple(triple),)
        return ours if expanded(ours, self.ns_steps) == expanded(theirs, self.ns_steps) else theirs

    @property
    def optax(self) -> Counterpart:
        return Counterpart("MuonState", {"mu": "mu"})

    def for_leaf(self, path: str, param: Any) -> Self:
        rule = super().for_leaf(path, param)
        if self.ns_dtype is not None and jnp.issubdtype(jnp.result_type(param), jnp.complexfloating):
            raise ValueError(f"at {path!r}: Muon.ns_dtype={self.ns_dtype} cannot hold complex numbers")
        axes = matrix_axes_at("Muon.matrix_axes", self.matrix_axes, rule.unit_axes, path, param)
        return with_fields(rule, matrix_axes=axes)

    def init_leaf(self, param: Array) -> MuonSlots:
        return MuonSlots(mu=zeros(param))

    def share(
        self, rules: list[Any], params: list[Array], grads: list[Array], slots: list[PyTree], shared: PyTree, t: Array
    ) -> tuple[PyTree, list[PyTree]]:
        """O and the new m of every leaf."""
        momenta = [rule._momentum(grad, own) for rule, grad, own in zip(rules, grads, slots, strict=True)]
        matrices = [as_matrices(u, rule.matrix_axes) for rule, (u, _) in zip(rules, momenta, strict=True)]
        orthogonal = orthogonalize(matrices, self.ns_coefficients, self.ns_steps, self.ns_dtype, self.ns_sharding)
        rows = zip(orthogonal, rules, momenta, strict=True)
        return shared, [(from_matrices(o, rule.matrix_axes, m.shape), m) for o, rule, (_, m) in rows]

    def update_leaf(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, param: Array, grad: Array, slots: MuonSlots, t: Array, given: tuple[Array, Array]
    ) -> tuple[Array, MuonSlots]:
        o, m = given
        direction = self._scale(param.shape) * o
        if self.weight_decay is not None:
            direction = direction + self.weight_decay * param
        return self.learning_rate * direction, MuonSlots(mu=m)

    def _momentum(self, grad: Array, slots: MuonSlots) -> tuple[Array, Array]:
        """u, and the new m."""
        m = ema(self.beta, slots.mu, grad)
        return ema(self.beta, m, grad) if self.nesterov else m, m

    def _scale(self, shape: tuple[int, ...]) -> float:
        """s for the matrices in a leaf of `shape`."""
        size_in, size_out = (math.prod(shape[axis] for axis in side) for side in self.matrix_axes)
        if self.scaling == "match_rms_adamw":
            return 0.2 * math.sqrt(max(size_in, size_out))
        ratio = size_out / max(size_in, 1)
        return math.sqrt(max(1, ratio) if self.scaling == "original" else ratio)


# Words of a path by which a leaf is known that is no hidden matrix.
_EMBEDDING = re.compile("embed|^(wte|wpe|embs?|posemb|pos|posenc)$|^position(?!wise)")
_HEAD = re.compile("^(heads?|lmheads?|logits?|lora)$")
_VECTOR = re.compile("norms?$|^(bias|biases|scales?|offsets?|ln)$")
# What is one word, though it is written as two.
_ONE_WORD = re.compile("(multi|attn|attention|position)_(?=heads?|wise)")
# What Haiku and others call a bias or a scale; in the middle of a path these are names of anything.
_LAST = re.compile("^(b|beta|gamma)$")


def hidden_matrices(path: str, leaf: Any) -> bool:
    """Whether a leaf is a matrix inside a model, one for `Muon` or `SOAP`: a group of a `MultiOptimizer`.

    It has at least two axes, and no word of its path says embedding, position, head, logits, low-rank adapter, bias, scale or
    norm. Words are what underscores, digits and other signs separate: `lm_head` and `Embed_0` are found, `position_wise_mlp`,
    `multi_head_attention` and `MultiHeadDotProductAttention_0` are not. A scanned bias is a bias though it has two axes. An
    output layer of another name (`Dense_3`, say) must be told by you: look at `describe`.

    Args:
        path: the path of the leaf, "decoder/layers_0/kernel".
        leaf: an array or a `jax.ShapeDtypeStruct`.

    Returns:
        True or False.

    Example:
        >>> import jax.numpy as jnp
        >>> from mithril_opt import hidden_matrices
        >>> [hidden_matrices(path, jnp.ones((2, 2))) for path in ("mlp/Dense_0/kernel", "embed/kernel", "lm_head/kernel")]
        [True, False, False]
    """
    words = re.split("[^a-z]+", _ONE_WORD.sub(r"\1", path.lower()))
    last = next((word for word in reversed(words) if word), "")
    known = any(pattern.search(word) for word in words for pattern in (_EMBEDDING, _HEAD, _VECTOR))
    return np.ndim(leaf) >= 2 and not known and not _LAST.search(last)


def _real_dtype(where: str, dtype: Any) -> Any:
    if dtype is None:
        return None
    try:
        known = jax.dtypes.canonicalize_dtype(dtype)
    except TypeError:
        known = None
    if known is None or not jnp.issubdtype(known, jnp.floating):
        raise ValueError(f"{where} must be a real floating dtype or None, got {dtype!r}")
    return known
