"""Entropy models that come with the package, and those that came with earlier releases."""

import json
from pathlib import Path

import numpy as np
import pytest

from viq.codec.entropy_model import ENTROPY_FILE, EntropyModel
from viq.core.codes import Codes
from viq.core.files import BUNDLED
from viq.store.arrays import coder_of

pytest.importorskip("constriction")
OF_0_1 = "85ae84b522466a01"  # what viq-tiny compressed with in release 0.1


@pytest.mark.parametrize("name", ["viq-tiny", "viq-transform"])
def test_each_tokenizer_has_one_that_is_its_own(name: str) -> None:
    """After new weights, run `viq train entropy` again (docs/codes.md)."""
    folder = BUNDLED / name
    model = EntropyModel.load(folder)
    config = json.loads((folder / "config.json").read_text())
    assert model.fingerprint == config["fingerprint"]
    assert (folder / ENTROPY_FILE).stat().st_size < 1_000_000
    ids = np.random.default_rng(0).integers(0, 64_000, (3, 5, 4)).astype(np.uint16)
    codes = Codes(ids, (48, 80), 0, model.fingerprint)
    assert model.decompress(model.compress([codes]), [codes.size], [0]) == [codes]


def test_what_release_0_1_compressed_is_read(tmp_path: Path) -> None:
    """A payload that release 0.1 wrote with the model of viq-tiny."""
    model = coder_of(OF_0_1, tmp_path)
    assert model is not None
    draw = np.random.default_rng(7)
    ids = (draw.integers(0, 64_000, (4, 3, 4)) // 97 * 97).astype(np.uint16)
    codes = Codes(ids, (60, 40), 16, model.fingerprint)
    assert model.decompress([PAYLOAD_OF_0_1], [codes.size], [codes.tile]) == [codes]
    assert model.compress([codes]) == [PAYLOAD_OF_0_1]


PAYLOAD_OF_0_1 = bytes.fromhex(
    "8bae78de4423cfc1c7bddc11fb9628b5b96c7fc6aef2624505d9c56a0d914310179ee301ac8891f6"
    "1796bf7f8280e2f5cf6f312bd8cf446f0a12ad56c73ded698cc6ea363e3e0eb6236aff4cc3b29fe6"
    "1fe97bea19bd116e29f190c6d8b6d4d9b4b70700936cd8d71e160000794e5270e97e0a996bc8c5fc"
    "847d9201e05f6d880d5c6bf286ad9c328939db00064ed800f5de37bf1a039a17d581fdbbcaeebc1e"
    "d2fde99455aa5dbac7ed089241ad2c713dd24a415a7a9404b78169b8efe0657c96b23f5bb5031bc8"
    "e1283eff22c0decf51d6ecff8fa86ea5a9097542632573a7caf1aa9eeb899cdb00000000"
)
