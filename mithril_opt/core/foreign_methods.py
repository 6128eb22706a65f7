"""Methods and attributes of other libraries' objects that ours do not have: the error says where to look."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

GRADS = "gradients are values, which jax.grad returns: nothing is to be cleared"
SCALES = "value_and_grad returns the gradients multiplied by the loss scale, and update divides them by it"
HOLDS = "nothing in a schedule changes: the count, and what it remembers, are in the optimizer's state"

OF_OPTIMIZER = {
    "step": "params, state = optimizer.update(params, grads, state) is the step",
    "zero_grad": GRADS,
    "param_groups": "its numbers are its fields, the rate of the next update is optimizer.get_learning_rate(state), and groups "
    "are those of a MultiOptimizer",
    "add_param_group": "groups are those of a MultiOptimizer",
    "state": "the state is what init and update return",
    "state_dict": "the state is what init and update return, and to_state_dict(state) its dictionary",
    "load_state_dict": "from_state_dict(optimizer.init(params), arrays) returns the state",
}
OF_TRAINER = {
    **OF_OPTIMIZER,
    "step": "params, state, success = trainer.update(params, grads, state) is the step",
    "scale": SCALES,
    "unscale": SCALES,
    "unscale_": SCALES,
    "get_scale": 'trainer.metrics(state)["loss_scale"] is the scale',
    "load_state_dict": "from_state_dict(trainer.init(params), arrays) returns the state",
}
OF_SCHEDULE = {
    "step": "nothing is to be called, for optimizer.update counts; the schedule is the learning_rate of an optimizer",
    "get_last_lr": "schedule(step) is the rate after so many updates, optimizer.get_learning_rate(state) that of the next",
    "last_epoch": "the count is state.step of the optimizer's state",
    "state_dict": HOLDS,
    "load_state_dict": HOLDS,
}


class Elsewhere:
    """What lacks the names in the table `elsewhere`, and says what there is instead."""

    elsewhere: ClassVar[Mapping[str, str]] = MappingProxyType({})

    if not TYPE_CHECKING:  # for which every name would exist then

        def __getattr__(self, name: str) -> Any:
            try:
                return object.__getattribute__(self, name)  # again, for its own error, perhaps one from inside a property
            except AttributeError as error:
                if name not in type(self).elsewhere:
                    raise
                raise AttributeError(f"{error}: {type(self).elsewhere[name]}", name=name, obj=self) from None
