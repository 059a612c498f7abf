"""What tests of `viq.eval.peers` share: the files of the official code, and what is refused."""

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor

from viq.core.errors import ViqError
from viq.eval.peers import load_peer

GOLDEN = Path(__file__).parent / "golden" / "peers"
WITH_CODES = ("qlip", "unitok", "simvq")
# Of the outputs.
CODES = {"qlip": "indices_exact", "unitok": "indices", "simvq": "indices"}
PLACES = {"qlip": 64, "unitok": 16, "simvq": 256}
WEIGHTS = {
    "qlip": "model.safetensors",
    "unitok": "unitok_tokenizer.pth",
    "simvq": "epoch=0-step=1.ckpt",
}


def golden(kind: str, part: str) -> dict[str, Tensor]:
    return load_file(GOLDEN / kind / f"{part}.safetensors")


def copy(kind: str, folder: Path) -> Path:
    shutil.copytree(GOLDEN / kind, folder, dirs_exist_ok=True)
    return folder


def refused(kind: str, path: Path, words: str) -> None:
    with pytest.raises(ViqError, match=words) as caught:
        load_peer(kind, path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 2000
    assert str(path) in str(caught.value)
