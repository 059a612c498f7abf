"""The bench of ways to store codes: what it counts, and what it compares."""

import numpy as np
import pytest
from tiny_entropy import LEVELS, STAMP, class_tables, level_network, usual_codes

from viq.bench.packing import packing, untrained_network
from viq.bench.store_tables import _packing

pytest.importorskip("constriction")


def test_bits_are_those_of_the_payloads_and_other_models_are_compared() -> None:
    codes = [usual_codes((200, 300), i) for i in range(2)]
    model, old = class_tables(), level_network()
    found = packing(codes, model, 1, {"old": old})
    ways, name = found["ways"], "old"
    for way, one in (("viq", model), ("viq, one by one", model), (name, old)):
        bits = 8 * sum(map(len, one.compress(codes)))
        assert ways[way]["bits_per_code"] == bits / found["codes"]
    assert [ratio > 0 for ratio in found["viq_over"][name]] == [True, True]
    lines = _packing({"entropy_model": model.digest, "sets": {"some": found}})
    assert lines[-1].endswith(f"times out as {name}")


def test_an_untrained_network_gains_nothing() -> None:
    codes = [usual_codes((640, 640))]
    network = untrained_network(LEVELS, STAMP)
    payloads = network.compress(codes)
    assert network.decompress(payloads, [(640, 640)], [0]) == codes
    assert 8 * len(payloads[0]) == pytest.approx(codes[0].ids.size * np.log2(60), rel=0.01)
