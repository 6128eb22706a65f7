"""To and from other libraries and checkpoints."""

from mithril_opt.interop.optax import from_optax, to_optax
from mithril_opt.interop.optax_state import state_from_optax, state_to_optax
from mithril_opt.interop.state_dict import from_state_dict, to_state_dict
from mithril_opt.interop.torch import state_from_torch, state_to_torch

__all__ = [
    "from_optax",
    "from_state_dict",
    "state_from_optax",
    "state_from_torch",
    "state_to_optax",
    "state_to_torch",
    "to_optax",
    "to_state_dict",
]
