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
