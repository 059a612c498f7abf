"""Sequences of codes from a store of many shards: few of them are at hand at a time."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tiny

from viq.core.codes import Codes
from viq.data.batching.code_batches import CodeCorpus, CodeDataConfig, CodeStream, open_stores
from viq.data.batching.generation_batches import PairCorpus, open_pairs
from viq.data.batching.mixture import Mixture, Part
from viq.data.text.chat_format import ChatConfig
from viq.store.cache import ShardCache
from viq.store.columns import Extras
from viq.store.dataset import CodeDataset
from viq.store.folder import INDEX, Index, Shard, shard_name
from viq.store.rows import CodesWriter, StoreInfo

INFO = StoreInfo(model="viq-test", fingerprint="00000000000000ab", levels=(8, 8, 8, 5, 5, 5))
SHARDS, SAMPLES, BLOCK = 12, 20, 50


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of samples with a caption; the first code of each is its number."""
    folder = tmp_path_factory.mktemp("store")
    extras = Extras.inferred([{"caption": "words"}])
    listed = []
    for place in range(SHARDS):
        path, inputs = folder / shard_name(place), (place * SAMPLES, (place + 1) * SAMPLES)
        with CodesWriter(path, INFO, extras) as writer:
            for number in range(*inputs):
                codes = Codes(np.full((1, 1, 4), number, np.uint16), (16, 16), 0, INFO.fingerprint)
                writer.add(f"{number}", codes, 0, extras.pack({"caption": "a" * (number % 7 + 1)}))
        size = path.stat().st_size
        listed.append(Shard(name=path.name, rows=SAMPLES, inputs=inputs, bytes=size, sha256=""))
    rows = SHARDS * SAMPLES
    totals = {"rows": rows, "failures": 0}
    index = Index(info=INFO, inputs=rows, shards=tuple(listed), totals=totals)
    (folder / INDEX).write_bytes(index.to_json())
    return folder


def opened(store: Path, cache: Path) -> CodeCorpus:
    return open_stores([store], "train", cache=cache)[0]


def test_a_corpus_knows_what_each_shard_has_of_its_split(store: Path, tmp_path: Path) -> None:
    train, held = (open_stores([store], s, cache=tmp_path)[0] for s in ("train", "held-out"))  # type: ignore[arg-type]
    both = np.add(train.samples, held.samples)
    assert both.tolist() == [SAMPLES] * SHARDS and sum(train.samples) == train.length
    keys = [int(train.row(index).key) for index in range(train.length)]
    assert train.samples == [Counter(k // SAMPLES for k in keys)[n] for n in range(SHARDS)]


def test_an_epoch_unpacks_each_shard_once_though_few_fit_the_cache(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room for the shards of two blocks: that which is read, and that which is read ahead."""
    corpus = opened(store, tmp_path / "cache")
    shards: ShardCache = corpus.source.data._shards  # type: ignore[attr-defined]
    in_use = 2 * (BLOCK // SAMPLES + 1)
    monkeypatch.setattr(shards, "max_bytes", in_use * shards[0].nbytes)
    unpacked, unpack = list[str](), shards._unpack
    monkeypatch.setattr(
        shards, "_unpack", lambda shard, path: (unpacked.append(shard.name), unpack(shard, path))
    )
    lanes = 3
    config = CodeDataConfig(
        gradient_accumulation=lanes, tokens=80, chat=ChatConfig(system="", max_length=80)
    )
    mixture = Mixture([Part(corpus=corpus, weight=1)], seed=0, lanes=lanes, block=BLOCK)
    stream = CodeStream(config, mixture, lanes=range(lanes), tokenizer=tiny.letters())
    seen: Counter[int] = Counter()
    for micros, reached in stream.steps(0, 10**6):
        seen.update(number for micro in micros for number in micro.codes_TS[:, 0].tolist())
        if len(set(unpacked)) < SHARDS - 1:  # the first is there already
            most = max(position.taken[0] for position in reached.values()) * lanes
            assert len(set(unpacked)) <= SHARDS * most // corpus.length + in_use
        if min(position.taken[0] for position in reached.values()) * lanes > corpus.length:
            break
    assert len(seen) == corpus.length and max(seen.values()) <= 2
    again = Counter(unpacked)  # some by the next epoch, which is read ahead
    assert len(again) >= SHARDS - 1 and again.total() <= SHARDS + in_use


def test_training_has_the_order_of_the_data_set(store: Path, tmp_path: Path) -> None:
    corpus = PairCorpus([open_pairs(store, tmp_path)])
    mixture = Mixture([Part(corpus=corpus, weight=1)], seed=3, lanes=1, block=BLOCK)
    data = CodeDataset(store, shuffle=3, block=BLOCK, cache=tmp_path)
    wanted = [sample.codes[0] for _ in range(2) for sample in data]
    position, found = mixture.start(), []
    for _ in range(2 * corpus.length):
        _, index, position = mixture.draw(0, position)
        found.append(corpus.pair(index).codes)
    assert found == wanted and len(wanted) == 2 * SHARDS * SAMPLES
