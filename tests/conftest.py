"""Shared settings: no test depends on how busy the machine is, none writes outside tmp folders."""

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import configuration, settings

configuration.set_hypothesis_home_dir(tempfile.gettempdir() + "/viq-hypothesis")
settings.register_profile("viq", deadline=None, database=None)
settings.load_profile("viq")


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real pictures, or a skip that says why."""
    folder = os.environ.get("VIQ_DATA")
    if not folder:
        pytest.skip("needs real pictures: set VIQ_DATA to their folder")
    return Path(folder)


@pytest.fixture(scope="session")
def debug_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole training run, of all stages; not to be written to.

    Beside it lie `pictures/`, of which one is broken, and `talk.jsonl`, of which line 1 is wrong.
    """
    import tiny
    from typer.testing import CliRunner

    from viq.cli import app

    folder = tmp_path_factory.mktemp("debug")
    (folder / "pictures").mkdir()
    for number in range(12):
        tiny.picture(number, 90, 120).save(folder / "pictures" / f"{number}.png")
    (folder / "pictures" / "3.png").write_bytes(b"no picture")
    bad, good = (1, ("<image><image>q", "a")), (1, ("<image>What?", "A picture."))
    tiny.write_chats(folder / "talk.jsonl", [bad, *[good] * 11])
    inputs = ["--data", folder / "pictures", "--data", folder / "talk.jsonl"]
    result = CliRunner().invoke(
        app, ["train", "debug", *map(str, inputs), "--out", str(folder / "run"), "--json"]
    )
    assert result.exit_code == 0, result.output
    (folder / "printed.json").write_text(result.stdout)
    return folder / "run"
