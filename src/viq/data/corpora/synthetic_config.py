"""Which synthetic pictures a recipe asks for; apart from what draws them, which is heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class SyntheticConfig:
    """Which pictures are drawn."""

    pictures: int = 4000
    kinds: Mapping[str, float] = field(default_factory=lambda: {"scene": 1.0})  # kind: share
    sides: tuple[int, int] = (64, 160)  # px
    questions: int = 6  # a picture, at most
    seed: int = 0  # of another there are other pictures
