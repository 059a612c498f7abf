"""Which of several processes this is: as told, or from torchrun, Slurm or nothing."""

from __future__ import annotations

import os
from dataclasses import dataclass

from viq.core.types import ViqError

# (rank, number of ranks, rank on this machine), in the order they are looked for
_ENVIRONMENTS = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),  # torchrun
    ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
)


@dataclass(frozen=True)
class Place:
    """One of `world` processes that share a job; `local` counts on its machine."""

    rank: int = 0
    world: int = 1
    local: int = 0


ALONE = Place()


def place_among(rank: int | None = None, world: int | None = None) -> Place:
    """The place of this process, told by arguments, else by its environment, else alone.

    Raises:
        ViqError: only one of both is told, or a rank that does not exist.
    """
    local = 0
    if (rank is None) != (world is None):
        raise ViqError("--rank and --world: give both, or none to take them from the environment")
    if rank is None or world is None:
        rank, world = 0, 1
        for names in _ENVIRONMENTS:
            found = [os.environ.get(name) for name in names]
            if found[0] is not None and found[1] is not None:
                try:
                    rank, world, local = (int(value or 0) for value in found)
                except ValueError:
                    raise ViqError(
                        f"{names[0]}={found[0]} {names[1]}={found[1]}: not numbers; unset them, or "
                        "give --rank and --world"
                    ) from None
                break
    if not 0 <= rank < world:
        raise ViqError(f"--rank {rank} --world {world}: ranks are 0 to world - 1")
    return Place(rank, world, local)
