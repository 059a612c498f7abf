"""How far a job is: by megapixels where they are known, in lines where there is no terminal."""

import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from viq.cli import progress
from viq.cli.progress import Advance
from viq.data.sources.base import ImageBytes, Row, Source
from viq.data.sources.files import FileSource
from viq.image.open import ImageError
from viq.image.patches import PatchBatch
from viq.jobs import pipeline, threads
from viq.jobs.encode import encode
from viq.jobs.pipeline import EncodeOptions, Pipeline, Task
from viq.store.columns import Extras


def test_the_whole_is_guessed_from_what_was_opened() -> None:
    advance = Advance(10)
    assert str(advance) == "0 of 10" and advance.expected == 0
    advance(4)  # done before
    advance.opened(1_000_000)
    advance.opened(3_000_000)
    assert advance.expected == 12  # six to do, of 2 megapixels each
    advance.encoded(2_500_000)
    assert str(advance) == "4 of 10, 2.5 of about 12.0 megapixels"


@pytest.mark.parametrize("packed", [0, 8])
def test_tiles_move_it(tmp_path: Path, packed: int) -> None:
    for name in "ab":
        Image.fromarray(np.zeros((64, 96, 3), np.uint8)).save(tmp_path / f"{name}.png")
    seen: list[str] = []

    class Seen(Advance):
        def changed(self) -> None:
            seen.append(f"{self.done} {self.megapixels:.6f}")

    watch = Seen(2)
    encode(
        tiny.tokenizer(), FileSource([tmp_path]), tmp_path / "c.parquet",
        EncodeOptions(tile=32, packed=packed), workers=1, progress=watch, watch=watch,
    )  # fmt: skip
    assert watch.megapixels == pytest.approx(watch.expected) == pytest.approx(2 * 64 * 96 / 1e6)
    assert watch.done == 2
    if not packed:  # a tile is 1,024 pixels
        assert seen[:3] == ["0 0.001024", "0 0.002048", "0 0.003072"]


def test_threads_stop_within_a_tile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Closed during the first tile of a picture of 64, a pipeline finishes no other one."""
    for name, side in (("a", 16), ("b", 256)):
        Image.fromarray(np.zeros((side, side, 3), np.uint8)).save(tmp_path / f"{name}.png")
    tokenizer, begun, ended = tiny.tokenizer(), threading.Event(), 0
    ids = tokenizer.ids

    def counted(batch: PatchBatch) -> torch.Tensor:
        nonlocal ended
        found = ids(batch)
        ended += 1
        if ended == 2:
            begun.set()
            assert threads._current.here.stop.wait(60)
        return found

    monkeypatch.setattr(tokenizer, "ids", counted)
    job = Pipeline(
        tokenizer, FileSource([tmp_path]), Extras(), EncodeOptions(tile=32), workers=1
    ).run([Task(0, 0), Task(0, 1)])
    next(job)
    assert begun.wait(60)
    job.close()
    assert ended == 2


def test_without_a_terminal_there_are_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY", 0.001)
    told = threading.Event()

    class Told(Advance):
        def __str__(self) -> str:
            told.set()
            return super().__str__()

    monkeypatch.setattr(progress, "Advance", Told)
    with progress.progress("encoding", 3, hidden=False) as advance:
        advance()
        told.clear()  # of lines before
        assert told.wait(60)
    assert "encoding: 1 of 3, 0 s\n" in capsys.readouterr().err
    told.clear()
    with progress.progress("encoding", 3, hidden=True) as advance:
        advance()
    assert not told.is_set()


class _Album(Row):
    """A row that counts how many of its images are alive."""

    alive, most = 0, 0

    def open(self, index: int = 0) -> Image.Image:
        if self.key == "broken" and index == 5:
            raise ImageError(f"{self.where}, image 5: is none")
        image = Image.new("RGB", (16 + 16 * (index % 2), 16), (20 * index, 0, 0))
        _Album.alive += 1
        _Album.most = max(_Album.most, _Album.alive)
        weakref.finalize(image, self._gone)
        return image

    @staticmethod
    def _gone() -> None:
        _Album.alive -= 1


class _Albums(Source):
    has_extras = False

    def __len__(self) -> int:
        return 3

    def keys(self) -> Iterator[str]:
        return iter(["first", "broken", "last"])

    def _row(self, index: int) -> Row:
        key = self.key(index)
        return _Album(key=key, images=(ImageBytes(b""),) * 12, where=key)


@pytest.mark.parametrize(("packed", "most"), [(0, 1), (6, 4)])
def test_of_a_row_of_many_images_few_are_held(
    packed: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One on a CPU; in packs those that fill one: 4 of 6 patches, alternately of 1 and 2."""
    monkeypatch.setattr(pipeline, "_HELD", 1)
    monkeypatch.setattr(pipeline, "_AHEAD", 1)
    _Album.most = _Album.alive
    tokenizer, watch = tiny.tokenizer(), Advance(3)
    options = EncodeOptions(packed=packed)
    job = Pipeline(tokenizer, _Albums(), Extras(), options, workers=1, watch=watch)
    done = [item for number in range(3) for item in job.run([Task(0, number)])]
    assert [len(item.rows) for item in done] == [12, 0, 12]
    assert done[1].reason == "broken, image 5: is none"
    assert _Album.most <= most
    plain = tokenizer.encode([_Album(key="x", images=(ImageBytes(b""),) * 12, where="x").open(n)
                              for n in range(12)])  # fmt: skip
    if not packed:
        assert [row.codes for row in done[2].rows] == plain
    assert [row.image_index for row in done[0].rows] == list(range(12))
    patches = 36 + (6 if packed else 7)  # of the broken one: its first pack, or five images
    assert watch.megapixels * 1e6 == pytest.approx(patches * 256)
