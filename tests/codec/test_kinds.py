"""What holds for entropy models of every kind."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_entropy import CODEBOOK, KINDS, STAMP, class_tables, codes_of, usual_codes

from viq.codec.entropy_model import EntropyModel
from viq.core.codes import Codes
from viq.core.types import CodesError, ViqError

pytest.importorskip("constriction")
each_kind = pytest.mark.parametrize("kind", KINDS)
MODELS = {name: make() for name, make in KINDS.items()}
SIZES = st.lists(st.tuples(st.integers(1, 150), st.integers(1, 150)), min_size=1, max_size=5)


def read(payloads: list[bytes], like: list[Codes], model: EntropyModel) -> list[Codes]:
    return model.decompress(payloads, [c.size for c in like], [c.tile for c in like])


@each_kind
@settings(suppress_health_check=[HealthCheck.differing_executors], max_examples=40)
@given(sizes=SIZES, seed=st.integers(0, 99))
def test_round_trip_alone_and_together(kind: str, sizes: list, seed: int) -> None:
    model = MODELS[kind]
    codes = [
        (usual_codes if i % 2 else codes_of)(size, seed + i, 16 * i) for i, size in enumerate(sizes)
    ]
    payloads = model.compress(codes)
    assert read(payloads, codes, model) == codes
    assert [model.compress([item])[0] for item in codes] == payloads
    assert read(payloads[-1:], codes[-1:], model) == codes[-1:]


@each_kind
@pytest.mark.parametrize("value", [0, 1, CODEBOOK - 1, "one"])
def test_codes_that_nobody_expects(kind: str, value: int | str) -> None:
    """All equal; or all equal but one patch, in the last place that is coded."""
    model, ids = MODELS[kind], np.zeros((9, 7, 4), np.uint16)
    ids[:] = 0 if value == "one" else value
    ids[-1, -1] = CODEBOOK - 1 if value == "one" else ids[-1, -1]
    codes = [Codes(ids, (144, 112), 0, STAMP)]
    assert read(model.compress(codes), codes, model) == codes


@each_kind
@pytest.mark.parametrize("size", [(1, 1), (20, 300), (333, 250)])
def test_bits_of_patches_add_up_to_the_payload(kind: str, size: tuple[int, int]) -> None:
    """Within the words with which a range coder ends, of 32 bits each."""
    for codes in (usual_codes(size), codes_of(size)):
        bits = MODELS[kind].patch_bits(codes)
        assert bits.shape == codes.grid and bits.min() > 0
        packed = 8 * (len(MODELS[kind].compress([codes])[0]) - 4)
        assert -1 < packed - bits.sum() < 65 + bits.sum() / 500
    with pytest.raises(CodesError, match="belongs to"):
        MODELS[kind].patch_bits(codes_of((16, 16), stamp="00000000000000bb"))


@each_kind
def test_images_of_many_batches(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, codes = MODELS[kind], [usual_codes((64, 48), i) for i in range(7)]
    payloads = model.compress(codes)
    monkeypatch.setattr(type(model), "batch_patches", 30)
    assert model.compress(codes) == payloads
    assert read(payloads, codes, model) == codes


@each_kind
@settings(suppress_health_check=[HealthCheck.differing_executors], max_examples=60)
@given(place=st.integers(0, 2**16), change=st.integers(1, 255))
def test_any_changed_byte_is_noticed(kind: str, place: int, change: int) -> None:
    model, codes = MODELS[kind], usual_codes((90, 70), seed=1)
    payload = bytearray(model.compress([codes])[0])
    payload[place % len(payload)] ^= change
    with pytest.raises(CodesError, match="checksum") as caught:
        read([bytes(payload)], [codes], model)
    assert "\n" not in str(caught.value)


@each_kind
@settings(suppress_health_check=[HealthCheck.differing_executors], max_examples=60)
@given(st.binary(max_size=80), st.integers(1, 100), st.integers(1, 100))
def test_foreign_bytes_are_refused(kind: str, payload: bytes, height: int, width: int) -> None:
    with pytest.raises(CodesError):
        MODELS[kind].decompress([payload], [(height, width)], [0])


@each_kind
def test_other_size_tile_model_or_length_is_noticed(kind: str) -> None:
    model, codes = MODELS[kind], usual_codes((50, 40), seed=1)
    (payload,) = model.compress([codes])
    for size, tile in (((50, 41), 0), ((49, 40), 0), ((50, 49), 0), ((50, 40), 16)):
        with pytest.raises(CodesError):
            model.decompress([payload], [size], [tile])
    for other in (payload[:-4], payload[:-1], payload + b"\0", payload + bytes(4), b""):
        with pytest.raises(CodesError):
            read([other], [codes], model)
    for stranger in (KINDS[kind](1), KINDS[kind](0, "00000000000000bb")):
        with pytest.raises(CodesError, match="entropy model"):
            read([payload], [codes], stranger)


@each_kind
def test_a_huge_image_in_few_bytes_is_refused_at_once(kind: str) -> None:
    with pytest.raises(CodesError, match="too few"):
        MODELS[kind].decompress([bytes(400)], [(2**31 - 1, 2**31 - 1)], [0])


@each_kind
def test_wrong_codes_are_not_compressed(kind: str) -> None:
    model = MODELS[kind]
    with pytest.raises(CodesError, match="belongs to"):
        model.compress([codes_of((9, 9), stamp="00000000000000bb")])
    with pytest.raises(CodesError, match="outside the codebook of 60"):
        model.compress([Codes(np.full((1, 1, 4), 60, np.uint16), (9, 9), 0, STAMP)])


@each_kind
def test_file(kind: str, tmp_path: Path) -> None:
    model = MODELS[kind]
    again = EntropyModel.load(model.save(tmp_path))
    assert (type(again), again.digest, again.levels) == (type(model), model.digest, model.levels)
    codes = [usual_codes((50, 40))]
    assert read(model.compress(codes), codes, again) == codes
    assert model.bits(codes) == pytest.approx(8 * (len(model.compress(codes)[0]) - 4), rel=0.2)


@each_kind
def test_a_file_of_other_tensors_is_refused(kind: str, tmp_path: Path) -> None:
    model = MODELS[kind]
    for name, tensor in model.tensors.items():
        for other in ({}, {name: tensor[..., :-1]}, {name: tensor.astype(np.float32)}):
            rest = {key: value for key, value in model.tensors.items() if key != name}
            with pytest.raises(ViqError, match="copy it again"):
                type(model)(rest | other, model.levels, STAMP)


@pytest.mark.parametrize(("kind", "digest", "sha256"), [
    ("levels", "5307115636b8aa3f", "6afb18e8cb2b5701"),
    ("tables", "df0d156f85a62dd6", "a0b87b773a2a0940"),
])  # fmt: skip
def test_payload_stays_what_it_is(kind: str, digest: str, sha256: str) -> None:
    """Bytes of an earlier release: a change here is a new format."""
    codes = [usual_codes((100, 90), 3, 16), codes_of((40, 30), 4), usual_codes((20, 20), 5)]
    model = MODELS[kind]
    assert model.digest == digest
    assert hashlib.sha256(b"".join(model.compress(codes))).hexdigest()[:16] == sha256


@each_kind
def test_another_process_writes_the_same(kind: str) -> None:
    """With other threads, and with BLAS kernels of old processors where the library can choose."""
    codes = [usual_codes((200, 300), 3)]
    expected = hashlib.sha256(MODELS[kind].compress(codes)[0]).hexdigest()
    script = (
        "import hashlib, sys; sys.path.insert(0, sys.argv[1])\n"
        "from tiny_entropy import KINDS, usual_codes\n"
        "payload, = KINDS[sys.argv[2]]().compress([usual_codes((200, 300), 3)])\n"
        "print(hashlib.sha256(payload).hexdigest())"
    )
    env = os.environ | {
        "OMP_NUM_THREADS": "2",
        "OPENBLAS_NUM_THREADS": "2",
        "OPENBLAS_CORETYPE": "Prescott",
        "NPY_DISABLE_CPU_FEATURES": "AVX512F AVX2",
    }
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, str(Path(__file__).parents[1]), kind],
        env=env, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert found.stdout.strip() == expected


def test_tables_of_impossible_numbers_are_refused() -> None:
    tensors = class_tables().tensors
    for name, place, value in (
        ("coarse", (0, 0, 0), 0), ("sizes", (0, 0), 6), ("sizes", (0, 1), 0), ("sizes", (0, 1), 61),
        ("sizes", (0, 3), 41), ("shape", 2, 6), ("shape", 4, 5), ("shape", 6, 0), ("shape", 5, 0),
        ("cuts", (0, 0), 99999),
    ):  # fmt: skip
        wrong = tensors[name].copy()
        wrong[place] = value
        with pytest.raises(ViqError, match="copy it again"):
            class_tables().__class__(tensors | {name: wrong}, (5, 4, 3), STAMP)
