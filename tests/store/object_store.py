"""Object stores on this machine, and encoding into one in processes that kill themselves."""

import itertools
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest import mock

import fake_hub
import pytest
import tiny
from killed_runs import OPTIONS, PROCESSES

from viq.core.process import ALONE, Place
from viq.core.remote import RemoteFolder
from viq.data.sources.files import FileSource
from viq.data.sources.open import open_source
from viq.jobs.encode import encode

_numbers = itertools.count()  # of buckets, as moto keeps those of servers that have ended


@contextmanager
def s3() -> Iterator[str]:
    """The URL of an empty bucket of moto, which s3fs of this process and its children finds."""
    server_of = pytest.importorskip("moto.server", reason="an S3 server: pip install moto[server]")
    pytest.importorskip("s3fs", reason="reads and writes S3: pip install 'viq[s3]'")
    import fsspec

    server = server_of.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with mock.patch.dict(os.environ, settings):
        files = fsspec.filesystem("s3", skip_instance_cache=True)
        bucket = f"codes-of-tests-{next(_numbers)}"
        files.mkdir(bucket)
        type(files).clear_instance_cache()
        yield f"s3://{bucket}"
        type(files).clear_instance_cache()
    server.stop()


@contextmanager
def gs() -> Iterator[str]:
    """The URL of an empty bucket of an emulator of Google Cloud Storage, which gcsfs finds."""
    emulator = pytest.importorskip(
        "gcp_storage_emulator.server", reason="a GCS server: pip install gcp-storage-emulator"
    )
    gcsfs = pytest.importorskip("gcsfs", reason="reads and writes GCS: pip install 'viq[gs]'")
    server = emulator.create_server("127.0.0.1", 0, in_memory=True, default_bucket="bucket")
    server.start()
    host = f"http://127.0.0.1:{server._api._httpd.server_port}"
    with mock.patch.dict(os.environ, {"STORAGE_EMULATOR_HOST": host}):
        gcsfs.GCSFileSystem.clear_instance_cache()
        yield "gs://bucket"
        gcsfs.GCSFileSystem.clear_instance_cache()
    server.stop()


@contextmanager
def hf() -> Iterator[str]:
    """The URL of an empty data set of a stand-in for the hub."""
    from huggingface_hub import HfFileSystem

    with fake_hub.hub("owner/name") as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ENDPOINT", server.url)
        patch.setenv("HF_TOKEN", "hf_test")
        _take_hub(patch)
        yield "hf://datasets/owner/name"
        HfFileSystem.clear_instance_cache()


def _take_hub(patch: pytest.MonkeyPatch) -> None:
    """Go to the hub at HF_ENDPOINT, which huggingface_hub reads when it is imported only."""
    from huggingface_hub import HfFileSystem, constants

    place = constants.HUGGINGFACE_CO_URL_TEMPLATE.removeprefix(constants.ENDPOINT)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", os.environ["HF_ENDPOINT"] + place)
    patch.setattr(constants, "ENDPOINT", os.environ["HF_ENDPOINT"])
    HfFileSystem.clear_instance_cache()


STORES = {"s3": s3, "gs": gs, "hf": hf}


def contents(url: str) -> dict[str, bytes]:
    """The files below a URL, by name."""
    folder = RemoteFolder(url)
    return {name: folder.read(name, 1 << 30) or b"" for name in folder.sizes(deep=True)}


def job(
    pictures: Path | str,
    out: str,
    settings: dict[str, str],
    begun: Connection,
    die_at: int,
    place: Place,
) -> None:
    """Encode into a URL; dies before or after a change there, the given one, if it is not -1."""
    os.environ.update(settings)
    if "HF_ENDPOINT" in settings:
        _take_hub(pytest.MonkeyPatch())  # for good: this process ends with the job
    left = die_at

    def or_die(change: Callable[..., Any]) -> Callable[..., Any]:
        def do(*arguments: Any) -> Any:
            nonlocal left
            if left == 1:
                change(*arguments)
            if left in (0, 1):
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 2
            return change(*arguments)

        return do

    if die_at >= 0:
        for name in ("put", "write", "create"):
            setattr(RemoteFolder, name, or_die(getattr(RemoteFolder, name)))
    begun.send(True)
    source = open_source(pictures) if isinstance(pictures, str) else FileSource([pictures])
    encode(tiny.tokenizer(), source, out, OPTIONS, place=place)


def run(pictures: Path | str, out: str, die_at: int = -1, place: Place = ALONE) -> int:
    """The exit code of `job`."""
    here, there = PROCESSES.Pipe()
    ours = ("AWS", "HF", "STORAGE", "XDG")
    settings = {name: value for name, value in os.environ.items() if name.startswith(ours)}
    process = PROCESSES.Process(target=job, args=(pictures, out, settings, there, die_at, place))
    process.start()
    here.recv()
    process.join()
    assert process.exitcode is not None
    return process.exitcode
