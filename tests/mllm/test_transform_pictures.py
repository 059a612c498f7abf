"""A language model on codes of the bundled transform tokenizer: pictures and their codes agree."""

import pytest
import tiny_mllm
import torch

import viq
from viq.core.types import ViqError
from viq.mllm import ViQProcessor
from viq.mllm.image_processing import ViQImageProcessor


@pytest.fixture(scope="module")
def parts():
    return tiny_mllm.model_and_processor("viq-transform")


@pytest.mark.parametrize("size", [(32, 48), (37, 50), (16, 17)])
def test_a_picture_has_the_codes_that_the_tokenizer_gives_it(parts, size, tmp_path):
    model, processor = parts
    picture = tiny_mllm.picture(*size)
    codes = viq.load("viq-transform").encode(picture)
    processor.save_pretrained(tmp_path)
    again = ViQProcessor.from_pretrained(tmp_path)
    assert again.pad_mode == "replicate"
    seen = again(text="What?", images=picture)
    told = again(text="What?", codes=codes)
    found = model.codes_of(seen["pixel_values"], [tuple(seen["image_grid_hw"][0].tolist())])
    assert torch.equal(found, told["codes"])
    alone = again.image_processor(picture)
    assert torch.equal(alone["pixel_values"], seen["pixel_values"])


def test_an_unknown_way_to_pad_is_refused():
    with pytest.raises(ViqError, match="pad_mode: 'edge' is not known; give constant or replicate"):
        ViQImageProcessor(pad_mode="edge")
