"""To and from other libraries and checkpoints."""

from mithril_opt.core.names import public as _public
from mithril_opt.interop.optax import from_optax as from_optax
from mithril_opt.interop.optax import to_optax as to_optax
from mithril_opt.interop.optax_state import state_from_optax as state_from_optax
from mithril_opt.interop.optax_state import state_to_optax as state_to_optax
from mithril_opt.interop.state_dict import from_state_dict as from_state_dict
from mithril_opt.interop.state_dict import to_state_dict as to_state_dict
from mithril_opt.interop.torch import state_from_torch as state_from_torch
from mithril_opt.interop.torch import state_to_torch as state_to_torch
from mithril_opt.interop.torch_memory import scaler_to_torch as scaler_to_torch
from mithril_opt.interop.torch_memory import scheduler_to_torch as scheduler_to_torch
from mithril_opt.interop.torch_params import params_from_torch as params_from_torch
from mithril_opt.interop.torch_params import params_to_torch as params_to_torch

__all__ = _public(globals())  # pyright: ignore[reportUnsupportedDunderAll]
