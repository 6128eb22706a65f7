"""Functional JAX optimizers: pytrees with `init(params)` and `update(params, grads, state)`."""

from importlib.metadata import version as _version

from mithril_opt.clipping import clip_gradients as clip_gradients
from mithril_opt.core import *
from mithril_opt.core.names import public as _public
from mithril_opt.interop import *
from mithril_opt.mixed_precision import *
from mithril_opt.optimizers import *
from mithril_opt.schedulers import *
from mithril_opt.sharding import state_shardings as state_shardings
from mithril_opt.tools import *
from mithril_opt.wrappers import *

__version__ = _version("mithril-opt")
__all__ = _public(globals())  # pyright: ignore[reportUnsupportedDunderAll]
