"""The numbers that are drawn, by the names of the fields, and the functions of the step that may stand for them."""

from mithril_opt import CosineAnnealingLR, ExponentialLR, LinearWarmupScheduler, StepLR


def near_one(rng):
    """A decay rate, as near to 1 as in use, or nearer."""
    if rng.random() < 0.05:
        return 0.0
    return float(rng.choice([rng.uniform(0, 1), 0.9, 0.999, 1 - 10.0 ** rng.uniform(-7, -1)]))


def decades(low, high, zero=0.0):
    return lambda rng: 0.0 if rng.random() < zero else float(10.0 ** rng.uniform(low, high))


NUMBERS = {
    "learning_rate": decades(-4, 1.5, zero=0.02),
    "beta1": near_one,
    "beta2": near_one,
    "beta3": near_one,
    "decay": near_one,
    "rho": near_one,
    "alpha": decades(-1, 1, zero=0.1),
    "epsilon": decades(-12, -1, zero=0.1),
    "momentum": lambda rng: float(rng.choice([0.9, rng.uniform(0.01, 1.1)])),
    "dampening": lambda rng: float(rng.uniform(-0.5, 1.0)),
    "weight_decay": decades(-4, 0),
    "initial_accumulator_value": decades(-6, 1, zero=0.1),
}


def inverse_time(step):
    return 0.5 / (1.0 + step)


def alternating(step):
    return 0.25 + 0.125 * (step % 2)


def breaking(step):
    """Not finite from the thirteenth update on."""
    return 0.125 + 0.0 / (step < 12)


def step_decay(rng):
    return StepLR(decades(-2, 0)(rng), step_size=int(rng.integers(1, 5)), gamma=float(rng.uniform(0.1, 1.2)))


def exponential(rng):
    return ExponentialLR(decades(-2, 0)(rng), gamma=float(rng.uniform(0.8, 1.01)))


def cosine(rng):
    return CosineAnnealingLR(decades(-2, 0)(rng), T_max=int(rng.integers(1, 12)), eta_min=decades(-4, -2)(rng))


def warmup(rng):
    return LinearWarmupScheduler(int(rng.integers(0, 6)), decades(-4, -2)(rng), decades(-2, 0)(rng), step_decay(rng))


def function(f):
    return lambda rng: f


RATES = {name for name, draw in NUMBERS.items() if draw is near_one}
# Those that are switched off unless a variant of the rule has them.
OPTIONAL = {"momentum", "dampening", "weight_decay", "initial_accumulator_value"}
# What may follow a schedule besides the learning rate.
ALSO_SCHEDULED = sorted(RATES | {"weight_decay", "momentum"})

DRAWN = [step_decay, exponential, cosine, warmup, function(inverse_time), function(alternating)]
