"""Towers side by side: ours and others, the same questions for all, and probes on photos."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

from viq.cli.main import app
from viq.core.types import IGNORE, IMAGE_TOKEN, ViqError, language_tokens
from viq.data.sources.open import open_source
from viq.data.text.chat_format import EncodedChat
from viq.eval.probes import naming, towers
from viq.eval.probes.benchmark import ProbeBenchmark, ProbeConfig, ProbeQuestion
from viq.eval.probes.classifiers import nearest, whitened
from viq.eval.probes.photos import LabelledPhotos
from viq.eval.probes.tower_comparison import compare_towers, loadable, regridded, steps_of
from viq.eval.probes.understanding import _packs, train_probe
from viq.image.patches import normalize, pack
from viq.models.language.vision_language import LanguageConfig
from viq.models.tokenizer.tokenizer import VisualTokenizer

CONFIG = ProbeConfig(
    steps=60,
    tokens=64,
    seeds=2,
    language=LanguageConfig(width=32, depth=1, heads=2, mlp_width=64, vocabulary=16),
)
YES, NO, END, ASK = 3, 4, 5, 6


@pytest.fixture(autouse=True)
def only_below(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.labelled_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def photos(place: Path) -> LabelledPhotos:
    return LabelledPhotos(open_source(place))


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tokenizer that encodes in tiles of 48 px."""
    folder = tmp_path_factory.mktemp("ours")
    torch.manual_seed(0)
    VisualTokenizer(tiny.config(name="tiny", tile=48)).save_pretrained(folder)
    return folder


def question(picture: int) -> ProbeQuestion:
    """Whether a picture of 32x32 px, 2x2 patches, is bright."""
    answer, visual = [YES if picture % 2 else NO, END], [IMAGE_TOKEN] * language_tokens((2, 2))
    ids = [ASK, *visual, ASK, *answer]
    labels = [IGNORE] * (len(ids) - 2) + answer
    chat = EncodedChat(ids=ids, labels=labels, images=1)
    return ProbeQuestion(picture=picture, chat=chat, kind="light/bright", answer=str(picture % 2))


@pytest.fixture(scope="module")
def benchmark() -> ProbeBenchmark:
    questions = tuple(map(question, range(40)))
    pictures = tuple(np.full((32, 32, 3), 255 * (n % 2), np.uint8) for n in range(40))
    return ProbeBenchmark(
        pictures=pictures, train=questions[:30], test=questions[30:], probes=(), vocabulary=16
    )


class FakePeer:
    """Squares of 64 px, whose places (4x4) tell the mean colour of the picture."""

    name, licence, bits_per_pixel = "fake", "MIT", 1.0

    def __init__(self, places: int = 16) -> None:
        self.places = places

    def prepare(self, image: Image.Image) -> Image.Image:
        return image.resize((64, 64))

    def features(self, images: Sequence[Image.Image]) -> list[np.ndarray]:
        means = [np.asarray(image).mean((0, 1)) / 255 for image in images]
        return [np.tile(mean, (self.places, 1)).astype(np.float32) for mean in means]


def use_peers(monkeypatch: pytest.MonkeyPatch, **peers: Any) -> None:
    def load(kind: str, path: str) -> Any:
        if kind not in peers:
            raise ViqError(f"no peer is called {kind!r}")
        return peers[kind]

    monkeypatch.setattr(towers, "_load_peer", load)


def test_the_same_reader_on_towers_of_all_kinds_and_blind(
    monkeypatch: pytest.MonkeyPatch, benchmark: ProbeBenchmark, photos: LabelledPhotos, ours: Path
) -> None:
    use_peers(monkeypatch, qlip=FakePeer(), siglip2=FakePeer(), unitok=FakePeer(places=15))
    found, left_out = loadable([str(ours), "qlip:A", "siglip2:B", "unitok:C", "dall:E", "qlip:A"])
    assert found == {
        str(ours): ("codes", "continuous"), "qlip:A": ("codes",), "siglip2:B": ("continuous",),
        "unitok:C": ("codes",),
    }  # fmt: skip
    assert left_out == {"dall:E": "no peer is called 'dall'"}
    del found["siglip2:B"]
    seen: list[int] = []
    told: list[list[str]] = []
    result = compare_towers(
        benchmark, found, CONFIG, photos=photos, left_out=left_out,
        progress=lambda: seen.append(1), done=lambda so_far: told.append([*so_far["towers"]]),
    )  # fmt: skip
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert told == [[str(ours)], [str(ours), "qlip:A"], [str(ours), "qlip:A"]]
    # 15 places fill no grid of a square: seen at the first picture, a photo or one of the questions
    assert result["left_out"].keys() == {"dall:E", "unitok:C"}
    assert "15 features of a picture of 64x64 px" in result["left_out"]["unitok:C"]
    unitok = len(benchmark.pictures) + len(photos) + CONFIG.seeds * CONFIG.steps
    assert len(seen) == steps_of(found, benchmark, CONFIG, photos) - unitok
    assert result["licences"] == {"qlip:A": "MIT"}

    assert result["towers"][str(ours)].keys() == {"codes", "continuous"}
    codes = result["towers"]["qlip:A"]["codes"]
    assert codes["answers"]["all"] == {"mean": 100.0, "half_width": 0.0, "seeds": [100.0, 100.0]}
    assert (codes["channels"], codes["tokens"]) == (3, language_tokens((4, 4)))
    assert result["photos"]["skipped"] == 1 and result["photos"]["names"] == 3
    for kind in ("linear", "knn"):
        assert codes[kind]["plain"]["percent"] == 100, kind
        assert codes[kind].keys() == {"plain", "whitened"}

    zeros = [
        train_probe(benchmark, blank, 1, [(2, 2)] * 40, CONFIG, seed, lambda step: None)["all"]
        for seed in range(2)
    ]
    assert result["blind"]["answers"]["all"]["seeds"] == zeros and max(zeros) <= 60


def blank(pictures: Sequence[int]) -> Tensor:
    return torch.zeros(4 * len(pictures), 1)


def test_no_tower_at_all_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    use_peers(monkeypatch)
    with pytest.raises(ViqError, match="no peer is called 'dall'; no peer is called 'e'"):
        loadable(["dall:E", "e:F"])
    with pytest.raises(ViqError, match="no tower is named"):
        loadable([])


def test_a_step_has_the_same_questions_whatever_tokens_a_picture_takes(
    benchmark: ProbeBenchmark,
) -> None:
    grids = [(2, 2 + picture % 5) for picture in range(40)]
    other = regridded(benchmark, grids)
    for before, after in zip(benchmark.train, other.train, strict=True):
        ids, labels = after.chat.ids, after.chat.labels
        assert ids.count(IMAGE_TOKEN) == language_tokens(grids[after.picture])
        assert [i for i in ids if i != IMAGE_TOKEN] == [
            i for i in before.chat.ids if i != IMAGE_TOKEN
        ]
        assert [at for at, label in zip(ids, labels, strict=True) if label != IGNORE] == ids[-2:]
    packs = [
        [[q.picture for q in held] for held in islice(_packs(some.train, 30, Random(1)), 20)]
        for some in (benchmark, other, regridded(other, grids[::-1]))
    ]
    assert packs[0] == packs[1] == packs[2] and max(map(len, packs[0])) > 1


def test_a_tower_of_ours_gives_codes_and_what_is_before_them_tile_by_tile(ours: Path) -> None:
    tower, tokenizer = towers.open_tower(f"viq:{ours}"), VisualTokenizer.from_pretrained(ours)
    image = tiny.picture(3, 40, 90)
    features, grid = tower.features(image, "codes")
    assert grid == (3, 6)
    assert torch.equal(features, tokenizer.embed(tokenizer.encode(image))[0])
    features, grid = tower.features(image, "continuous")
    left, right = (
        tokenizer.encoder(pack([normalize(part)])).view(3, 3, -1)
        for part in (np.asarray(image)[:, :48], np.asarray(image)[:, 48:])
    )
    assert grid == (3, 6) and features.shape == (18, tokenizer.width)
    assert torch.equal(features.view(3, 6, -1), torch.cat([left, right], 1))


def test_a_transform_code_is_a_tower_with_the_network_that_taught_it() -> None:
    tower = towers.open_tower("viq-transform")
    assert tower.kinds == ("codes", "continuous", "teacher")
    image, widths = tiny.picture(3, 1030, 40), []
    for kind in tower.kinds:
        features, grid = tower.features(image, kind)
        assert grid == (65, 3) and len(features) == 65 * 3 and features.isfinite().all()
        widths.append(features.shape[1])
    assert widths[0] == widths[1] != widths[2]


def test_a_tokenizer_without_codes_is_no_tower(tmp_path: Path) -> None:
    tiny.tokenizer("proximal").save_pretrained(tmp_path)
    with pytest.raises(ViqError, match="train its FSQ stage first"):
        towers.open_tower(str(tmp_path))


def test_grids_of_peers_follow_the_picture_that_they_see(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = SimpleNamespace(
        name="wide",
        licence="MIT",
        prepare=lambda image: image.resize((96, 32)),
        features=lambda images: [np.zeros((12, 2), np.float32)],
    )
    use_peers(monkeypatch, siglip2=wide)
    features, grid = towers.open_tower("siglip2:X").features(tiny.picture(0), "continuous")
    assert features.shape == (12, 2) and grid == (2, 6)


def test_linear_probes_are_those_of_naming(place: Path, photos: LabelledPhotos, ours: Path) -> None:
    tower, tokenizer = towers.open_tower(str(ours)), VisualTokenizer.from_pretrained(ours)
    named = naming.evaluate(tokenizer, open_source(place), baselines=False)
    vectors = [naming.mean_and_deviation(tower.features(p, "codes")[0]) for p in photos]
    linear = photos.labels.probes(torch.stack(vectors))["linear"]
    assert linear["plain"] == named["probes"]["codes"]
    assert linear["whitened"] == named["probes"]["codes, whitened"]
    assert photos.facts().items() >= {k: v for k, v in named.items() if k != "probes"}.items()


def test_photos_of_which_none_can_be_read(tmp_path: Path) -> None:
    place = tiny.labelled_photos(tmp_path)
    for path in tmp_path.glob("*.png"):
        path.write_bytes(b"no picture")
    with pytest.raises(ViqError, match="0 photos with labels can be read"):
        LabelledPhotos(open_source(place))


def test_neighbours_vote_by_nearness() -> None:
    # One vector of class 0 at 0 degrees, two of class 1 at 60, two of class 2 beyond.
    degrees = torch.tensor([0.0, 60, 60, 180, 180]).deg2rad()
    x_nC = torch.stack([degrees.cos(), degrees.sin()], 1) * torch.tensor([[1], [9], [9], [1], [1]])
    asked = torch.tensor([[1.0, 0.05], [0.6, 0.8], [-2, 0.1]])
    assert nearest(x_nC, torch.tensor([0, 1, 1, 2, 2]), asked, 3).tolist() == [0, 1, 2]


def test_whitened_features_have_equal_variances() -> None:
    x_nC = torch.randn(500, 3, generator=torch.Generator().manual_seed(0))
    x_nC = x_nC @ torch.tensor([[5.0, 1, 0], [0, 1, 0], [0, 3, 2]]) + 7
    train = torch.arange(500) < 400
    white = whitened(x_nC, train)[train]
    assert torch.allclose(white.T @ white / 400, torch.eye(3), atol=0.2)
    assert torch.allclose(white.mean(0), torch.zeros(3), atol=1e-4)


def test_the_command(
    monkeypatch: pytest.MonkeyPatch, ours: Path, place: Path, tmp_path: Path
) -> None:
    use_peers(monkeypatch, qlip=FakePeer())
    command = ["eval", "features", "--seeds", "1", "--steps", "2", "--pictures", "6"]
    asked = ["--towers", f"{ours},qlip:A", "--towers", "dall:E", "--photos", str(place)]
    run = CliRunner().invoke(app, [*command, *asked, "-o", str(tmp_path / "out.json")])
    assert run.exit_code == 3, run.output
    assert "qlip:A (codes)" in run.stdout and "knn, whitened" in run.stdout
    assert "licence of the weights of qlip:A: MIT" in run.stdout
    said = run.stderr.strip().splitlines()[-1]  # on a slow machine after a line of progress
    assert said == "viq: failed: dall:E: no peer is called 'dall'"
    saved = json.loads((tmp_path / "out.json").read_text())
    assert saved["towers"].keys() == {str(ours), "qlip:A"}
    run = CliRunner().invoke(app, [*command[:2], *command[4:], "--towers", "qlip:A", "--json"])
    result = json.loads(run.stdout)
    assert run.exit_code == 0 and result["settings"]["seeds"] == 5 and result["photos"] is None
    assert result["towers"]["qlip:A"]["codes"].keys() == {"answers", "channels", "tokens"}
    run = CliRunner().invoke(app, [*command, "--photos", str(place)])
    assert run.exit_code == 2 and "--photos: give --towers too" in run.stderr
