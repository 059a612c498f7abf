"""Output folders may be named by text, as in all of Python: only what has :// is a URL."""

from __future__ import annotations

import json
from pathlib import Path

from refined import plain_tokenizer, saved_pictures

from viq.data.sources.open import open_source
from viq.jobs.decode import decode_files
from viq.jobs.encode import encode
from viq.jobs.store.add_columns import add_columns
from viq.jobs.store.import_codes import import_codes
from viq.jobs.store.merge import export_webdataset, merge
from viq.store.folder import Store


def test_text_names_a_folder_here(tmp_path: Path) -> None:
    pictures, tokenizer = saved_pictures(tmp_path / "pictures", 2), plain_tokenizer()
    store = str(tmp_path / "store")
    encode(tokenizer, open_source(str(pictures)), store)
    assert len(decode_files(tokenizer, [store], str(tmp_path / "decoded")).outputs) == 2
    assert merge([store], str(tmp_path / "merged"))["rows"] == 2
    table = tmp_path / "captions.jsonl"
    keys = [row.key for row in Store(store).rows()]
    lines = [json.dumps({"key": key, "caption": "a scene"}) for key in keys]
    table.write_text("\n".join(lines))
    add_columns(store, open_source(str(table)), str(tmp_path / "told"))
    export_webdataset(store, str(tmp_path / "tars"))
    encode(tokenizer, open_source(str(pictures / "0.png")), str(tmp_path / "one.viq"))
    import_codes([tmp_path / "one.viq"], str(tmp_path / "imported"), Store(store).info)
    for name in ("merged", "told", "imported"):
        assert Store(tmp_path / name).has_index
    assert list((tmp_path / "tars").glob("*.tar"))
