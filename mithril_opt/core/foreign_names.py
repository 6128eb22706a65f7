"""What others call the arguments of an optimizer, a schedule, a wrapper or the trainer, and what they are called here."""

import re
from collections.abc import Callable, Collection
from typing import Any

from mithril_opt.core.foreign_arguments import MASK
from mithril_opt.core.foreign_values import written

BETAS = ("beta1", "beta2", "beta3")

# By the name of others what the same is called here, if a class has it: `name` in any class, `Class.name` in that class.
NAMES = {
    "lr": ("learning_rate", "base_lr", "max_lr", "end_lr"),
    "learning_rate": ("base_lr", "max_lr", "end_lr"),
    "b1": ("beta1",),
    "b2": ("beta2",),
    "eps": ("epsilon",),
    "alpha": ("RMSProp.decay",),
    "rho": ("RMSProp.decay",),
    "momentum": ("Muon.beta",),
    "wd": ("weight_decay",),
    "mask": ("decay_mask",),
    "wd_mask": ("decay_mask",),
    "weight_decay_mask": ("decay_mask",),
    "decay_mask_fn": ("decay_mask",),
    # of gradients
    "max_norm": ("clip_norm",),
    "max_grad_norm": ("clip_norm",),
    "grad_clip_norm": ("clip_norm",),
    "global_clipnorm": ("clip_norm",),
    "every_k_schedule": ("Accumulate.every",),
    "accumulation_steps": ("Accumulate.every",),
    "gradient_accumulation_steps": ("Accumulate.every",),
    "k": ("Lookahead.every",),
    "ema_decay": ("EMA.decay",),
    # of the trainer
    "init_scale": ("loss_scale",),
    "initial_scale": ("loss_scale",),
    "initial_loss_scale": ("loss_scale",),
    "period": ("growth_interval",),
    "scale_window": ("growth_interval",),
    "loss_scale_window": ("growth_interval",),
    "min_scale": ("min_loss_scale",),
    "minimum_scale": ("min_loss_scale",),
    "max_scale": ("max_loss_scale",),
    "dynamic": ("dynamic_loss_scaling",),
    "dynamic_loss_scale": ("dynamic_loss_scaling",),
    "scale": ("MixedPrecisionTrainer.loss_scale",),
    "dtype": ("policy",),
    "compute_dtype": ("policy",),
    # of schedules
    "peak": ("end_lr", "max_lr", "base_lr", "lr"),
    "peak_lr": ("end_lr", "max_lr", "base_lr", "lr"),
    "peak_value": ("end_lr", "max_lr", "base_lr", "lr"),
    "init_lr": ("start_lr",),
    "init_value": ("start_lr",),
    "end_value": ("end_lr", "min_lr", "eta_min", "lr_end"),
    "eta_min": ("min_lr", "lr_end"),
    "min_lr": ("eta_min", "lr_end"),
    "T_max": ("CosineDecayLR.decay_steps",),
    "decay_steps": ("T_max",),
    "warmup": ("warmup_steps", "num_warmup_steps"),
    "warmup_steps": ("num_warmup_steps",),
    "num_warmup_steps": ("warmup_steps",),
    "steps": ("total_steps",),
    "num_steps": ("total_steps",),
    "max_steps": ("total_steps",),
    "num_training_steps": ("total_steps",),
}


def _betas(value: Any) -> dict[str, Any] | None:
    return dict(zip(BETAS, value, strict=False)) if isinstance(value, tuple | list) else None


def _factor(value: Any) -> dict[str, Any] | None:
    """Both ways at once."""
    return {"growth_factor": value, "backoff_factor": 1 / value} if isinstance(value, int | float) and value else None


def _power(value: Any) -> dict[str, Any] | None:
    return {"loss_scale": 2.0**value} if isinstance(value, int) else None


def _enabled(value: Any) -> dict[str, Any] | None:
    return {} if value else {"loss_scale": 1.0, "dynamic_loss_scaling": False}


# What is several arguments here, or another number: from the value what to write, None if it is something else.
SEVERAL: dict[str, Callable[[Any], dict[str, Any] | None]] = {
    "betas": _betas,
    "factor": _factor,
    "scale_factor": _factor,
    "initial_scale_power": _power,
    "enabled": _enabled,
}

MASKS = f"decay_mask says of each leaf whether it decays, {MASK}, or path.split('/')[-1] != 'bias'"
CLIPS = "Clip(optimizer, clip_norm=...) around it clips the gradients"
# What is done in another way here, in a class that has the argument before it.
ADVICE = {
    "no_decay": ("decay_mask", MASKS),
    "no_weight_decay": ("decay_mask", MASKS),
    "exclude_from_weight_decay": ("decay_mask", MASKS),
    "clip_norm": ("learning_rate", CLIPS),
    "clipnorm": ("learning_rate", CLIPS),
    "max_norm": ("learning_rate", CLIPS),
    "max_grad_norm": ("learning_rate", CLIPS),
    "grad_clip_norm": ("learning_rate", CLIPS),
    "maximize": ("learning_rate", "to maximise, negate the loss"),
    "enabled": ("growth_interval", "enabled=False is loss_scale=1.0, dynamic_loss_scaling=False"),
}


def ours(owner: str, key: str, value: Any, free: Collection[str]) -> dict[str, str] | None:
    """What to write for the argument `key` of others with `value` among the arguments `free` of the class `owner`; None if
    nobody knows."""
    several = SEVERAL.get(key, lambda value: None)(value)
    if several is not None and several.keys() <= set(free):
        return {name: written(one) for name, one in several.items()}
    name = name_of(owner, key, free)
    return None if name is None else {name: written(value)}


def name_of(owner: str, key: str, free: Collection[str]) -> str | None:
    """Which of the arguments `free` of the class `owner` others call `key`, or is so but for a letter."""
    for place, _, name in (candidate.rpartition(".") for candidate in NAMES.get(key, ())):
        if place in ("", owner) and name in free:
            return name
    return next((name for name in free if is_misspelt(key, name)), None)


def is_misspelt(key: str, name: str) -> bool:
    """Whether `key` is `name` but for underscores and case, or but for one letter that is missing, wrong, too many or in the
    place of its neighbour. Names that differ by more, or in a digit, may mean something else."""
    a, b = (word.replace("_", "").lower() for word in (key, name))
    shortest, start = min(len(a), len(b)), _alike(a, b)
    a, b = a[start:], b[start:]
    end = _alike(a[::-1], b[::-1])
    a, b = a[: len(a) - end], b[: len(b) - end]
    one_letter = max(len(a), len(b)) == 1 or (len(a) == 2 and a == b[::-1])
    return not a + b or (one_letter and (a + b).isalpha() and shortest > 4)


def _alike(a: str, b: str) -> int:
    """How many letters `a` and `b` begin with that are the same."""
    return next((place for place, (one, other) in enumerate(zip(a, b, strict=False)) if one != other), min(len(a), len(b)))


def in_steps(owner: str, key: str, free: Collection[str]) -> str | None:
    """Which of `free` counts in steps what `key` counts in epochs."""
    plain, bare = re.sub("epochs?", "steps", key), re.sub("_?epochs?", "", key)
    return next((name for name in (plain, bare) if name in free), name_of(owner, plain, free))
