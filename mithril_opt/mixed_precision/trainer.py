"""Training in mixed precision: one step, applied whole or not at all.

The order of a step is fixed: scale the cotangent → backward → (mean over replicas) → unscale in float32 → finite check → clip →
optimizer → commit. The loss itself is never multiplied, so what is reported is exact; the gradients are divided by the scale
that produced them; and the verdict is one for all leaves, groups and devices.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mithril_opt.core.fields import count, number, same_as, static
from mithril_opt.core.norm import norm_of
from mithril_opt.core.optimizer import Optimizer, check_optimizer
from mithril_opt.core.pytree import check_numbers, pytree, set_field
from mithril_opt.core.state import misuse
from mithril_opt.core.tree import agree, overlay, trained
from mithril_opt.core.typing import Array, PyTree, Scalar
from mithril_opt.mixed_precision.backward import Pullback, check_argnums, check_loss, cotangents, loss_aux_and_grads
from mithril_opt.mixed_precision.commit import TrainerState, commit
from mithril_opt.mixed_precision.loss_scale import LossScale
from mithril_opt.mixed_precision.micro_batches import in_turn
from mithril_opt.mixed_precision.policy import Policy
from mithril_opt.mixed_precision.readings import Readings, check_made_by


@pytree
class MixedPrecisionTrainer(Readings):
    """A model, an optimizer, a policy and a loss scale, as one training step.

    The Mithril way, in two halves:

        outputs, pullback = trainer.forward(params, state, inputs)
        params, state, success = trainer.backward_and_update(params, state, pullback, loss_gradients)

    The JAX way:

        (loss, aux), grads = trainer.value_and_grad(loss_fn, has_aux=True)(params, state, *args)
        params, state, success = trainer.update(params, grads, state, loss=loss)

    When a gradient is not finite, nothing of the step is committed: parameters, slots, step count, schedules and accumulators
    stay bit for bit what they were, and `success` is False. When the loss itself is not finite, the batch is at fault, and the
    loss scale stays as well.

    Loss scaling acts where the compute dtype has fewer exponent bits than float32 (float16). Under "bfloat16" and "float32"
    nothing is scaled, whatever `loss_scale` says; the finite check and the counters stay on.

    Args:
        model: `(params, inputs) -> outputs`, for `forward`; None if only `value_and_grad` is used.
        optimizer: any `Optimizer`.
        loss_scale: the first scale.
        dynamic_loss_scaling: whether the scale moves.
        policy: a `Policy`, or the name of its compute dtype; float16 by default.
        clip_norm: bound for the global norm of the unscaled gradients of all groups, applied before the optimizer sees them:
            with `Accumulate` to every micro-step's. `Accumulate(Clip(…))` clips the mean. None for no clipping.
        growth_factor: what the scale grows by.
        backoff_factor: what an overflow lowers it by.
        growth_interval: finite steps in a row before it grows.
        min_loss_scale: lower bound of the scale, ≥ 2⁻¹²⁶.
        max_loss_scale: upper bound of the scale, ≤ 2¹²⁶.
        hysteresis: the h-th overflow since the last growth is the first to lower the scale.

    Raises:
        ValueError: a setting is out of its range.
        TypeError: `optimizer` is no `Optimizer`, or `model` no function.

    Example:
        >>> import jax.numpy as jnp
        >>> from mithril_opt import SGD, MixedPrecisionTrainer
        >>> trainer = MixedPrecisionTrainer(None, SGD(learning_rate=0.5), policy="float16")
        >>> params = {"w": jnp.array([1.0, 2.0])}
        >>> state = trainer.init(params)
        >>> def loss_fn(params, x):
        ...     return jnp.mean((params["w"] * x).astype(jnp.float32) ** 2)
        >>> loss, grads = trainer.value_and_grad(loss_fn)(params, state, jnp.array([1.0, 0.5]))
        >>> params, state, success = trainer.update(params, grads, state, loss=loss)
        >>> loss, params["w"], success
        (Array(1., dtype=float32), Array([0.5 , 1.75], dtype=float32), Array(True, dtype=bool))
    """

    model: Callable[[PyTree, PyTree], PyTree] | None = static()
    optimizer: Optimizer
    loss_scale: Scalar = same_as(LossScale, "initial", default=2.0**15)
    dynamic_loss_scaling: bool = same_as(LossScale, "dynamic", default=True)
    policy: Any = static(default="float16")
    clip_norm: Scalar | None = number(default=None, minimum=0, optional=True, infinite=True)
    growth_factor: Scalar = same_as(LossScale, "growth_factor", default=2.0)
    backoff_factor: Scalar = same_as(LossScale, "backoff_factor", default=0.5)
    growth_interval: int | Array = same_as(LossScale, "growth_interval", default=2000)
    min_loss_scale: Scalar = same_as(LossScale, "minimum", default=1.0)
    max_loss_scale: Scalar = same_as(LossScale, "maximum", default=2.0**24)
    hysteresis: int | Array = same_as(LossScale, "hysteresis", default=1)

    def __post_init__(self) -> None:
        check_optimizer("MixedPrecisionTrainer: optimizer", self.optimizer)
        if not (self.model is None or callable(self.model)):
            raise TypeError(f"MixedPrecisionTrainer: model must be a function (params, inputs) -> outputs, got {self.model!r}")
        check_numbers(self, schedules=False)
        set_field(self, "policy", self.policy if isinstance(self.policy, Policy) else Policy(self.policy))
        _ = self.scaling

    @property
    def scaling(self) -> LossScale:
        """The rule by which the loss scale moves."""
        names = {
            "initial": "loss_scale",
            "dynamic": "dynamic_loss_scaling",
            "minimum": "min_loss_scale",
            "maximum": "max_loss_scale",
        }
        own = [field.name for field in dataclasses.fields(LossScale) if field.name != "needed"]
        rule = LossScale(**{name: getattr(self, names.get(name, name)) for name in own})
        return rule if self.policy.needs_loss_scaling else LossScale(initial=1.0, dynamic=False, needed=False)

    def _scale(self, state: TrainerState) -> Array | None:
        check_made_by(state, TrainerState, "state", "init")
        return state.loss_scale.scale if self.policy.needs_loss_scaling else None

    def init(self, params: PyTree) -> TrainerState:
        """The state before the first step."""
        return TrainerState(self.optimizer.init(params), self.scaling.init())

    def forward(self, params: PyTree, state: TrainerState, inputs: PyTree) -> tuple[PyTree, Pullback]:
        """The model's outputs, and what `backward_and_update` needs.

        Args:
            params: tree of parameters; the floating ones are cast to the compute dtype, and so are the floating inputs.
            state: the trainer's state.
            inputs: what the model takes as its second argument.

        Returns:
            Outputs, the floating ones in the output dtype, and the pullback.
        """
        if self.model is None:
            raise ValueError("forward needs a model; this trainer was made without one")

        def compute(weights: PyTree) -> PyTree:
            full, cast_inputs = self.policy.cast_to_compute((overlay(params, weights, params), inputs))
            return self.policy.cast_to_output(self.model(full, cast_inputs))  # pyright: ignore[reportOptionalCall]

        outputs, vjp = jax.vjp(compute, trained(params))
        leaves, structure = jax.tree.flatten(outputs)
        return outputs, Pullback(vjp, (structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves)))

    def backward_and_update(
        self, params: PyTree, state: TrainerState, pullback: Pullback, loss_gradients: PyTree
    ) -> tuple[PyTree, TrainerState, Array]:
        """The second half of a step: backward through `pullback`, then `update`.

        Args:
            params: the parameters that `forward` was given.
            state: the state that `forward` was given.
            pullback: what `forward` returned.
            loss_gradients: the gradient of the loss with respect to the outputs: same structure and shapes. If it is not
                finite, the batch is at fault.

        Returns:
            Parameters, state, and whether the step was committed, a boolean scalar.

        Raises:
            ValueError: `loss_gradients` does not fit the outputs or holds no gradient, or the pullback does not fit the
                parameters.
        """
        check_made_by(pullback, Pullback, "pullback", "forward")
        structure, leaves = pullback.outputs
        if not jax.tree.leaves(loss_gradients):
            raise ValueError("loss_gradients hold no gradient: give the gradient of the loss with respect to the outputs")
        outputs = structure.unflatten([jax.ShapeDtypeStruct(*leaf) for leaf in leaves])
        (grads,) = pullback.vjp(cotangents(outputs, loss_gradients, self._scale(state)))
        return self._step(params, grads, state, jnp.all(norm_of(loss_gradients).finite))

    def value_and_grad(
        self, loss_fn: Callable[..., Any], argnums: int | Sequence[int] = 0, has_aux: bool = False, micro_batches: int = 1
    ) -> Callable[..., Any]:
        """`jax.value_and_grad` in mixed precision: the loss as it is, the gradients multiplied by the loss scale.

        With `micro_batches` k > 1 the batch is cut in k, which go forward and backward one after the other; only the sum of
        their gradients is kept. Loss and gradients are means, those of the whole batch if its loss is a mean over rows.

        Args:
            loss_fn: `(params, *args, **kwargs) -> loss`, or `-> (loss, aux)` with `has_aux`; the loss a real scalar. It sees
                every floating argument in the compute dtype.
            argnums: which arguments of `loss_fn` to differentiate by, as in `jax.value_and_grad`.
            has_aux: whether `loss_fn` returns `(loss, aux)`.
            micro_batches: k ≥ 1. All arrays in the arguments besides `params` that are not differentiated by are cut along the
                leading axis, row i into the micro-batch i mod k; a random key is split in k; scalars are handed on.

        Returns:
            A function `(params, state, *args, **kwargs)` that returns `loss, grads`, or `(loss, aux), grads`. The loss and the
            floating leaves of aux are in the output dtype; the gradients, scaled, in the dtypes of the parameters, None at
            the leaves that are no floating or complex arrays; those of `Frozen` have theirs. With micro-batches the gradients
            are in float32 or wider, and aux has a leading axis of length k.

        Raises:
            TypeError: the loss is no real floating scalar.
            ValueError: `argnums` names no argument; k is no integer ≥ 1; leading axes differ, or k does not divide them.

        Example:
            >>> import jax.numpy as jnp
            >>> from mithril_opt import SGD, MixedPrecisionTrainer
            >>> trainer = MixedPrecisionTrainer(None, SGD(), policy="bfloat16")
            >>> value_and_grad = trainer.value_and_grad(lambda params, x: jnp.mean(params * x), micro_batches=2)
            >>> value_and_grad(jnp.ones(()), trainer.init(jnp.ones(())), jnp.array([1.0, 2.0, 3.0, 6.0]))
            (Array(3., dtype=float32), Array(3., dtype=float32))
        """
        number_of_pieces = count(micro_batches, "micro_batches")

        def wrapped(params: PyTree, state: TrainerState, /, *args: Any, **kwargs: Any) -> Any:
            arguments, scale = (params, *args), self._scale(state)
            indices = check_argnums(argnums, len(arguments))
            given = {str(i): argument for i, argument in enumerate(arguments)} | kwargs
            chosen, whole = {str(i): given.pop(str(i)) for i in indices}, {"0": given.pop("0", params)}
            backward = functools.partial(loss_aux_and_grads, self.policy, loss_fn, has_aux, scale, chosen, whole)
            loss, aux, grads = in_turn(backward, tuple(map(trained, chosen.values())), given, number_of_pieces)
            return ((loss, aux) if has_aux else loss), (grads if isinstance(argnums, Sequence) else grads[0])

        return wrapped

    def update(
        self, params: PyTree, grads: PyTree, state: TrainerState, loss: Scalar | None = None
    ) -> tuple[PyTree, TrainerState, Array]:
        """The second half of a step: unscale, check, clip, update, commit.

        Args:
            params: tree of parameters.
            grads: scaled gradients, as `value_and_grad` returned them for this `state`; averaged over replicas, if there are
                any.
            state: the trainer's state.
            loss: the loss, if it is to tell a batch's fault from the scale's: when it is not finite the step is skipped and
                the scale stays.

        Returns:
            Parameters, state, and whether the step was committed, a boolean scalar.

        Raises:
            ValueError: the trees do not fit; names the path of the first difference.
            TypeError: `loss` is no real floating scalar.
        """
        if loss is None:
            return self._step(params, grads, state, jnp.bool(True))
        check_loss(loss, "loss")
        return self._step(params, grads, state, jnp.isfinite(loss))

    def _step(
        self, params: PyTree, grads: PyTree, state: TrainerState, input_finite: Array
    ) -> tuple[PyTree, TrainerState, Array]:
        if isinstance(grads, self.optimizer.state_type | TrainerState):
            raise ValueError(
                "the trainer's update takes (params, grads, state), but its second argument is a state: this looks like "
                "optax's order (grads, state, params)"
            )
        check_made_by(state, TrainerState, "state", "init")
        if not isinstance(state.optimizer, self.optimizer.state_type):
            raise misuse(self.optimizer, grads, state.optimizer)
        _ = self.optimizer.window_length  # a ValueError if the groups have no window in common
        grads = self.optimizer.drop_frozen(trained(params), agree(params, grads))
        new_params, state, success = commit(self, trained(params), grads, state, input_finite)
        return overlay(params, new_params, params), state, success
