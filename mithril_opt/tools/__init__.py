"""What is used beside training: plans, pictures, the learning-rate range test, the move to another optimizer."""

from mithril_opt.core.names import public as _public
from mithril_opt.tools.explain import explain as explain
from mithril_opt.tools.migrate import MigrationReport as MigrationReport
from mithril_opt.tools.migrate import migrate as migrate
from mithril_opt.tools.plotting import plot_record as plot_record
from mithril_opt.tools.plotting import plot_schedule as plot_schedule
from mithril_opt.tools.range_test import RangeTestResult as RangeTestResult
from mithril_opt.tools.range_test import lr_range_test as lr_range_test

__all__ = _public(globals())  # pyright: ignore[reportUnsupportedDunderAll]
