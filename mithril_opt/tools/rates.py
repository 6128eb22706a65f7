"""What is probably a mistake in the learning rate of a rule over a run."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from mithril_opt.core.schedule import Schedule
from mithril_opt.tools.plan import Plan, values
from mithril_opt.wrappers.words import first_steps

# A million updates at this part of the peak move no further than one at the peak.
NOTHING = 1e-6

EPOCHS = "a schedule in epochs needs PerEpoch(schedule, steps_per_epoch), or its numbers times the steps per epoch"


def warnings_of_rates(plan: Plan) -> Iterator[str]:
    """Warnings of the rate of a rule, and those of the rule itself."""
    if plan.rates is None or not plan.updates:
        return
    whose = f"the rate of group {plan.group!r}" if plan.group else "the rate"
    where = f"group {plan.group!r}: " if plan.group else ""
    if plan.rates[-1] > plan.rates[:-1].max():
        yield f"{whose} still rises when the run ends: its warm-up is longer than the run"
    yield from (where + text for text in plan.owner.lints(float(plan.rates[:-1].max())))
    for start, end, following in _joints(plan.owner.rate):
        if end > start and not np.isclose(end, following, rtol=1e-3, atol=0):
            yield f"{whose} jumps where its warm-up ends: from {end:.4g} to {following:.4g}"
    yield from (f"{whose} {text}; {EPOCHS}" for text in _too_short(plan))


def _joints(schedule: Any) -> Iterator[tuple[float, float, float]]:
    """Where a piece of `schedule`, or of one inside it, hands over to the next."""
    if isinstance(schedule, Schedule):
        yield from schedule.joints()
        for value in vars(schedule).values():
            for piece in value if isinstance(value, tuple) else (value,):
                yield from _joints(piece)


def _too_short(plan: Plan) -> Iterator[str]:
    """Signs of a schedule that was made for a much shorter run: it has ended early, or falls again and again."""
    assert plan.rates is not None
    end, peak, updates = plan.rates[-2], float(plan.rates[:-1].max()), plan.updates
    if not peak > 0:
        return
    nothing, still = _since(plan, lambda rates: rates <= NOTHING * peak), _since(plan, lambda rates: rates == end)
    if nothing <= updates / 2:
        size = "0" if still == nothing else "less than a millionth of its peak"
        yield f"is {size} from update {nothing:,} of {updates:,} on"
    elif end <= peak / 2 and still <= updates / 10:
        yield f"stays at {end:.4g} from update {still:,} of {updates:,} on, after a peak of {peak:.4g}"
    if isinstance(plan.owner.rate, Schedule) and (times := plan.owner.rate.rises_again(updates)):
        yield f"falls and rises again {f'{times:,} times' if times > 1 else 'once'}, beyond the end of its cosine"


def _since(plan: Plan, condition: Callable[[Any], Any]) -> int:
    """From which update to the end of the run `condition` holds for the rate; the number of updates if not at the last."""
    steps, holds = plan.clocks[-1][plan.made], condition(plan.rates)[:-1]
    first = len(holds) - int(np.argmin(np.append(holds[::-1], False)))
    if first in (0, len(holds)):
        return int(steps[first])
    return int(first_steps(lambda own: condition(values(plan.owner.rate, own)), *steps[[first - 1, first], None])[0])
