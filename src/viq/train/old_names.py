"""Fields of recipes and options under the names of release 0.1, read for one release."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from viq.train.monitor import print_line

# By the object that holds the field; "" is the recipe itself.
_RENAMED: dict[str, dict[str, str]] = {
    "": {
        "lanes": "gradient_accumulation",
        "drawn": "synthetic",
        "merge": "merge_size",
        "read": "caption_ratio",
        "free": "caption_dropout",
    },
    "data": {
        "lanes": "gradient_accumulation",
        "drawn": "synthetic",
        "drawn_share": "synthetic_ratio",
        "drawn_sides": "synthetic_sides",
        "merge": "merge_size",
    },
    "crops": {"synthetic_share": "synthetic_ratio"},
    "loop": {"average": "ema_decay", "look_every": "eval_every"},
    "optim": {
        "warmup_share": "warmup_ratio",
        "decay_share": "decay_ratio",
        "final_share": "min_lr_ratio",
        "new_learning_rate": "new_module_lr",
        "adversary_learning_rate": "discriminator_lr",
    },
}


def with_new_names(recipe: Any, where: str) -> Any:
    """A recipe in JSON, its fields under today's names; a DeprecationWarning tells of old ones.

    An old name beside its new one stays, and is then refused as unknown.
    """
    old: list[str] = []
    renamed = _renamed(recipe, "", old)
    if old:
        names = ", ".join(dict.fromkeys(old))
        warnings.warn(f"{where}: names of release 0.1: {names}", DeprecationWarning, stacklevel=3)
    return renamed


def trackers(report_to: Sequence[str], tensorboard: bool) -> list[str]:
    """The trackers of a run; a line on stderr tells of the option of release 0.1.

    Args:
        tensorboard: whether `--tensorboard` was given, which is `--track tensorboard` now.
    """
    if not tensorboard:
        return list(report_to)
    print_line("--tensorboard is of release 0.1: give --track tensorboard")
    return list(dict.fromkeys([*report_to, "tensorboard"]))


def _renamed(value: Any, holder: str, old: list[str]) -> Any:
    if isinstance(value, list):
        return [_renamed(item, holder="stages", old=old) for item in value]
    if not isinstance(value, dict):
        return value
    table = _RENAMED.get(holder, {})
    result: dict[str, Any] = {}
    for key, inner in value.items():
        name = str(key)
        new = table.get(name, name)
        if new != name and new not in value:
            old.append(f"{name} is {new}")
            name = new
        result[name] = _renamed(inner, name, old)
    return result
