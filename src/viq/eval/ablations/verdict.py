"""The rule that says what runs have shown, fixed before them (docs/ablations.md).

Arms are paired by seed. Of the differences better - worse, one a seed, the 95% interval is that of
Student's t. A claim of more is confirmed if the whole interval is above 0, contradicted if it is
below. A claim of no less, by a margin, is confirmed if the whole interval is above -margin, else
contradicted if it is below 0. Everything else cannot be told at this size. With fewer than two
pairs nothing can.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from viq.eval.ablations.arms import Claim
from viq.metrics.intervals import of_pairs

CONFIRMED, CONTRADICTED, OPEN = "confirmed", "contradicted", "not to be told at this size"
Runs = Mapping[str, Mapping[int, Mapping[str, float]]]  # by arm and seed, measures by name


def verdict(mean: float, half_width: float, margin: float | None) -> str:
    """What an interval of differences says about a claim."""
    if mean - half_width > -(margin or 0.0):
        return CONFIRMED
    return CONTRADICTED if mean + half_width < 0 else OPEN


def judge(claim: Claim, runs: Runs) -> dict[str, Any] | None:
    """The claim with `mean`, `half_width` and `seeds` (differences), and its `verdict`; None if no
    seed has both arms."""
    difference = paired(runs, claim.better, claim.worse, claim.outcome)
    if difference is None:
        return None
    enough = len(difference["seeds"]) > 1
    says = verdict(difference["mean"], difference["half_width"], claim.margin) if enough else OPEN
    return {
        "ablation": claim.ablation, "claim": claim.says, "better": claim.better,
        "worse": claim.worse, "outcome": claim.outcome, "margin": claim.margin, **difference,
        "verdict": says,
    }  # fmt: skip


def judge_features(claim: Claim, runs: Runs) -> dict[str, Any] | None:
    """`judge` of readers of features; open as long as the reader of `better` is not above a blind
    one for sure: two that see nothing are within any margin of each other."""
    found, sight = judge(claim, runs), paired(runs, claim.better, "blind", claim.outcome)
    if found is not None and (sight is None or sight["mean"] <= sight["half_width"]):
        found["verdict"] = OPEN
    return found


def paired(runs: Runs, better: str, worse: str, outcome: str) -> dict[str, Any] | None:
    """`of_pairs` over the seeds that have this outcome of both; None if there are none."""
    ours, theirs = (
        {seed: measures for seed, measures in runs.get(arm, {}).items() if outcome in measures}
        for arm in (better, worse)
    )
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        return None
    return of_pairs([ours[s][outcome] for s in seeds], [theirs[s][outcome] for s in seeds])
