"""What a trainer says of itself and for its optimizer."""

import abc
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from mithril_opt.core.foreign_calls import refuse_other_names
from mithril_opt.core.foreign_methods import OF_TRAINER, Elsewhere
from mithril_opt.core.numerics import scalar_f32
from mithril_opt.core.optimizer import Optimizer
from mithril_opt.core.tree import leaves_with_paths, trained
from mithril_opt.core.typing import Array, PyTree
from mithril_opt.mixed_precision.commit import TrainerState
from mithril_opt.mixed_precision.loss_scale import LossScale, LossScaleStuckError
from mithril_opt.wrappers.words import of_a_window, scale_does_not_matter


class Readings(Elsewhere, abc.ABC):
    """The methods of a trainer that read its state. They take the trainer's, and hand the optimizer's to the optimizer."""

    elsewhere: ClassVar[Mapping[str, str]] = OF_TRAINER
    optimizer: Optimizer
    clip_norm: Any

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        if len(args) == 1 and "optimizer" not in kwargs and isinstance(args[0], Optimizer):
            raise TypeError("the first argument is the model: write MixedPrecisionTrainer(None, optimizer)")
        refuse_other_names(cls, args, kwargs)
        return super().__new__(cls)

    @property
    @abc.abstractmethod
    def scaling(self) -> LossScale:
        """The rule by which the loss scale moves."""

    def _inner(self, state: TrainerState) -> Any:
        check_made_by(state, TrainerState, "state", "init")
        return state.optimizer

    def get_learning_rate(self, state: TrainerState) -> Any:
        """The rate that the next update will use, a float32 scalar; a dictionary of them for the groups of a `MultiOptimizer`.
        It is without the factors of `ScaleRate`."""
        return self.optimizer.get_learning_rate(self._inner(state))

    def learning_rates(self, state: TrainerState) -> dict[str, Array]:
        """The rates that the next update will use, float32 scalars by the names of their groups, or one called
        "learning_rate"."""
        return self.optimizer.learning_rates(self._inner(state))

    def observe(self, state: TrainerState, metric: Any) -> TrainerState:
        """The state after the schedules that follow a metric have seen `metric`, a scalar."""
        return state._replace(optimizer=self.optimizer.observe(self._inner(state), metric))

    def eval_params(self, params: PyTree, state: TrainerState) -> PyTree:
        """The parameters to evaluate and to export: `params` themselves, unless the optimizer keeps better ones."""
        return self.optimizer.eval_params(params, self._inner(state))

    def recorded(self, state: TrainerState) -> Any:
        """The outermost `Record` around the optimizer and its state; None if there is none."""
        return self.optimizer.recorded(self._inner(state))

    def rules(self, params: PyTree) -> list[tuple[str, Optimizer] | None]:
        """For each leaf of `params` the name of its group and the innermost optimizer that it belongs to."""
        return self.optimizer.rules(params)

    def unmatched(self, params: PyTree) -> list[Any]:
        """The globs and regular expressions in lists of patterns that match no leaf of `params`."""
        return self.optimizer.unmatched(params)

    def around(self, params: PyTree) -> list[tuple[Any, ...]]:
        """For each leaf of `params` what is around its rule, the trainer first: pairs with a factor for the rate."""
        return [((self, None), *inner) for inner in self.optimizer.around(params)]

    def says(self) -> str | None:
        """What the trainer itself does to the gradients, for `explain`."""
        if self.clip_norm is None:
            return None
        return f"gradients clipped to a norm of {float(self.clip_norm):g} together" + of_a_window(self.optimizer)

    def reads(self) -> None:
        """None: `eval_params` are the optimizer's."""
        return None

    def idle(self, leaves: list[tuple[str, Any, Optimizer]], total_steps: int) -> str | None:
        """Why `clip_norm` has no effect; None if it has one, or is not given."""
        if self.clip_norm is None:
            return None
        return "its bound is infinite" if float(self.clip_norm) == math.inf else scale_does_not_matter(leaves)

    def updates_in(self, updates: Any) -> Any:
        """`updates`."""
        return updates

    def metrics(self, state: TrainerState) -> dict[str, Array]:
        """What to log after a step, scalars on the device:

        - `grad_norm`: the norm of the gradients of that step, unscaled, before clipping; not finite if one of them was not. It
          stays what it was if the input was bad.
        - `loss_scale`: what the next loss gradient is multiplied by.
        - `attempts`: steps taken in all, committed or not; micro-steps, under accumulation.
        - `skipped`: how many of them were not committed, for whatever reason. A few in a hundred are the price of a scale that
          is as large as it can be.
        - `bad_input`: how many of those through no fault of the scale: the loss, or a number of the optimizer, was not finite,
          or a float16 parameter would have overflowed. These are worth a look at the data.
        - `consecutive_skips`: how many in a row, up to now. When it grows while `loss_scale` is as low as it may go, training
          is stuck, and `check` raises.
        - `good_steps`: committed steps since the scale last changed; at `growth_interval` it grows.
        """
        check_made_by(state, TrainerState, "state", "init")
        scale = state.loss_scale
        names = ("grad_norm", "attempts", "skipped", "bad_input", "consecutive_skips", "good_steps")
        return {"loss_scale": scale.scale, **{name: getattr(scale, name) for name in names}}

    def check(self, state: TrainerState, params: PyTree) -> None:
        """Raise when training is stuck. It reads the state on the host, so call it now and then, not in every step.

        Raises:
            LossScaleStuckError: the last two updates or more were skipped although the scale is as low as it may go; names the
                leaf of `params` that had the first non-finite gradient, and the counts.
        """
        check_made_by(state, TrainerState, "state", "init")
        scaling, scale = self.scaling, state.loss_scale
        lowest = scalar_f32(scaling.minimum if scaling.dynamic else scaling.initial)
        if scale.scale > lowest or int(scale.consecutive_skips) < 2:
            return
        index = int(scale.last_bad_leaf)
        culprit = "the gradients are finite; what is not is the loss, a number of the optimizer or a new float16 parameter"
        if index >= 0:
            culprit = f"the first non-finite gradient is that of {leaves_with_paths(trained(params))[index][0]!r}"
        raise LossScaleStuckError(
            f"the last {int(scale.consecutive_skips)} updates were skipped at a loss scale of {float(scale.scale):g}, which "
            f"cannot go lower; {culprit}; of {int(scale.attempts)} steps {int(scale.skipped)} were skipped, "
            f"{int(scale.bad_input)} of them through no fault of the scale"
        )


def check_made_by(value: Any, kind: type, name: str, source: str) -> None:
    """Raise a ValueError unless `value`, which is called `name`, is what the method `source` of a trainer returned."""
    if not isinstance(value, kind):
        raise ValueError(f"{name} must be what the trainer's {source} returned, got {type(value).__name__}")
