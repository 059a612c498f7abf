"""Encoding by rank as torchrun and Slurm start it: two processes that know their place from it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from killed_runs import BROKEN, INPUTS

from viq.data.sources.files import FileSource
from viq.jobs.encode import encode
from viq.jobs.pipeline import EncodeOptions
from viq.store.folder import Store

SOME_FAILED = 3
NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")


@pytest.mark.parametrize("launcher", ["torchrun", "srun"])
def test_two_ranks_write_one_store(launcher: str, pictures: Path, tmp_path: Path) -> None:
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    alone, out = tmp_path / "alone", tmp_path / "ranks"
    encode(tiny.tokenizer(), FileSource([pictures]), alone, EncodeOptions(shard_size=10))
    command = ["-m", "viq.cli", "encode", str(pictures), "-o", str(out), "--shard-size", "10",
               "--model", str(tmp_path / "model")]  # fmt: skip
    clean = {name: value for name, value in os.environ.items() if name not in NAMES}
    if launcher == "torchrun":
        # Broken inputs end `viq encode` with 3, for which torchrun stops the others: none are.
        command[3] = str(whole(pictures, tmp_path / "whole"))
        run = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *command]
        done = subprocess.run(run, env=clean, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert len(Store(out)) == INPUTS - BROKEN
        return
    ranks = [
        subprocess.Popen(
            [sys.executable, *command],
            env=clean | {"SLURM_PROCID": rank, "SLURM_NTASKS": "2", "SLURM_LOCALID": rank},
        )
        for rank in "01"
    ]
    assert {process.wait() for process in ranks} == {SOME_FAILED}
    found = {path.name: path.read_bytes() for path in out.iterdir()}
    assert found == {path.name: path.read_bytes() for path in alone.iterdir()}


def whole(pictures: Path, folder: Path) -> Path:
    """The pictures without the broken ones."""
    folder.mkdir()
    for file in pictures.iterdir():
        if file.stat().st_size > len(b"\x89PNG"):
            (folder / file.name).symlink_to(file)
    return folder
