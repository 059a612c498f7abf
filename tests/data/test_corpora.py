"""Examples by index: who is held out, what passes a filter, what becomes of labels and captions."""

import json
import random
import tarfile
import zlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
import torch

from viq.core.types import ViqError
from viq.data.batching.crops import CropConfig, make_batch
from viq.data.corpora.corpora import RowCorpus, open_corpora
from viq.data.corpora.photos import Photos
from viq.data.corpora.synthetic_corpus import SyntheticCorpus
from viq.data.sources.open import open_source
from viq.data.text.conversations import ConversationError


def table(path: Path, rows: int = 40, **columns: list[Any]) -> Path:
    """A Parquet file of pictures with keys, and the columns given."""
    keys = [f"{path.stem}-{i}" for i in range(rows)]
    images = [tiny.png(tiny.picture(i)) for i in range(rows)]
    pq.write_table(pa.table({"key": keys, "image": images, **columns}), path)
    return path


def split_of(name: str) -> Any:
    return "train" if zlib.crc32(name.encode()) % 10 else "held-out"


def keys(corpus: RowCorpus) -> list[str]:
    return [corpus.row(i).key for i in range(corpus.length)]


def rng() -> random.Random:
    return random.Random(1)


def test_a_tenth_is_held_out_by_key_and_wherever_a_row_stands(tmp_path: Path) -> None:
    rows = 200
    path = table(tmp_path / "a.parquet", rows)
    (train,), (held,) = open_corpora([path], "train"), open_corpora([path], "held-out")
    assert sorted(keys(train) + keys(held)) == sorted(f"a-{i}" for i in range(rows))
    assert 10 <= held.length <= 32
    backwards = tmp_path / "b.parquet"
    pq.write_table(pq.read_table(path).take(list(range(rows))[::-1]), backwards)
    assert keys(open_corpora([backwards], "held-out")[0]) == keys(held)[::-1]


def held_out(place: str | Path) -> list[tuple[int, int, int]]:
    """The first pixels of held-out pictures, which tell one from another."""
    (corpus,) = open_corpora([place], "held-out")
    return sorted(corpus.row(i).open().getpixel((0, 0)) for i in range(corpus.length))  # type: ignore[misc]


def test_pictures_are_held_out_however_their_folder_is_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    names = [f"{'deep/' if i % 3 == 0 else ''}{i}.png" for i in range(60)]
    for number, name in enumerate(names):
        tiny.picture(number).save(folder / name)
    expected = held_out(folder)
    assert 2 <= len(expected) <= 15
    monkeypatch.chdir(tmp_path)
    for place in ("photos", "./photos/", "photos/deep/..", "../" + tmp_path.name + "/photos"):
        assert held_out(place) == expected
    monkeypatch.chdir(folder)
    assert held_out(".") == expected
    folder.rename(tmp_path / "moved")
    assert held_out(tmp_path / "moved") == expected
    # Lists, relative or not, hold out the same; and so do files one by one, but for their folder.
    for number, prefix in enumerate(("", "./", f"{tmp_path}/moved/", "deep/../")):
        path = tmp_path / "moved" / f"list{number}.txt"
        path.write_text("".join(f"{prefix}{name}\n" for name in names))
        assert held_out(path) == expected
    flat = [(i, name) for i, name in enumerate(names) if "/" not in name]
    chosen = [tiny.picture(i).getpixel((0, 0)) for i, _ in flat]
    assert held_out(f"{tmp_path}/moved/*.png") == [p for p in expected if p in chosen]


def test_tables_and_shards_of_one_name_are_held_out_wherever_they_lie(tmp_path: Path) -> None:
    def texts(place: Path) -> list[str]:
        (corpus,) = open_corpora([place], "held-out")
        return [corpus.row(i).extras["caption"] for i in range(corpus.length)]

    for place in ("here", "there"):
        for part in ("a", "b"):
            folder = tmp_path / place / "tables" / part
            folder.mkdir(parents=True)
            captions = [f"{part}{i}" for i in range(30)]
            images = [tiny.png(tiny.picture(0))] * 30
            pq.write_table(pa.table({"image": images, "caption": captions}), folder / "x.parquet")
            folder = tmp_path / place / "shards" / part
            folder.mkdir(parents=True)
            with tarfile.open(folder / "x.tar", "w") as tar:
                for i in range(30):
                    (tmp_path / f"{i}.txt").write_text(f"{part}{i}")
                    tar.add(tmp_path / f"{i}.txt", f"{i}.txt")
    for kind in ("tables", "shards"):
        assert texts(tmp_path / "here" / kind) == texts(tmp_path / "there" / kind) != []


def test_keys_of_tables_and_their_split_stay_as_they_were(tmp_path: Path) -> None:
    """Models were tested on rows that these very keys held out."""
    path = table(tmp_path / "a.parquet", 60)
    source = open_source(path)
    assert list(source.keys()) == list(source.names()) == [f"a-{i}" for i in range(60)]
    (held,) = open_corpora([path], "held-out")
    assert keys(held) == [f"a-{i}" for i in range(60) if zlib.crc32(b"a-%d" % i) % 10 == 0]
    numbered = tmp_path / "n.parquet"
    pq.write_table(pq.read_table(path).drop_columns("key"), numbered)
    assert list(open_source(numbered).names())[:2] == ["n.parquet:0", "n.parquet:1"]


def test_drawings_are_held_out_too() -> None:
    train, held = SyntheticCorpus("scene", "train"), SyntheticCorpus("scene", "held-out")
    one, again, other = (c.example(3, rng()) for c in (train, train, held))
    assert one.pictures == again.pictures and one.chat.turns == again.chat.turns
    assert one.pictures != other.pictures
    assert one.chat.turns[0].text.startswith("<image>\n")
    assert sum(turn.text.count("<image>") for turn in one.chat.turns) == 1
    assert len(one.kinds) == len(one.chat.turns) // 2
    assert all(kind.startswith("scene/") for kind in one.kinds)
    assert one.caption and train.key(3) == one.chat.where == "scene:3"
    width, height = (
        SyntheticCorpus("word", "train", sides=(50, 50)).example(0, rng()).pictures[0].size
    )
    assert (width, height) == (50, 50)


def test_only_rows_that_pass_and_damaged_ones_are_listed(tmp_path: Path) -> None:
    lines = [json.dumps({"licence": "cc0" if i % 2 else "nc", "text": "x"}) for i in range(60)]
    lines[7] = "{broken"
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(lines))
    source, where = open_source(path), {"licence": "cc0"}
    corpora = [RowCorpus("a", source, split, where=where) for split in ("train", "held-out")]
    passing = [int(key.partition(":")[2]) - 1 for corpus in corpora for key in keys(corpus)]
    assert sorted(passing) == [i for i in range(60) if i % 2 and i != 7]
    (skipped,) = [entry for corpus in corpora for entry in corpus.skipped]
    assert skipped[0] == "a:7" and "a.jsonl:8: is not JSON" in skipped[1]
    with pytest.raises(ViqError, match=r"no row of the data passes \{'licence': 'mit'\}"):
        open_corpora([path], "train", where={"licence": "mit"})


def test_too_few_rows_to_hold_one_out(tmp_path: Path) -> None:
    with pytest.raises(ViqError, match="no row of the data falls into the held-out part"):
        open_corpora([table(tmp_path / "a.parquet", 1)], "held-out")


def test_a_label_becomes_a_question_and_a_caption(tmp_path: Path) -> None:
    labels = ["Cup", None] * 20
    (corpus,) = open_corpora([table(tmp_path / "a.parquet", label=labels)], "train")
    assert corpus.pictures_only and corpus.talks
    named = next(i for i in range(corpus.length) if corpus.row(i).extras["label"])
    example = corpus.example(named, rng())
    assert example.chat.turns[1].text == "cup"
    assert example.caption == "a photo of a cup"
    assert example.kinds == ("a/label",)
    blank = next(i for i in range(corpus.length) if not corpus.row(i).extras["label"])
    with pytest.raises(ConversationError, match=r"a.parquet:a-\d+: has neither text nor a label"):
        corpus.example(blank, rng())


def test_pairs_come_in_any_order_with_the_image_first(tmp_path: Path) -> None:
    pairs = [{"prompt": f"q{i}", "text": f"a{i}"} for i in range(4)]
    pairs.append({"prompt": "Describe it.", "text": "the caption"})
    (corpus,) = open_corpora([table(tmp_path / "a.parquet", pairs=[pairs] * 40)], "train")
    assert corpus.talks and not corpus.pictures_only
    seen = set()
    for seed in range(8):
        example = corpus.example(0, random.Random(seed))
        asked = [turn.text.removeprefix("<image>\n") for turn in example.chat.turns]
        assert example.chat.turns[0].text == f"<image>\n{asked[0]}"
        assert sorted(zip(asked[::2], asked[1::2], strict=True)) == sorted(
            (pair["prompt"], pair["text"]) for pair in pairs
        )
        assert example.caption == "the caption"
        seen.add(asked[0])
    assert len(seen) > 2
    assert "".join(corpus.texts(0, rng())).count("<image>") == 0


def test_captions_and_conversations_as_they_are(tmp_path: Path) -> None:
    path = tiny.write_chats(tmp_path / "talk.jsonl", [(1, ("<image>q", "a"))] * 30)
    (corpus,) = open_corpora([path], "train")
    example = corpus.example(0, rng())
    assert [turn.text for turn in example.chat.turns] == ["<image>q", "a"]
    assert example.caption is None
    captions = [["one", "two"]] * 40
    (corpus,) = open_corpora([table(tmp_path / "a.parquet", caption=captions)], "train")
    answers = {corpus.example(0, random.Random(i)).chat.turns[1].text for i in range(20)}
    assert answers == {"one", "two"}
    assert corpus.example(0, rng()).caption == "one"


def test_wrong_pairs_beside_a_conversation_do_no_harm(tmp_path: Path) -> None:
    path = tiny.write_chats(tmp_path / "a.jsonl", [(1, ("<image>q", "a"))] * 9)
    records = [{**json.loads(line), "pairs": [3]} for line in path.read_text().splitlines()]
    path.write_text("\n".join(map(json.dumps, records)))
    (corpus,) = open_corpora([path], "train")
    assert corpus.example(0, rng()).caption is None


def test_pairs_beside_a_conversation_leave_its_order(tmp_path: Path) -> None:
    said = [("system", "S"), ("human", "<image>a"), ("gpt", "1"), ("human", "b"), ("gpt", "2")]
    record = {
        "image": "gone.png",
        "conversations": [{"from": who, "value": text} for who, text in said],
        "pairs": [{"prompt": "p", "text": "t"}],
    }
    (tmp_path / "d.jsonl").write_text(json.dumps(record) + "\n")
    corpus = RowCorpus("d", open_source(tmp_path / "d.jsonl"), split_of("d.jsonl:1"))
    for seed in range(5):
        chat = corpus.chat(0, random.Random(seed))
        assert [turn.text for turn in chat.turns] == [text for _, text in said]


def test_pairs_about_two_images_keep_both_marks(tmp_path: Path) -> None:
    pairs = [{"prompt": f"{n}?", "text": f"{n}!"} for n in range(3)]
    record = {"images": ["a.png", "b.png"], "pairs": pairs}
    (tmp_path / "d.jsonl").write_text(json.dumps(record) + "\n")
    corpus = RowCorpus("d", open_source(tmp_path / "d.jsonl"), split_of("d.jsonl:1"))
    chat = corpus.chat(0, random.Random(0))
    assert chat.turns[0].text.startswith("<image>\n<image>\n") and len(chat.images) == 2


def test_names_that_are_no_text_are_held_out_too(tmp_path: Path) -> None:
    (tmp_path / "d.txt").write_bytes(b"\xff\xfe.png\n")
    source = open_source(tmp_path / "d.txt")
    assert sum(RowCorpus("d", source, split).length for split in ("train", "held-out")) == 1


def test_numbered_shards_are_one_corpus_and_other_files_one_each(tmp_path: Path) -> None:
    for name in ("x-00000-of-00002", "x-00001-of-00002", "y_1"):
        table(tmp_path / f"{name}.parquet", 30)
    corpora = open_corpora([tmp_path], "train")
    assert [corpus.name for corpus in corpora] == ["x", "y"]
    assert {key.partition("-0")[0] for key in keys(corpora[0])} == {"x"}
    assert corpora[0].length > 40 > corpora[1].length


def test_plain_pictures_do_not_talk_and_codes_beside_them_are_no_data(tmp_path: Path) -> None:
    tiny.picture(0).save(tmp_path / "a.png")
    for i in range(12):
        tiny.picture(i).save(tmp_path / f"{i}.png")
    codes = pa.table({"key": ["a"], "codes": [[1, 2]]}).replace_schema_metadata(
        {"viq.fingerprint": "0" * 16}
    )
    pq.write_table(codes, tmp_path / "codes.parquet")
    (corpus,) = open_corpora([tmp_path], "train")
    assert corpus.pictures_only and not corpus.talks
    assert all(key.endswith(".png") for key in keys(corpus))


def test_photos_are_opened_once_and_broken_ones_listed(tmp_path: Path) -> None:
    images = [tiny.png(tiny.picture(i)) for i in range(30)]
    images[4] = b"no picture"
    path = tmp_path / "p.parquet"
    pq.write_table(pa.table({"key": [f"k{i}" for i in range(30)], "image": images}), path)
    corpus = RowCorpus("p", open_source(path), "train")
    photos = Photos([corpus])
    assert len(photos) == corpus.length - 1
    assert photos[0] is photos[0]
    assert [key for key, _ in photos.skipped] == ["p:4"]
    assert "p.parquet:k4" in photos.skipped[0][1]
    assert photos[0].size == (36, 20)


def photo_corpus(tmp_path: Path) -> RowCorpus:
    """Some 36 pictures of 36x20 px: 2,880 bytes each in memory."""
    return RowCorpus("p", open_source(table(tmp_path / "p.parquet")), "train")


@pytest.mark.parametrize("limit", [0, 3000, 10_000])
def test_photos_beyond_the_limit_leave_and_come_back_the_same(tmp_path: Path, limit: int) -> None:
    corpus = photo_corpus(tmp_path)
    photos, everything = Photos([corpus], limit), Photos([corpus])
    assert len(photos) == len(everything) == corpus.length
    assert everything.nbytes == 4 * 36 * 20 * corpus.length
    crops = CropConfig(
        sides={2: 1, 5: 1}, patches_per_group=16, patches_per_step=60, synthetic_ratio=0
    )
    for step in range(6):
        few, all_ = (make_batch(p, crops, 1, step).batch for p in (photos, everything))
        assert torch.equal(few.patches_TD, all_.patches_TD) and few.grids_hw == all_.grids_hw
        assert 0 < photos.nbytes <= max(limit, 2880)


def test_the_photo_that_was_not_used_for_longest_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = photo_corpus(tmp_path)
    photos = Photos([corpus], limit=3 * 2880)
    opened: list[int] = []
    row = corpus.row
    monkeypatch.setattr(corpus, "row", lambda index: opened.append(index) or row(index))
    for index in (0, 1, 2, 0, 3, 0, 2, 1):  # 3 takes the place of 1, 1 that of 3
        photos[index]
    assert opened == [0, 1, 2, 3, 1]
    assert photos[0] is photos[0] and photos[0].tobytes() == row(0).open().tobytes()


def test_a_photo_that_is_gone_later_is_one_line(tmp_path: Path) -> None:
    for number in range(12):
        tiny.picture(number).save(tmp_path / f"{number}.png")
    (corpus,) = open_corpora([tmp_path], "train")
    photos = Photos([corpus], limit=0)
    Path(corpus.row(0).key).unlink()
    with pytest.raises(ViqError, match=r"\.png: does not exist") as error:
        photos[0]
    assert "\n" not in str(error.value)
