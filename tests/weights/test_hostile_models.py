"""Model folders and recipes of anybody: a model or one line, and no more memory than the files."""

import copy
import json
import random
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_mllm
import torch

import viq
from viq.core.types import ViqError
from viq.data.text.text_tokenizer import load_text_tokenizer
from viq.models.language.vision_language import load_language
from viq.models.tokenizer.embedder import CodeEmbedder
from viq.models.vision.tower import TowerConfig, VisionTower
from viq.recipes.registry import find_recipe
from viq.weights import checkpoint
from viq.weights.checkpoint import CheckpointError
from viq.weights.tensors import read_tensors

DEEP = "[" * 100_000
Edit = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny.tokenizer().save_pretrained(folder)
    return folder


def copied(model: Path, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes((model / name).read_bytes())
    return folder


def refused(load: Callable[[], Any], *words: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError) as error:
        load()
    assert "\n" not in str(error.value) and len(str(error.value)) < 2000
    assert all(word in str(error.value) for word in words), error.value
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


EDITS: dict[str, tuple[Edit, str]] = {
    "wide": (lambda c: c["encoder"].update(width=10**12), "width"),
    "deep": (lambda c: c["encoder"].update(depth=300_000), "depth"),
    "wider than the file": (lambda c: c["encoder"].update(width=2**16), "another shape"),
    "deeper than the file": (lambda c: c["decoder"].update(depth=500), "missing in the file"),
    "negative": (lambda c: c["encoder"].update(mlp_width=-5), "mlp_width"),
    "not a number": (lambda c: c["quantizer"].update(slot_mlp_ratio=float("nan")), "slot_mlp"),
    "endless": (lambda c: c["decoder"].update(mlp_ratio=float("inf")), "mlp_ratio"),
    "text": (lambda c: c["encoder"].update(width="32"), "width cannot be '32'"),
    "truth": (lambda c: c["encoder"].update(heads=True), "heads cannot be True"),
    "fraction": (lambda c: c["encoder"].update(depth=1.0), "depth cannot be 1.0"),
    "nested": (lambda c: c["encoder"].update(width={"a": [1]}), "width cannot be"),
    "no heads": (lambda c: c["encoder"].update(heads=0), "heads"),
    "odd heads": (lambda c: c["quantizer"].update(heads=5), "cannot be split into 5 heads"),
    "levels": (lambda c: c["quantizer"].update(levels=[2] * 500_000), "FSQ levels"),
    "level": (lambda c: c["quantizer"].update(levels=[10**400]), "levels cannot be"),
    "no levels": (lambda c: c["quantizer"].update(levels=[]), "levels"),
    "patches": (lambda c: c["encoder"].update(patch_size=14), "codes are of 16 px"),
    "kernel": (lambda c: c["decoder"].update(kernel_size=4), "must be odd"),
    "kind": (lambda c: c["quantizer"].update(bottleneck="x"), "choose from proximal, fsq"),
    "tile": (lambda c: c.update(tile=-16), "tile"),
    "list": (lambda c: c.update(encoder=[1]), "encoder cannot be"),
    "nothing": (lambda c: c.update(encoder=None), "encoder cannot be None"),
    "stamp": (lambda c: c.update(fingerprint="../../x"), "is no fingerprint"),
    "language": (lambda c: c.update(embedder_config=3), "language model on codes"),
}


@pytest.mark.parametrize("name", EDITS)
def test_configs_that_ask_for_what_is_not_there(name: str, model: Path, tmp_path: Path) -> None:
    folder = copied(model, tmp_path)
    values = json.loads((folder / "config.json").read_text())
    edit, words = EDITS[name]
    edit(values)
    (folder / "config.json").write_text(json.dumps(values))
    refused(lambda: viq.load(folder), words)


@pytest.mark.parametrize("text", [DEEP, "[]", "{", '"x"', "\udcff", "", "9" * 5000])
def test_configs_that_are_none(text: str, model: Path, tmp_path: Path) -> None:
    folder = copied(model, tmp_path)
    (folder / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    for load in (viq.load, CodeEmbedder.from_tokenizer, VisionTower.from_pretrained, load_language):
        refused(lambda load=load: load(folder))
    path = tmp_path / "recipe.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ViqError) as error:
        find_recipe(str(path))
    assert "\n" not in str(error.value)


def test_files_that_are_none(model: Path, tmp_path: Path) -> None:
    folder = copied(model, tmp_path)
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for data in (b"", whole[:7], whole[:5000], (2**62).to_bytes(8, "little") + whole[8:],
                 (2**27).to_bytes(8, "little") + whole[8:]):  # fmt: skip
        path.write_bytes(data)
        refused(lambda: viq.load(folder), "not a whole safetensors file")
    checkpoint.write_weights(path, {"a": torch.ones(3, dtype=torch.complex64)})
    refused(lambda: viq.load(folder), "do not fit the model")
    weights = tiny.tokenizer().state_dict()
    weights["encoder.position"] = weights["encoder.position"].to(torch.int32)
    checkpoint.write_weights(path, weights)
    refused(lambda: viq.load(folder), "int32")
    path.unlink()
    refused(lambda: viq.load(folder), "missing")
    path.mkdir()
    refused(lambda: viq.load(folder), "regular file")


def mutated(value: Any, rng: random.Random) -> Any:
    """One place of a JSON value is another value, gone, twice there, or under another name."""
    value = copy.deepcopy(value)
    holders: list[Any] = [value]
    for holder in holders:  # grows as it goes
        inner = holder.values() if isinstance(holder, dict) else holder
        holders += [item for item in inner if isinstance(item, dict | list) and item]
    holder = rng.choice(holders)
    place = rng.choice(list(holder)) if isinstance(holder, dict) else rng.randrange(len(holder))
    kind = rng.randrange(4)
    if kind == 0:
        del holder[place]
    elif kind == 1 and isinstance(holder, dict):
        holder[str(place) + "x"] = holder[place]
    elif kind == 2 and isinstance(holder[place], int):
        holder[place] = holder[place] * rng.choice([-1, 2, 3, 10**3, 10**9]) + rng.randrange(-2, 3)
    else:
        holder[place] = rng.choice(
            [None, True, -1, 0, 1, 2**31, 2**70, 0.5, -1e300, float("nan"), float("inf"), "",
             "fsq", "\ud800", "\x1b[2J", [], {}, [[[]]], {"a": None}, [1] * 20]
        )  # fmt: skip
    return value


def test_any_change_of_a_config_gives_a_model_or_one_line(model: Path, tmp_path: Path) -> None:
    rng, folder = random.Random(0), copied(model, tmp_path)
    values = json.loads((folder / "config.json").read_text())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    loaded = 0
    for _ in range(400):
        changed = mutated(values, rng)
        for _ in range(rng.randrange(3)):
            changed = mutated(changed, rng)
        (folder / "config.json").write_text(json.dumps(changed))
        for load in (viq.load, CodeEmbedder.from_tokenizer):
            try:
                load(folder)
                loaded += 1
            except ViqError as error:
                assert isinstance(error, CheckpointError) or "no tokenizer" in str(error) \
                    or "no fingerprint" in str(error)  # fmt: skip
                assert str(error).isprintable(), error
    assert loaded > 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150_000


def test_any_change_of_a_tower_and_of_a_recipe(tmp_path: Path) -> None:
    rng = random.Random(1)
    VisionTower(TowerConfig(encoder=tiny.config().encoder, side=32)).save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    recipe = checkpoint.to_dict(find_recipe("debug"))
    for _ in range(200):
        (tmp_path / "config.json").write_text(json.dumps(mutated(values, rng)))
        (tmp_path / "recipe.json").write_text(json.dumps(mutated(recipe, rng)))
        for load in (
            lambda: VisionTower.from_pretrained(tmp_path),
            lambda: find_recipe(str(tmp_path / "recipe.json")),
        ):
            try:
                load()
            except ViqError as error:
                assert "\n" not in str(error)


# Lists of shards, and pickles


@pytest.mark.parametrize(
    ("shards", "words"),
    [
        ({"a": "model.safetensors.index.json"}, "no shards"),  # itself
        ({"a": "../model.safetensors"}, "no name of a file"),
        ({"a": "/etc/passwd"}, "no name of a file"),
        ({"a": "x.exe"}, "no shards"),
        ({"a": 3}, "no list of shards|no name"),
        ([], "no list of shards"),
        ({"a": ["x"]}, "no name of a file|no list"),
        ({f"{i}": f"{i}.safetensors" for i in range(5000)}, "no shards"),
    ],
)
def test_lists_of_shards(shards: Any, words: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": shards}))
    with pytest.raises(CheckpointError, match=words):
        read_tensors(path)
    path.write_text(DEEP)
    refused(lambda: read_tensors(path), "nested")


def test_a_pickle_that_describes_more_than_it_holds(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1).expand(10**6, 10**6)}, tmp_path / "x.bin")
    refused(lambda: read_tensors(tmp_path / "x.bin"), "which it does not hold")


def test_a_pickle_that_hides_large_tensors_inside_dictionaries(tmp_path: Path) -> None:
    large = torch.zeros(1).expand(10**6, 10**6)
    itself: dict[str, Any] = {"b": [({"c": large},)]}
    itself["a"] = itself  # read without end, if each were followed
    torch.save({"args": {}, "state": itself}, tmp_path / "x.bin")
    refused(lambda: read_tensors(tmp_path / "x.bin"), "which it does not hold")
    one = torch.zeros(1000)
    torch.save({str(i): one for i in range(1000)}, tmp_path / "y.bin")
    refused(lambda: read_tensors(tmp_path / "y.bin"), "which it does not hold")


# Folders in transformers' format


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("language")
    tiny.language().save_pretrained(folder)
    tiny.letters().save_pretrained(folder)
    assert load_language(folder) and load_text_tokenizer(folder)
    return folder


HOSTILE: dict[str, tuple[Edit, str]] = {
    "wide": (lambda c: c.update(hidden_size=10**12), "more than"),
    "wider": (lambda c: c.update(intermediate_size=2**35), "parameters"),
    "deep": (lambda c: c.update(num_hidden_layers=300_000), "num_hidden_layers"),
    "words": (lambda c: c.update(vocab_size=2**33), "parameters"),
    "kernel": (lambda c: c.update(attn_implementation="evil/kernel"), "code from elsewhere"),
    "quantized": (lambda c: c.update(quantization_config={"quant_method": "x"}), "quantized"),
    "code": (lambda c: c.update(model_type="x", auto_map={"AutoConfig": "x.Y"}), "can be loaded"),
    "kind": (lambda c: c.update(model_type=["qwen2"]), "can be loaded"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_language_models_of_anybody(name: str, language: Path, tmp_path: Path) -> None:
    for path in language.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    values = json.loads((tmp_path / "config.json").read_text())
    edit, words = HOSTILE[name]
    edit(values)
    (tmp_path / "config.json").write_text(json.dumps(values))
    refused(lambda: load_language(tmp_path), words)


def test_language_models_in_pickles_or_with_adapters(language: Path, tmp_path: Path) -> None:
    for path in language.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "evil/model"}')
    refused(lambda: load_language(tmp_path), "merge them")
    (tmp_path / "adapter_config.json").unlink()
    (tmp_path / "model.safetensors").unlink()
    torch.save(tiny.language().state_dict(), tmp_path / "pytorch_model.bin")
    refused(lambda: load_language(tmp_path), "in safetensors")


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("text", [DEEP, '{"a": ' * 100_000, "{}", "[]", "x"])
def test_text_tokenizers_of_anybody(name: str, text: str, language: Path, tmp_path: Path) -> None:
    for path in language.glob("tokenizer*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / name).write_text(text)
    try:
        load_text_tokenizer(tmp_path)
    except ViqError as error:
        assert "\n" not in str(error)


def test_multimodal_models_of_anybody(model: Path, tmp_path: Path) -> None:
    whole, processor = tiny_mllm.model_and_processor(model)
    whole.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    weights = checkpoint.read_weights(tmp_path / "model.safetensors")

    def load() -> Any:
        return viq.ViQForConditionalGeneration.from_pretrained(str(tmp_path))

    assert load().config.embedder == whole.config.embedder
    for part, changes in (
        ("embedder_config", {"width": 10**12}),
        ("embedder_config", {"levels": "x"}),
        ("embedder_config", {"post_depth": -1}),
        ("text_config", {"hidden_size": 10**9}),
        ("text_config", {"num_hidden_layers": 10**6}),
        ("text_config", {"model_type": "mine"}),
        ("text_config", {"auto_map": {"AutoModelForCausalLM": "x.Y"}, "hidden_size": "x"}),
    ):
        (tmp_path / "config.json").write_text(json.dumps(values | {part: values[part] | changes}))
        refused(load, str(tmp_path))
    for changes in ({"merge_size": 0}, {"merge_size": "x"}, {"embedder_config": []},
                    {"text_config": 3}, {"image_token_id": "x", "merge_size": 3}):  # fmt: skip
        (tmp_path / "config.json").write_text(json.dumps(values | changes))
        refused(load, str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(values))
    (tmp_path / "digest.json").unlink()  # from here on the weights are others
    gone = weights.pop("model.projector.project_in.weight")
    checkpoint.write_weights(tmp_path / "model.safetensors", weights)
    refused(load, "weights are missing, such as model.projector.project_in.weight")
    weights["model.projector.project_in.weight"] = gone[:-1]
    checkpoint.write_weights(tmp_path / "model.safetensors", weights)
    refused(load, str(tmp_path))


@pytest.mark.parametrize(
    "changes",
    [{"merge_size": 0}, {"merge_size": "2"}, {"max_pixels": -1}, {"max_pixels": "x"},
     {"system": 3}, {"fingerprint": "../x"}, {"codebook_size": 10**9}, {"max_length": 0}],
)  # fmt: skip
def test_processors_of_anybody(changes: dict[str, Any], tmp_path: Path, model: Path) -> None:
    _, processor = tiny_mllm.model_and_processor(model)
    processor.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "processor_config.json").read_text())
    (tmp_path / "processor_config.json").write_text(json.dumps(values | changes))
    with pytest.raises(ViqError) as error:
        viq.ViQProcessor.from_pretrained(str(tmp_path))
    assert "\n" not in str(error.value)
