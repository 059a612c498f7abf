"""The visual tokenizer through the auto classes of transformers."""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor
from transformers import AutoConfig, AutoImageProcessor, AutoModel

from viq.core.files import bundled
from viq.core.types import CodesError, ViqError
from viq.image.open import ImageError
from viq.image.patches import normalize
from viq.mllm import ViQImageProcessor, ViQTokenizerConfig, ViQTokenizerModel
from viq.models.tokenizer.tokenizer import VisualTokenizer

PICTURES = [tiny.picture(0, 40, 57), tiny.picture(1, 64, 32)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("tokenizer")
    tiny.tokenizer(tile=32).save_pretrained(place)
    return place


def tokens_of(tokenizer: VisualTokenizer, pictures: list) -> Tensor:
    codes = [torch.from_numpy(c.ids.astype(np.int64)) for c in tokenizer.encode(pictures)]
    return torch.cat([ids.flatten(0, 1) for ids in codes])


def test_auto_classes_give_the_codes_and_pixels_of_the_tokenizer(folder: Path) -> None:
    tokenizer = VisualTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder)
    processor = AutoImageProcessor.from_pretrained(folder)
    assert type(model) is ViQTokenizerModel and type(processor) is ViQImageProcessor
    config = AutoConfig.from_pretrained(folder)
    assert type(config) is ViQTokenizerConfig and config.tokenizer == tokenizer.config
    assert config.hidden_size == tokenizer.width and config.get_text_config() is config
    inputs = processor(PICTURES, return_tensors="pt")
    assert inputs["pixel_values"].shape == (3 * 4 + 4 * 2, 768)
    tokens = model.get_image_tokens(**inputs)
    assert torch.equal(tokens, tokens_of(tokenizer, PICTURES))
    pixels = model.decode_image_tokens(tokens, **inputs)
    shown = tokenizer.decode(tokenizer.encode(PICTURES))
    back = processor.postprocess(pixels)["pixel_values"]
    assert [np.array(a).tolist() for a in back] == [np.array(b).tolist() for b in shown]
    assert processor.postprocess(pixels, return_tensors="pt")["pixel_values"][0].shape == (
        40,
        57,
        3,
    )


def test_one_pass_gives_features_and_tokens(folder: Path) -> None:
    model = AutoModel.from_pretrained(folder)
    inputs = ViQImageProcessor()(PICTURES)
    output = model(**inputs)
    features = model.tokenizer.embed(model.tokenizer.encode(PICTURES))
    assert torch.equal(output.last_hidden_state, torch.cat(features))
    wanted = model.tokenizer.pool(model.tokenizer.encode(PICTURES))
    torch.testing.assert_close(output.pooler_output, wanted)
    assert torch.equal(output.image_tokens, model.get_image_tokens(**inputs))
    assert model(**inputs, return_dict=False)[0].shape == output[0].shape
    each = model.get_image_features(**inputs).pooler_output
    assert [part.shape[0] for part in each] == [12, 8] and torch.equal(each[1], features[1])


def test_images_as_one_tensor_with_and_without_padding(folder: Path) -> None:
    model = AutoModel.from_pretrained(folder)
    images = [normalize(np.array(picture)) for picture in PICTURES]
    for image, picture in zip(images, PICTURES, strict=True):
        alone = model.get_image_tokens(image[None])
        assert torch.equal(alone, tokens_of(model.tokenizer, [picture]))
        half = model.get_image_tokens(image[None].bfloat16())
        assert torch.equal(half, alone)  # 8-bit pixels survive half precision
    padded = torch.full((2, 3, 64, 60), 0.7)
    for row, image in zip(padded, images, strict=True):
        row[:, : image.shape[1], : image.shape[2]] = image
    sizes = torch.tensor([[40, 57], [64, 32]])
    tokens = model.get_image_tokens(padded, image_sizes=sizes)
    assert torch.equal(tokens, tokens_of(model.tokenizer, PICTURES))
    # As Emu3 is called: one grid for all, rows and columns.
    batch = tokens[:12].reshape(1, -1).repeat(2, 1)
    pixels = model.decode_image_tokens(batch, height=3, width=4)
    assert pixels.shape == (2, 3, 48, 64) and torch.equal(pixels[0], pixels[1])
    (cut,) = model.decode_image_tokens(
        tokens[:12], image_grid_hw=torch.tensor([[3, 4]]), image_sizes=sizes[:1]
    )
    assert torch.equal(cut, pixels[0][:, :40, :57])


def test_a_transform_code_is_padded_as_it_is_encoded() -> None:
    model = ViQTokenizerModel.from_pretrained("viq-transform")
    wanted = tokens_of(model.tokenizer, PICTURES)
    assert torch.equal(model.get_image_tokens(**ViQImageProcessor()(PICTURES)), wanted)


@pytest.mark.parametrize("name", ["viq-tiny", "viq-transform"])
def test_bundled_folders_are_of_transformers_too(name: str) -> None:
    assert type(AutoConfig.from_pretrained(str(bundled(name)))) is ViQTokenizerConfig
    assert type(AutoImageProcessor.from_pretrained(str(bundled(name)))) is ViQImageProcessor


def test_what_is_saved_comes_back(folder: Path, tmp_path: Path) -> None:
    model = AutoModel.from_pretrained(folder, device_map="auto", dtype="float32")
    model.save_pretrained(tmp_path)
    ViQImageProcessor(max_pixels=500).save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path)
    assert again.tokenizer.fingerprint == model.tokenizer.fingerprint
    assert VisualTokenizer.from_pretrained(tmp_path).fingerprint == again.config.fingerprint
    assert AutoImageProcessor.from_pretrained(tmp_path).max_pixels == 500
    model.config.save_pretrained(tmp_path)  # in transformers' own manner
    assert VisualTokenizer.from_pretrained(tmp_path).config == model.tokenizer.config
    half = AutoModel.from_pretrained(folder, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    _, report = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]


def test_a_folder_of_before_loads_by_its_class_and_is_written_anew(
    folder: Path, tmp_path: Path
) -> None:
    tiny.tokenizer().save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    del values["model_type"], values["architectures"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match="model_type"):
        AutoModel.from_pretrained(tmp_path)
    model = ViQTokenizerModel.from_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    assert AutoModel.from_pretrained(tmp_path).config.fingerprint == model.config.fingerprint


def test_a_pipeline_of_transformers(folder: Path) -> None:
    from transformers import pipeline

    model = AutoModel.from_pretrained(folder)
    look = pipeline("image-feature-extraction", model=model, image_processor=ViQImageProcessor())
    (wanted,) = model.tokenizer.embed(model.tokenizer.encode(PICTURES[0]))
    assert np.allclose(look(PICTURES[0]), wanted)


def test_the_processor_asks_which_range_values_are_in() -> None:
    first = torch.from_numpy(np.array(PICTURES[0])).permute(2, 0, 1)
    processor = ViQImageProcessor()
    wanted = processor(PICTURES[0])["pixel_values"]
    for given, options in (
        (first, {}), (first.float(), {}), (first[None], {}), ([first.numpy()], {}),
        (first / 255, {"do_rescale": False}),
    ):  # fmt: skip
        assert torch.equal(processor(given, **options)["pixel_values"], wanted)
    assert torch.equal(ViQImageProcessor(do_rescale=False)(first / 255)["pixel_values"], wanted)
    with pytest.raises(ImageError, match="^image 1: .* pass do_rescale=False"):
        processor([first, first / 255])
    with pytest.raises(ImageError, match="^image 0: do_rescale=False is for floats"):
        processor(first, do_rescale=False)
    small = processor(PICTURES[0], max_pixels=300, return_tensors="np")
    assert small["image_sizes"].prod() <= 300 and isinstance(small["pixel_values"], np.ndarray)


def test_what_is_not_followed_is_refused(folder: Path) -> None:
    model, processor = AutoModel.from_pretrained(folder), ViQImageProcessor()
    inputs = processor(PICTURES)
    for call, reason in (
        (lambda: processor(PICTURES, do_resize=True), "do_resize: True"),
        (lambda: processor([]), "empty list"),
        (lambda: processor(PICTURES, return_tensors="tf"), "give pt or np"),
        (lambda: processor.postprocess([torch.zeros(3, 4, 4)], return_tensors="tf"), "PIL"),
        (lambda: ViQImageProcessor(crop=3), "crop: no argument"),
        (lambda: AutoModel.from_pretrained(folder, dtype="int3"), "dtype 'int3'"),
        (lambda: AutoModel.from_pretrained(folder, device_map={"encoder": 0}), "one device"),
        (lambda: ViQTokenizerModel.from_pretrained(folder, gguf_file="x"), "gguf_file"),
        (lambda: model.save_pretrained(folder, push_to_hub=True), "push_to_hub: True"),
        (lambda: model.get_image_tokens(inputs["pixel_values"]), "with image_grid_hw"),
        (lambda: model(inputs["pixel_values"][1:], inputs["image_grid_hw"]), "19"),
        (lambda: model.get_image_tokens(torch.zeros(1, 3, 32, 32),
                                        image_sizes=torch.tensor([[33, 2]])), "do not fit"),
        (lambda: model.decode_image_tokens(torch.zeros(4, dtype=torch.long)), "height and width"),
        (lambda: model.decode_image_tokens(torch.zeros(1, 5), 1, 1), "whole numbers"),
        (lambda: model.decode_image_tokens(torch.zeros(8).long(), 1, 3), "describe 0 patches"),
    ):  # fmt: skip
        with pytest.raises(ViqError, match=reason) as caught:
            call()
        assert "\n" not in str(caught.value)
    for bad in (-1, 64_000):
        with pytest.raises(CodesError, match="the codebook has 0 to"):
            model.decode_image_tokens(torch.full((1, 4), bad), 1, 1)


def test_a_config_alone_shapes_all_parts() -> None:
    config = ViQTokenizerModel.from_pretrained("viq-transform").config
    assert config.tokenizer == VisualTokenizer.from_pretrained("viq-transform").config
    again = ViQTokenizerModel(config).tokenizer
    assert again.text_head is not None and again.refinement is not None
