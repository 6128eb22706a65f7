"""The ground that optimizers, schedules and wrappers stand on."""

from mithril_opt.core.decay_rate import DecayRate as DecayRate
from mithril_opt.core.fields import decay_rate as decay_rate
from mithril_opt.core.fields import number as number
from mithril_opt.core.fields import static as static
from mithril_opt.core.leaf_optimizer import LeafOptimizer as LeafOptimizer
from mithril_opt.core.names import public as _public
from mithril_opt.core.norm import global_norm as global_norm
from mithril_opt.core.numerics import abs_sq as abs_sq
from mithril_opt.core.numerics import ema as ema
from mithril_opt.core.numerics import real_zeros as real_zeros
from mithril_opt.core.numerics import safe_divide as safe_divide
from mithril_opt.core.numerics import safe_sqrt as safe_sqrt
from mithril_opt.core.numerics import zeros as zeros
from mithril_opt.core.optimizer import Optimizer as Optimizer
from mithril_opt.core.pytree import pytree as pytree
from mithril_opt.core.pytree import with_fields as with_fields
from mithril_opt.core.reductions import unit_mean as unit_mean
from mithril_opt.core.reductions import unit_norm as unit_norm
from mithril_opt.core.reductions import unit_rms as unit_rms
from mithril_opt.core.schedule import Schedule as Schedule
from mithril_opt.core.state import OptState as OptState
from mithril_opt.core.state import exported as exported
from mithril_opt.core.tree import select as select

__all__ = _public(globals())  # pyright: ignore[reportUnsupportedDunderAll]
