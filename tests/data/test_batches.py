"""Micro-batches: what lies where in one, what is counted, and a stream that can be cut anywhere."""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from viq.core.types import IMAGE_TOKEN
from viq.data.batching.crops import CropConfig
from viq.data.batching.mixture import Mixture, Part, Position
from viq.data.batching.tokenizer_batches import (
    BatchStream,
    DataConfig,
    MicroBatch,
    asked_size,
    images_of,
)
from viq.data.corpora.corpora import Corpus, Example, RowCorpus
from viq.data.corpora.synthetic_corpus import SyntheticCorpus
from viq.data.sources.open import open_source
from viq.data.text.chat_format import ChatConfig
from viq.data.text.conversations import Conversation, ConversationError, Turn
from viq.image.patches import normalize

LETTERS = tiny.letters()
TALK = DataConfig(chat=ChatConfig(system=""), tokens=600, patches=64)
CROPS = CropConfig(sides={1: 1, 2: 1}, patches_per_group=3, patches_per_step=5)
SIZES = [(20, 36), (17, 16), (40, 10)]  # 2x3, 2x1 and 3x1 patches


class Album:
    """Example i has the pictures of these numbers, a question with their marks, and a caption."""

    name, length, samples = "album", None, None

    def __init__(self, *pictures: Sequence[int]) -> None:
        self.pictures = pictures

    def key(self, index: int) -> str:
        return f"album:{index}"

    def example(self, index: int, rng: random.Random) -> Example:
        numbers = self.pictures[index % len(self.pictures)]
        question = "<image>" * len(numbers) + "q"
        turns = (Turn(role="user", text=question), Turn(role="assistant", text=f"a{index}"))
        pictures = tuple(tiny.picture(n, *SIZES[n]) for n in numbers)
        chat = Conversation(
            turns=turns, images=pictures, resize=(None,) * len(numbers), key="", where="album"  # type: ignore[arg-type]
        )  # fmt: skip
        caption = f"caption {index}" if index % 2 == 0 else None
        return Example(chat=chat, pictures=pictures, kinds=("album",), caption=caption)


def stream(
    config: DataConfig, *corpora: Corpus, tokenizer: Any = LETTERS, lanes: Sequence[int] = (0,),
    positions: Mapping[int, Position] | None = None, threads: int = 1,
) -> BatchStream:  # fmt: skip
    parts = [Part(corpus=corpus, weight=1) for corpus in corpora]
    mixture = Mixture(parts, seed=5, lanes=config.gradient_accumulation) if corpora else None
    return BatchStream(
        config,
        mixture,
        seed=5,
        lanes=lanes,
        tokenizer=tokenizer,
        positions=positions,
        threads=threads,
    )


def first(made: BatchStream) -> MicroBatch:
    ((micros, _),) = made.steps(0, 1)
    return micros[0]


def equal(a: MicroBatch, b: MicroBatch) -> bool:
    same = torch.equal(a.batch.patches_TD, b.batch.patches_TD) and a.sizes == b.sizes
    if a.text and b.text:
        same &= torch.equal(a.text.ids_L, b.text.ids_L)
        same &= torch.equal(a.text.targets_L, b.text.targets_L)
    return same and torch.equal(a.mask_TD, b.mask_TD) and a.captions == b.captions


def test_images_of_conversations_come_first_then_crops() -> None:
    micro = first(stream(replace(TALK, tokens=70, crops=CROPS), Album([0, 1], [2])))
    assert micro.sizes[:3] == ((20, 36), (17, 16), (40, 10))
    assert micro.batch.grids_hw[:3] == ((2, 3), (2, 1), (3, 1))
    assert micro.text_images == 3 < len(micro.sizes)
    for number, pixels in enumerate(images_of(micro)[:3]):
        expected = normalize(np.asarray(tiny.picture(number, *SIZES[number])))
        assert torch.equal(pixels, expected)
    assert micro.mask_TD.sum() == 3 * sum(h * w for h, w in micro.sizes)
    assert float(micro.batch.patches_TD[micro.mask_TD == 0].abs().max()) == 0
    assert micro.text is not None
    # 2x2 windows: 2x3 patches take 2 tokens, a line end, a begin and an end; 2x1 take 1 + 3; ...
    head, tail = len("{user/q}/{assistant/"), len("a0}/")
    assert len(micro.text.ids_L) == 2 * (head + tail) + (5 + 4) + 6
    assert int((micro.text.ids_L == IMAGE_TOKEN).sum()) == 15
    assert micro.captions == ("caption 0", "", "") + ("",) * (len(micro.sizes) - 3)
    assert micro.counts == {
        "answers": 2 * len("a0}"),
        "tokens": len(micro.text.ids_L),
        "images": len(micro.sizes),
        "patches": len(micro.batch.patches_TD),
        "captions": 1,
    }
    assert micro.to(torch.device("cpu")).counts == micro.counts


def test_crops_alone() -> None:
    micro = first(stream(replace(TALK, crops=CROPS), tokenizer=None))
    assert micro.text is None and micro.text_images == 0
    assert micro.counts["answers"] == micro.counts["captions"] == 0
    assert micro.counts["patches"] >= 5


def test_without_a_text_tokenizer_captions_remain() -> None:
    micro = first(stream(replace(TALK, patches=14), Album([0], [1, 2]), tokenizer=None))
    assert micro.text is None and micro.text_images == 0
    assert micro.sizes == ((20, 36), (17, 16), (40, 10))
    assert micro.captions == ("caption 0", "", "")


@pytest.mark.parametrize(
    ("size", "resize", "expected"),
    [
        ((1920, 1280), "768x16", (928, 624)),  # 58x39 patches, as in the official code
        ((1920, 1280), "768x1", (940, 627)),
        ((100, 100), "896x14", (896, 896)),  # enlarged
        ((300, 100), "96x16", (160, 48)),
        ((9000, 3), "96x16", (5248, 16)),  # no side is below the multiple
        ((1920, 1280), "384x0", (384, 384)),
        ((1920, 1280), "384x-1", (384, 384)),
        ((50, 60), [640, 64], (640, 64)),
        ((50, 60), [4000, 1000], (2000, 500)),  # the area of the stage
        ((300, 300), "5000x16", (992, 992)),
        ((300, 100), "5000x0", (1000, 1000)),
    ],
)
def test_sizes_that_records_ask_for(
    size: tuple[int, int], resize: Any, expected: tuple[int, int]
) -> None:
    assert asked_size(size, resize, 1000, "a.jsonl:1") == expected


@pytest.mark.parametrize(
    "resize", ["", "896", "x14", "0x14", "16x99", "1e3x1", 896, [640], [640, 63], [64.0, 64], {}]
)
def test_sizes_that_are_none(resize: Any) -> None:
    with pytest.raises(ConversationError, match='^a.jsonl:1: resize is .*; write "SIDE') as error:
        asked_size((100, 100), resize, 1000, "a.jsonl:1")
    assert "\n" not in str(error.value)


def test_images_of_the_official_data_come_in_the_size_they_ask_for(tmp_path: Path) -> None:
    path = tiny.write_chats(tmp_path / "a.jsonl", [(3, ("<image><image><image>q", "a"))] * 3)
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record in records:  # pictures of 36x20 px
        record["image"][0]["resize"] = "96x16"
        record["image"][1]["resize"] = [64, 80]
    records[1]["image"][2]["resize"] = "large"
    path.write_text("\n".join(map(json.dumps, records)))
    corpus = RowCorpus("a", open_source(path), "train")
    assert corpus.length == 3
    made = stream(replace(TALK, patches=300, max_side=96), corpus)
    micro = first(made)
    assert set(micro.sizes) == {(64, 128), (80, 64), (20, 36)}
    assert micro.sizes[:3] == ((64, 128), (80, 64), (20, 36))
    wide = Image.open(tmp_path / "a-0-0.png").resize((128, 64), Image.Resampling.BILINEAR)
    assert any(torch.equal(p, normalize(np.asarray(wide))) for p in images_of(micro))
    assert made.skipped.reasons.keys() == {"a:1"}
    assert "a.jsonl:2: resize is 'large'" in made.skipped.reasons["a:1"]
    small = first(stream(replace(TALK, patches=300, max_side=48), corpus)).sizes
    assert set(small) == {(32, 64), (53, 42), (20, 36)}  # the stage's area goes first


def test_images_shrink_to_the_area_and_never_grow() -> None:
    wide = tiny.picture(0, 40, 160)

    def fitted(**changes: Any) -> tuple[int, ...]:
        return stream(replace(TALK, **changes))._fit(wide).shape

    assert fitted(max_side=80) == (40, 160, 3)
    assert fitted(max_side=40) == (20, 80, 3)
    assert fitted(max_side=40, multiple=16) == (16, 80, 3)
    assert fitted(max_side=384, multiple=16) == (32, 160, 3)
    small = stream(replace(TALK, multiple=32))._fit(tiny.picture(0, 5, 33))
    assert small.shape == (32, 32, 3)  # at least one multiple
    same = stream(TALK)._fit(wide)
    assert np.array_equal(same, np.asarray(wide))


def test_budgets_of_tokens_and_patches() -> None:
    for budget in ({"tokens": 90}, {"patches": 9}):
        made = stream(replace(TALK, **budget), Album([0], [1]))
        counts = [micros[0].counts for micros, _ in made.steps(0, 12)]
        assert all(c[name] <= limit for c in counts for name, limit in budget.items())
        assert max(c["images"] for c in counts) > 1


def test_what_cannot_be_used_is_listed_with_file_and_line(tmp_path: Path) -> None:
    good = (1, ("<image>q", "a"))
    bad = [
        (1, ("<image><image>q", "a")),
        (0, ("only text", "a")),
        (1, ("<image>" + "q" * 700, "a")),
        (2, ("a", "b", "<image><image>" + "c" * 700, "d")),
        (1, ("<image>q", "a")),
    ]
    path = tiny.write_chats(tmp_path / "talk.jsonl", [*bad, *[good] * 30])
    (tmp_path / "talk-4-0.png").write_bytes(b"no picture")
    corpora = [RowCorpus("talk", open_source(path), split) for split in ("train", "held-out")]
    made = stream(replace(TALK, chat=ChatConfig(system="", max_length=600)), *corpora)
    assert all(micros[0].text_images for micros, _ in made.steps(0, 12))
    reasons = made.skipped.reasons
    assert set(reasons) == {f"talk:{i}" for i in range(5)}
    where = "talk.jsonl:"
    assert reasons["talk:0"].startswith(
        where + "1: has more <image> placeholders than images (2 placeholders, 1"
    )
    assert reasons["talk:1"].startswith(where + "2: has no image")
    assert reasons["talk:2"].startswith(where + "3: its first question and answer take more than")
    assert reasons["talk:3"].startswith(where + "4: has no image in the part that fits")
    assert where + "5" in reasons["talk:4"]


def test_a_pair_that_is_cut_off_takes_its_images_along() -> None:
    class Long(Album):
        def example(self, index: int, rng: random.Random) -> Example:
            short = super().example(0, rng)
            chat = short.chat
            more = (Turn(role="user", text="<image>" + "x" * 90), Turn(role="assistant", text="y"))
            images = (*chat.images, chat.images[0])
            chat = replace(chat, turns=chat.turns + more, images=images, resize=(None, None))
            return replace(short, chat=chat, pictures=short.pictures * 2)

    config = replace(TALK, chat=ChatConfig(system="", max_length=100), patches=6)
    micro = first(stream(config, Long([0])))
    assert len(micro.sizes) == micro.text_images == 1
    assert micro.text is not None and int((micro.text.ids_L == IMAGE_TOKEN).sum()) == 5


@pytest.mark.parametrize("threads", [1, 4])
def test_a_stream_goes_on_from_any_step(threads: int) -> None:
    config = replace(
        TALK, gradient_accumulation=2, tokens=500, patches=30, crops=CROPS, synthetic_sides=(32, 40)
    )
    corpora = SyntheticCorpus("scene", "train", sides=(32, 40)), Album([0], [1, 2])
    both = list(stream(config, *corpora, lanes=(0, 1)).steps(0, 4))
    for step in range(1, 4):
        positions = both[step - 1][1]
        made = stream(config, *corpora, lanes=(0, 1), positions=positions, threads=threads)
        for (micros, reached), (expected, then) in zip(
            made.steps(step, 4), both[step:], strict=True
        ):
            assert all(map(equal, micros, expected)) and reached == then
    # Each of two processes has one of the lanes.
    for lane in (0, 1):
        for (micros, _), (expected, _) in zip(
            stream(config, *corpora, lanes=(lane,)).steps(0, 4), both, strict=True
        ):
            assert equal(micros[0], expected[lane])


def test_positions_are_plain_data() -> None:
    ((_, positions),) = stream(TALK, Album([0])).steps(0, 1)
    assert json.loads(json.dumps(positions[0].as_json())) == positions[0].as_json()
    assert positions[0].taken == (positions[0].drawn,)
