"""The comparison of tokenizers and codecs, with a tiny tokenizer and a peer made here."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
import torch
from PIL import Image, ImageOps

from viq.core.types import ViqError
from viq.data.sources.base import Source
from viq.data.synthetic.draw import draw
from viq.eval import peers
from viq.eval.compare import figures as figures_module
from viq.eval.compare import methods as methods_module
from viq.eval.compare.cost import memory, round_trip
from viq.eval.compare.figures import Measure, Networks, totals
from viq.eval.compare.legibility import Reader
from viq.eval.compare.run import Comparison, Options, chosen, compare
from viq.eval.compare.tokenizers import PeerRow, TokenizerRow, load_tokenizer_row
from viq.image.codecs import check_codec, fit_codec, save_codec
from viq.image.open import ImageInput, open_image
from viq.jobs.inputs import open_inputs
from viq.metrics.images import psnr
from viq.models.tokenizer.tokenizer import VisualTokenizer

SIDE = 32  # px, of the pictures of the peer


class Flat:
    """A peer that keeps the mean colour of the central square: one code of 24 bits."""

    name, licence = "flat", "CC-BY-NC-4.0"
    bits_per_pixel = 24 / SIDE**2

    def prepare(self, image: ImageInput) -> Image.Image:
        return ImageOps.fit(open_image(image), (SIDE, SIDE), Image.Resampling.BICUBIC)

    def encode(self, images: Sequence[ImageInput]) -> list[np.ndarray]:
        return [
            np.asarray(self.prepare(each)).mean((0, 1)).round().astype(np.int64) for each in images
        ]

    def decode(self, codes: Sequence[np.ndarray]) -> list[Image.Image]:
        return [Image.new("RGB", (SIDE, SIDE), tuple(code.tolist())) for code in codes]

    def features(self, images: Sequence[ImageInput]) -> list[np.ndarray]:
        return [code[None].astype(np.float32) for code in self.encode(images)]


class Letters:
    """A reader that reads the brightness of a picture as a word of that many letters."""

    def read(self, image: Image.Image) -> str:
        return "x" * round(float(np.asarray(image).mean()))


@pytest.fixture(scope="module")
def tokenizer() -> VisualTokenizer:
    return tiny.tokenizer()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number, (height, width) in enumerate([(64, 96), (80, 64), (48, 48)]):
        draw("gradient", (height, width), number).image.save(folder / f"{number}.png")
    return folder


def run(photos: Path, names: str, tokenizer: VisualTokenizer, **given: Any) -> Comparison:
    def load(name: str) -> Any:
        if name == "flat":
            return PeerRow(name, Flat())
        if name == "ours":
            return TokenizerRow(name, tokenizer)
        raise ViqError(f"{name}: no such weights")

    reader = given.pop("reader", None)
    source: Source = given.pop("source", None) or open_inputs([str(photos)])
    options = Options(**{"repeats": 0, **given})
    networks = Networks()
    return compare(source, names.split(","), options, networks=networks, reader=reader, load=load)


def by_name(found: Comparison) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in found.result["rows"]}


# Bits and figures


def test_codecs_keep_to_the_bytes_of_the_first_tokenizer(photos, tokenizer):
    found = run(photos, "webp,ours,flat", tokenizer)
    assert [row["name"] for row in found.result["rows"]] == ["webp", "ours", "flat"]
    assert found.result["settings"]["bytes_of"] == "ours"
    for image in found.result["images"]:
        ours, webp = image["rows"]["ours"], image["rows"]["webp"]
        codes = math.ceil(image["height"] / 16) * math.ceil(image["width"] / 16) * 4
        assert ours["bits"] == 16 * codes  # a codebook of 64,000 needs 16 bits
        picture = open_image(photos / Path(image["key"]).name)
        fitted = fit_codec(picture, "webp", int(ours["bits"] // 8))
        data, restored, quality = fitted or (save_codec(picture, "webp", 0), None, 0)
        assert (webp["bits"], webp["quality"]) == (8 * len(data), quality)
        if restored is not None:
            assert webp["psnr"] == psnr(np.asarray(picture), np.asarray(restored))
    rows = by_name(found)
    over = [i["rows"]["webp"]["bits"] > i["rows"]["ours"]["bits"] for i in found.result["images"]]
    assert rows["webp"]["over"] == sum(over)
    pixels = sum(image["height"] * image["width"] for image in found.result["images"])
    bits = sum(image["rows"]["ours"]["bits"] for image in found.result["images"])
    assert rows["ours"]["bpp"] == pytest.approx(bits / pixels)
    json.dumps(found.result, allow_nan=False)


def test_a_file_that_cannot_be_small_enough_is_made_and_counted(photos, tokenizer):
    row = by_name(run(photos, "flat,jpeg", tokenizer))["jpeg"]
    assert row["over"] == row["images"] == 3  # 3 bytes are no JPEG file
    assert row["size"] == [SIDE, SIDE]  # the codec has the pictures of the tokenizer


def test_a_peer_is_measured_on_what_it_sees(photos, tokenizer):
    found = run(photos, "flat,ours", tokenizer)
    flat = by_name(found)["flat"]
    assert flat["bpp"] == pytest.approx(24 / SIDE**2) and flat["bpp_entropy"] is None
    assert flat["size"] == [SIDE, SIDE] and by_name(found)["ours"]["size"] is None
    assert flat["note"] == "weights: CC-BY-NC-4.0 (no commercial use)"
    image = open_image(photos / "0.png")
    seen, restored = Flat().prepare(image), Flat().decode(Flat().encode([image]))[0]
    first = found.result["images"][0]["rows"]["flat"]
    assert first["psnr"] == psnr(np.asarray(seen), np.asarray(restored))


def test_native_bytes_give_a_row_a_quality(photos, tokenizer):
    found = run(photos, "jpeg,ours", tokenizer, bytes="native", shown=1)
    rows = found.result["rows"]
    qualities = [row for row in rows if row["series"] == "jpeg"]
    assert [row["name"] for row in qualities][:2] == ["jpeg q5", "jpeg q15"]
    sizes = [row["bpp"] for row in qualities]
    assert sizes == sorted(sizes) and len(sizes) == 7
    assert all(row["over"] == 0 for row in rows)
    assert found.result["settings"]["bytes_of"] is None
    captions = [part["caption"][0] for part in found.sections[0]["parts"]]
    assert captions[0] == "original" and captions[2] == "ours"  # and one of the seven between
    assert captions[1].startswith("jpeg, quality ") and len(captions) == 3


def test_crop_is_the_central_square(photos, tokenizer):
    found = run(photos, "ours", tokenizer, crop=32, limit=2)
    assert [(i["height"], i["width"]) for i in found.result["images"]] == [(32, 32)] * 2
    assert by_name(found)["ours"]["size"] == [32, 32]


def test_each_takes_the_first_of_each_table(tmp_path, tokenizer):
    for table in "ab":
        files = [tmp_path / f"{number}.png" for number in range(3)]
        for number, file in enumerate(files):
            draw("gradient", (48, 48), number).image.save(file)
        rows = [{"image": file.read_bytes()} for file in files]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{table}.parquet")
    source = open_inputs([str(tmp_path / f"{table}.parquet") for table in "ab"])
    assert chosen(source, None, None) == list(range(6))
    assert chosen(source, None, 4) == [0, 1, 2, 3]
    assert chosen(source, 2, None) == [0, 1, 3, 4]
    assert chosen(source, 9, 5) == [0, 1, 2, 3, 4]
    found = run(tmp_path, "ours", tokenizer, source=source, each=2, limit=3)
    keys = [Path(image["key"]).name for image in found.result["images"]]
    assert [key[0] for key in keys] == ["a", "a", "b"]
    assert found.result["settings"]["each"] == 2


def test_entropy_coded_bits_are_those_of_the_payload(photos):
    pytest.importorskip("constriction")
    row = load_tokenizer_row("viq-tiny")
    assert isinstance(row, TokenizerRow) and row.note == ""
    sample = row.prepare(open_image(photos / "0.png"))
    encoded = row.encode(sample, None)
    import viq

    payload = viq.load("viq-tiny").entropy.compress([encoded.data])[0]
    assert row.entropy_bits(encoded) == 8 * len(payload) < encoded.bits


def test_without_an_entropy_model_the_row_says_so(tokenizer):
    row = TokenizerRow("ours", tokenizer)
    encoded = row.encode(row.prepare(tiny.picture(0)), None)
    assert row.entropy_bits(encoded) is None
    assert row.note.startswith("not entropy coded: ")


def test_totals_by_hand():
    rows = [
        {"pixels": 100, "bits": 50, "entropy_bits": 25, "psnr": 20.0, "errors": 2, "characters": 8},
        {"pixels": 300, "bits": 50, "entropy_bits": 25, "psnr": None, "errors": 0, "characters": 2},
    ]
    features = [(np.zeros(2), np.full(2, 3.0)), (np.ones(2), np.full(2, 4.0))]
    found = totals(rows, features)
    assert (found["bpp"], found["bpp_entropy"], found["psnr"]) == (0.25, 0.125, 20)
    assert found["text_accuracy"] == 0.8 and found["ssim"] is None
    assert found["efficientnet_frechet"] == pytest.approx(18)  # the means are 3 and 3 apart
    assert totals([{**rows[0], "entropy_bits": None, "errors": 9}], [])["text_accuracy"] == 0
    assert totals([{**rows[0], "entropy_bits": None}], [])["bpp_entropy"] is None


def test_lpips_is_shown_where_it_is_there(monkeypatch):
    class Fake(torch.nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            assert x.shape == (1, 3, 4, 5) and float(x.min()) == -1
            return (x - y).abs().mean()

    monkeypatch.setattr(figures_module, "load_lpips", lambda net: {"alex": Fake()}[net])
    networks = Networks.found()
    assert networks.shown == "lpips"
    black, white = (Image.new("RGB", (5, 4), colour) for colour in ("black", "white"))
    assert Measure(networks)(black, white)[0]["lpips"] == 2

    def broken(net: str) -> Any:
        raise ViqError("no network at all")

    monkeypatch.setattr(figures_module, "load_lpips", broken)
    assert "no network at all" in Networks.found().missing


# What cannot be made


def test_what_cannot_be_made_is_left_out_with_its_reason(photos, tokenizer):
    found = run(photos, "qlip:DIR,ours,jpeg,siglip", tokenizer)
    assert set(by_name(found)) == {"ours", "jpeg"}
    assert found.result["left_out"] == [
        {"name": "qlip:DIR", "reason": "qlip:DIR: no such weights"},
        {"name": "siglip", "reason": "siglip: no such weights"},
    ]
    assert found.result["settings"]["bytes_of"] == "ours"


def test_a_codec_that_pillow_lacks_is_left_out(photos, tokenizer, monkeypatch):
    monkeypatch.setattr("viq.image.codecs.features.check", lambda name: False)
    found = run(photos, "ours,avif,jpeg", tokenizer)
    assert set(by_name(found)) == {"ours", "jpeg"}
    assert "built without it; pip install" in found.result["left_out"][0]["reason"]
    with pytest.raises(ViqError, match="avif: the Pillow of this machine"):
        check_codec("avif")


def test_a_method_that_fails_on_every_picture_is_left_out(photos, tokenizer, monkeypatch):
    def refuse(self: Flat, images: Any) -> Any:
        raise ViqError("flat: takes no pictures today")

    monkeypatch.setattr(Flat, "encode", refuse)
    found = run(photos, "flat,ours,jpeg", tokenizer)
    left = {item["name"]: item["reason"] for item in found.result["left_out"]}
    assert left["flat"].endswith("0.png: flat: takes no pictures today")
    assert "there are no bytes to keep" in left["jpeg"]  # those of the first tokenizer
    assert found.result["images"][0]["rows"]["flat"] == {"reason": "flat: takes no pictures today"}
    with pytest.raises(ViqError, match="nothing could be compared: .*no pictures today"):
        run(photos, "flat", tokenizer)


def test_a_picture_that_cannot_be_read_is_listed(photos, tokenizer, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    Image.open(photos / "0.png").save(tmp_path / "good.png")
    found = run(tmp_path, "ours,jpeg", tokenizer)
    assert by_name(found)["ours"]["images"] == 1
    (failed,) = found.result["failed"]
    assert failed["key"].endswith("broken.png") and "\n" not in failed["reason"]
    (tmp_path / "good.png").unlink()
    with pytest.raises(ViqError, match="no picture to compare: .*broken.png"):
        run(tmp_path, "ours", tokenizer)


@pytest.mark.parametrize(
    ("names", "given", "told"),
    [
        ("jpeg", {}, "there is none; name one"),
        ("nobody,jpeg", {}, "there is none: nobody: no such weights"),
        ("nobody", {}, "nothing to compare: nobody: no such weights"),
        ("ours", {"bytes": "same"}, "--bytes same: give equal or native"),
        ("ours", {"crop": 0}, "--crop 0: give at least 1"),
        ("ours", {"each": 0}, "--each 0: give at least 1"),
        ("ours", {"limit": 0}, "--limit 0: give at least 1"),
        ("ours", {"repeats": -1}, "--repeats -1: give at least 0"),
    ],
)
def test_wrong_options_are_one_line(photos, tokenizer, names, given, told):
    with pytest.raises(ViqError) as error:
        run(photos, names, tokenizer, **given)
    assert told in str(error.value) and "\n" not in str(error.value)


def test_continuous_features_and_missing_folders_are_refused():
    with pytest.raises(ViqError, match="siglip2:x: has continuous features and no codes"):
        load_tokenizer_row("siglip2:x")
    with pytest.raises(ViqError, match="give its weights as qlip:FOLDER"):
        load_tokenizer_row("qlip")


def test_a_peer_is_loaded_by_kind_and_folder(monkeypatch):
    asked = []
    monkeypatch.setattr(peers, "load_peer", lambda kind, path: asked.append((kind, path)) or Flat())
    row = load_tokenizer_row("unitok:some/folder:1")
    assert asked == [("unitok", "some/folder:1")] and row.name == "unitok:some/folder:1"


@pytest.mark.parametrize("kind", ["qlip", "unitok", "simvq"])
def test_the_formats_of_others_are_compared(photos, kind):
    folder = Path(__file__).parents[1] / "golden" / "peers" / kind
    if not folder.is_dir():
        pytest.skip(f"needs {folder}")
    peer = peers.load_peer(kind, str(folder))
    image = open_image(photos / "0.png")
    expected = np.asarray(peer.decode(peer.encode([image]))[0])
    row = PeerRow(kind, peer)
    sample = row.prepare(image)
    encoded = row.encode(sample, None)
    assert encoded.bits == peer.bits_per_pixel * sample.picture.width * sample.picture.height
    assert np.array_equal(np.asarray(row.decode(encoded)), expected)
    assert row.decode(encoded).size == sample.picture.size


def test_a_tokenizer_without_pictures_is_refused():
    with pytest.raises(ViqError, match="ours: has no pixel decoder"):
        TokenizerRow("ours", tiny.tokenizer(decoder=None))


# Text


def test_text_is_compared_with_what_is_read_from_what_a_method_sees(photos, tokenizer):
    found = run(photos, "flat,jpeg", tokenizer, reader=Letters(), bytes="native")
    rows = by_name(found)
    assert rows["flat"]["text_accuracy"] == pytest.approx(1, abs=0.01)  # the same brightness
    assert found.result["text"] == {"against": "reading", "original": None}


def test_a_transcript_is_the_text_that_should_be_read(tokenizer, tmp_path):
    dark, light = (Image.new("RGB", (32, 32), (value,) * 3) for value in (10, 20))
    table = {
        "image": [tiny.png(dark), tiny.png(light)],
        "words": ["x" * 10, "x" * 16],
    }
    pq.write_table(pa.table(table), tmp_path / "pages.parquet")
    source = open_inputs([str(tmp_path / "pages.parquet")])
    found = run(tmp_path, "flat", tokenizer, source=source, reader=Letters(), transcript="words")
    # Read: 10 of 10 and 20 for 16, so 4 wrong of 26.
    assert by_name(found)["flat"]["text_accuracy"] == pytest.approx(1 - 4 / 26)
    assert found.result["text"] == {
        "against": "transcript", "original": pytest.approx(1 - 4 / 26)
    }  # fmt: skip
    with pytest.raises(ViqError, match="no text in the column 'lines'"):
        run(tmp_path, "flat", tokenizer, source=source, reader=Letters(), transcript="lines")


def test_an_ocr_that_is_missing_is_one_line(monkeypatch):
    monkeypatch.setattr("viq.eval.compare.legibility.find_spec", lambda name: None)
    with pytest.raises(ViqError, match=r"--ocr: needs rapidocr and onnxruntime: pip install"):
        Reader()


def test_the_ocr_reads_a_line(tmp_path):
    pytest.importorskip("rapidocr")
    pytest.importorskip("onnxruntime")
    from PIL import ImageDraw

    from viq.report.text import font

    page = Image.new("RGB", (400, 80), "white")
    ImageDraw.Draw(page).text((20, 20), "Total 12.00", "black", font(36))
    reader = Reader()
    assert reader.read(page).replace(" ", "") == "Total12.00"
    assert reader.read(Image.new("RGB", (64, 64), "white")) == ""


# Speed and memory


def test_speed_is_a_picture_and_of_every_row(photos, tokenizer):
    found = run(photos, "ours,jpeg", tokenizer, repeats=1, timed=2)
    for row in found.result["rows"]:
        assert 0 < row["encode_s"] < 60 and 0 < row["decode_s"] < 60


def test_memory_is_that_of_a_process_of_its_own(photos, tokenizer):
    codec = methods_module.CodecRow("jpeg", 50)
    sample = codec.prepare(open_image(photos / "0.png"))
    work = [(sample, 50, codec.encode(sample, 50))]
    spent = memory(codec, work, "cpu", None)
    assert spent is None or 5 < spent < 150  # PyTorch alone takes more
    broken = SimpleNamespace(name="nobody", series="nobody", kind="codec")
    with pytest.raises(ViqError, match="nobody: its memory is not known: "):
        memory(broken, work, "cpu", None)  # type: ignore[arg-type]


def test_a_round_trip_of_a_tokenizer(photos):
    round_trip(str(photos / "2.png"), "viq-tiny", False, None, "cpu", None)
    with pytest.raises(ViqError):
        round_trip(str(photos / "2.png"), "no/such folder", False, None, "cpu", None)
