"""Tar files at hand."""

import io
import tarfile
from pathlib import Path
from typing import Any

import pytest
from source_rows import MakeTar


@pytest.fixture
def make_tar(tmp_path: Path) -> MakeTar:
    def make(name: str, members: dict[str, bytes], **options: Any) -> Path:
        path = tmp_path / name
        with tarfile.open(path, "w", **options) as tar:
            for member, data in members.items():
                header = tarfile.TarInfo(member)
                header.size = len(data)
                if member.endswith("/"):
                    header.type = tarfile.DIRTYPE
                tar.addfile(header, io.BytesIO(data))
        return path

    return make
