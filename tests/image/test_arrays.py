"""Arrays and tensors of any layout and range: the same picture, or one line that says why not."""

import numpy as np
import pytest
import tiny
import torch

from viq.core.types import ViqError
from viq.image.arrays import to_bytes
from viq.image.open import ImageError, open_image

PICTURE = tiny.picture(0, 18, 21)
BYTES = np.array(PICTURE)  # (H, W, 3)


def layouts() -> list[object]:
    """The same picture in many ways."""
    last = torch.from_numpy(BYTES)
    first = last.permute(2, 0, 1)
    grown = torch.zeros(3, 18, 21, requires_grad=True) + first / 255
    return [
        PICTURE, BYTES, BYTES.transpose(2, 0, 1), BYTES / 255, np.float32(BYTES / np.float32(255)),
        last, first, first.contiguous(), first / 255, (first / 255).double(), (last / 255),
        (first / 255).half(), (first / 255).bfloat16(), grown,
        torch.cat([first, torch.full((1, 18, 21), 255, dtype=torch.uint8)]),  # opaque
    ]  # fmt: skip


def test_every_layout_and_dtype_is_the_same_picture() -> None:
    for number, source in enumerate(layouts()):
        assert np.array_equal(np.asarray(open_image(source)), BYTES), number  # type: ignore[arg-type]


def test_every_level_survives_every_float_dtype() -> None:
    levels = torch.arange(256, dtype=torch.uint8).view(2, 128)
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        given = (levels.double() / 255).to(dtype)
        assert np.array_equal(to_bytes(given), levels.numpy()), dtype


def test_codes_of_tensors_are_those_of_the_picture() -> None:
    model = tiny.tokenizer()
    (wanted,) = model.encode(PICTURE)
    for source in layouts():
        (codes,) = model.encode(source)  # type: ignore[arg-type]
        assert np.array_equal(codes.ids, wanted.ids) and codes.size == (18, 21)
    others = [tiny.picture(seed, 18, 21) for seed in (1, 2)]
    batch = torch.stack([torch.from_numpy(np.array(p)).permute(2, 0, 1) / 255 for p in others])
    for given in (batch, batch.numpy()):
        found = model.encode(given)
        assert [codes.ids.tolist() for codes in found] == [
            codes.ids.tolist() for codes in model.encode(others)
        ]


def test_transformers_words_for_the_range() -> None:
    floats = torch.from_numpy(BYTES).permute(2, 0, 1).float()
    assert np.array_equal(to_bytes(floats, do_rescale=True), BYTES)
    assert np.array_equal(to_bytes(floats / 255, do_rescale=False), BYTES)
    assert np.array_equal(to_bytes(BYTES, do_rescale=True), BYTES)
    black = torch.zeros(3, 5, 7)
    assert not to_bytes(black, do_rescale=True).any()  # zero is zero in both ranges


@pytest.mark.parametrize(
    ("source", "do_rescale", "reason"),
    [
        (torch.zeros(3, 40, 3), None, r"shape \(3, 40, 3\) could have its channels first or last"),
        (torch.zeros(5, 6, 7), None, r"shape is \(5, 6, 7\)"),
        (torch.zeros(3, 0, 7), None, "has no pixels"),
        (torch.full((3, 5, 6), 1.01), None, r"1\.01 to 1\.01 are not in \[0, 1\]"),
        (torch.full((3, 5, 6), -1.0), None, r"are not in \[0, 1\]; undo what normalised them"),
        (torch.full((3, 5, 6), torch.nan), None, r"nan to nan are not in"),
        (torch.full((3, 5, 6), 200.0), None, r"200 to 200 are not in \[0, 1\]"),
        (torch.full((3, 5, 6), 200.0), False, r"not in \[0, 1\]"),
        (torch.full((3, 5, 6), 300.0), True, r"not in 0\.\.255"),
        (torch.full((3, 5, 6), 0.5), True, "look rescaled already; pass do_rescale=False"),
        (torch.zeros(3, 5, 6, dtype=torch.uint8), False, "do_rescale=False is for floats"),
        (torch.zeros(3, 5, 6, dtype=torch.int64), None, "dtype is int64, neither"),
        (np.zeros((3, 5, 6), np.complex64), None, "dtype is complex64, neither"),
    ],
)
def test_what_could_be_two_pictures_is_refused(
    source: object, do_rescale: bool | None, reason: str
) -> None:
    with pytest.raises(ViqError, match=f"^[^\n]*{reason}[^\n]*$"):
        to_bytes(source, do_rescale=do_rescale)
    if do_rescale is None:
        with pytest.raises(ImageError, match=f"^cup: [^\n]*{reason}"):
            open_image(source, name="cup")  # type: ignore[arg-type]


def test_an_array_of_numpy_has_its_channels_last_where_both_are_possible() -> None:
    array = np.arange(3 * 5 * 3, dtype=np.uint8).reshape(3, 5, 3)
    assert np.array_equal(np.asarray(open_image(array)), array)
