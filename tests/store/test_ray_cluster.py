"""A Ray cluster of two nodes that write into an object store, of which one is killed half-way."""

from pathlib import Path
from typing import Any

import object_store
import pytest
import tiny
from killed_runs import BROKEN, INPUTS
from object_store import contents

from viq.jobs import ray_engine
from viq.jobs.encode import encode
from viq.jobs.inputs import open_inputs
from viq.jobs.pipeline import EncodeOptions

OPTIONS = EncodeOptions(shard_size=3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Ray, about this machine
def test_a_node_is_killed_half_way(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray.data")
    from ray.cluster_utils import Cluster

    model = tmp_path / "model"
    tiny.tokenizer().save_pretrained(model)
    tokenizer, inputs = tiny.tokenizer(), [str(pictures)]
    source = open_inputs(inputs)
    encode(tokenizer, source, tmp_path / "here", OPTIONS)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with object_store.s3() as bucket:
        cluster: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        try:
            doomed: Any = cluster.add_node(num_cpus=1)
            monkeypatch.setenv("RAY_ADDRESS", cluster.address)
            done = 0

            def kill() -> None:
                nonlocal done, doomed
                done += 1
                if done > INPUTS // 3 and doomed is not None:
                    node, doomed = doomed, None
                    cluster.remove_node(node, allow_graceful=False)

            report = ray_engine.encode(
                tokenizer, str(model), inputs, {}, source, f"{bucket}/ray", OPTIONS, progress=kill
            )
        finally:
            cluster.shutdown()
        assert doomed is None and done == INPUTS
        assert len(report.failures) == BROKEN
        found = contents(f"{bucket}/ray")
        for path in (tmp_path / "here").iterdir():
            assert found[path.name] == path.read_bytes()
