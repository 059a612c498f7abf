"""Compressed codes: what comes out went in, on any machine, and damage never passes."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from viq.codec.entropy_model import ENTROPY_FILE, EntropyModel, beside
from viq.codec.find import find_model
from viq.codec.layout import CAP, LEVEL_UNIT, VALUE_UNIT, WEIGHT_UNIT, Layout
from viq.codec.level_network import LevelNetwork
from viq.core.codes import Codes
from viq.core.types import CodesError, ViqError, grid_of

pytest.importorskip("constriction")
LEVELS = (5, 4, 3)
D, L, H = 12, 5, 8
STAMP = "00000000000000aa"


def tensors(seed: int = 0) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)

    def some(*shape: int) -> np.ndarray:
        return draw.integers(-200, 200, shape).astype(np.int16)

    def bias(*shape: int) -> np.ndarray:
        return draw.integers(-30000, 30000, shape).astype(np.int32)

    return {
        "context.0.weight": some(H, 3 * (D + 1)), "context.0.bias": bias(H),
        "context.1.weight": some(H, H), "context.1.bias": bias(H),
        "embed": some(D, L, H), "head.weight": some(D, L, H), "head.bias": bias(D, L),
    }  # fmt: skip


MODEL = LevelNetwork(tensors(), LEVELS, STAMP)


def codes_of(size: tuple[int, int], seed: int = 0, tile: int = 0) -> Codes:
    ids = np.random.default_rng(seed).integers(0, 60, (*grid_of(size), 4)).astype(np.uint16)
    return Codes(ids, size, tile, STAMP)


def read(payloads: list[bytes], like: list[Codes], model: EntropyModel = MODEL) -> list[Codes]:
    return model.decompress(payloads, [c.size for c in like], [c.tile for c in like])


@given(
    sizes=st.lists(st.tuples(st.integers(1, 130), st.integers(1, 130)), min_size=1, max_size=5),
    seed=st.integers(0, 99),
)
def test_round_trip(sizes: list[tuple[int, int]], seed: int) -> None:
    codes = [codes_of(size, seed + i, tile=16 * i) for i, size in enumerate(sizes)]
    payloads = MODEL.compress(codes)
    assert read(payloads, codes) == codes
    assert [MODEL.compress([item])[0] for item in codes] == payloads  # alone or together
    assert read(payloads[-1:], codes[-1:]) == codes[-1:]


def test_equal_models_make_equal_files(tmp_path: Path) -> None:
    files = {MODEL.save(tmp_path, f"{i}.safetensors").read_bytes() for i in range(20)}
    assert len(files) == 1
    assert EntropyModel.load(tmp_path / "0.safetensors").digest == MODEL.digest


def test_no_room_for_the_model(tmp_path: Path) -> None:
    """An OSError that names the file, as for all other files; safetensors has its own."""
    resource = pytest.importorskip("resource", reason="limits of a process")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(OSError, match=ENTROPY_FILE):
            MODEL.save(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


def test_nothing_in_nothing_out() -> None:
    assert MODEL.compress([]) == []
    assert MODEL.decompress([], [], []) == []


def test_more_patches_than_one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = [codes_of((64, 48), i) for i in range(7)]
    payloads = MODEL.compress(codes)
    monkeypatch.setattr(LevelNetwork, "batch_patches", 30)
    assert MODEL.compress(codes) == payloads
    assert read(payloads, codes) == codes


def test_probabilities_by_hand() -> None:
    """Patch by patch and level by level, in Python integers."""
    codes, t = codes_of((48, 64)), {k: v.tolist() for k, v in tensors().items()}
    sizes = LEVELS * 4
    grid = (codes.ids[..., None] // np.array([1, 5, 20]) % np.array(LEVELS)).reshape(3, 4, D)

    def layer(x: list[int], name: str) -> list[int]:
        rows = zip(t[f"{name}.weight"], t[f"{name}.bias"], strict=True)
        return [(sum(w * v for w, v in zip(r, x, strict=True)) + b) // WEIGHT_UNIT for r, b in rows]

    def clip(x: list[int]) -> list[int]:
        return [min(max(v, 0), CAP) for v in x]

    layout = Layout.of([(3, 4)])
    tables = MODEL._tables(layout, layout.levels([codes.ids], LEVELS))
    for y, x in np.ndindex(3, 4):
        read = []
        for v, u in ((y, x - 1), (y - 1, x), (y - 1, x - 1)):
            inside = v >= 0 and u >= 0
            of = zip(grid[v, u].tolist(), sizes, strict=True)
            read += [(2 * q - s + 1) * LEVEL_UNIT for q, s in of] if inside else [0] * D
            read += [VALUE_UNIT if inside else 0]
        hidden = layer(clip(layer(read, "context.0")), "context.1")
        for i in range(D):
            h = clip(hidden)
            logits = [
                sum(a * b for a, b in zip(h, w, strict=True)) + c
                for w, c in zip(t["head.weight"][i], t["head.bias"][i], strict=True)
            ][: sizes[i]]
            expected = np.exp((np.array(logits) - max(logits)) / (WEIGHT_UNIT * VALUE_UNIT))
            got = tables[layout.places[0][y * 4 + x], i]
            assert (got[sizes[i] :] == 0).all()
            np.testing.assert_allclose(got[: sizes[i]] / 65536, expected, rtol=0.04, atol=1e-4)
            level = grid[y, x, i]
            hidden = [a + b for a, b in zip(hidden, t["embed"][i][level], strict=True)]


def test_payload_stays_what_it_is() -> None:
    """Bytes of an earlier release: a change here is a new format."""
    codes = codes_of((20, 30), seed=3, tile=16)
    payload = MODEL.compress([codes])[0]
    assert MODEL.digest == "44032968b964c3b1"
    assert payload.hex() == "997cb39babde6ed3984235cf6df244ef4bc7d90530fecc1153492846994f412a"


@given(place=st.integers(0, 2**16), change=st.integers(1, 255))
def test_any_changed_byte_is_noticed(place: int, change: int) -> None:
    codes = codes_of((50, 40), seed=1)
    payload = bytearray(MODEL.compress([codes])[0])
    payload[place % len(payload)] ^= change
    with pytest.raises(CodesError, match="checksum"):
        read([bytes(payload)], [codes])


@given(st.binary(max_size=60), st.integers(1, 100), st.integers(1, 100))
def test_foreign_bytes_are_refused(payload: bytes, height: int, width: int) -> None:
    with pytest.raises(CodesError):
        MODEL.decompress([payload], [(height, width)], [0])


def test_other_size_tile_model_or_length_is_noticed() -> None:
    codes = codes_of((50, 40), seed=1)
    (payload,) = MODEL.compress([codes])
    for size, tile in (((50, 41), 0), ((49, 40), 0), ((50, 49), 0), ((50, 40), 16)):
        with pytest.raises(CodesError):
            MODEL.decompress([payload], [size], [tile])
    for other in (payload[:-4], payload[:-1], payload + b"\0", payload + bytes(4), b""):
        with pytest.raises(CodesError):
            read([other], [codes])
    for model in (
        LevelNetwork(tensors(1), LEVELS, STAMP),
        LevelNetwork(tensors(), LEVELS, "00000000000000bb"),
    ):
        with pytest.raises(CodesError, match="entropy model"):
            read([payload], [codes], model)


def test_a_huge_image_in_few_bytes_is_refused_at_once() -> None:
    with pytest.raises(CodesError, match="too few"):
        MODEL.decompress([bytes(400)], [(2**31 - 1, 2**31 - 1)], [0])


def test_easy_codes_keep_a_byte_for_256_patches() -> None:
    certain = tensors()
    certain["head.bias"] = np.zeros_like(certain["head.bias"])
    certain["head.bias"][:, 0] = 2**23
    certain["head.weight"] = np.zeros_like(certain["head.weight"])
    model = LevelNetwork(certain, LEVELS, STAMP)
    codes = Codes(np.zeros((64, 64, 4), np.uint16), (1024, 1024), 0, STAMP)
    (payload,) = model.compress([codes])
    assert len(payload) == 4 + 16
    assert model.decompress([payload], [codes.size], [0]) == [codes]


def test_wrong_codes_are_not_compressed() -> None:
    with pytest.raises(CodesError, match="belongs to"):
        MODEL.compress([Codes(np.zeros((1, 1, 4), np.uint16), (9, 9), 0, "00000000000000bb")])
    with pytest.raises(CodesError, match="outside the codebook of 60"):
        MODEL.compress([Codes(np.full((1, 1, 4), 60, np.uint16), (9, 9), 0, STAMP)])


def test_bits_are_what_payloads_take() -> None:
    codes = [codes_of((300, 400))]
    (payload,) = MODEL.compress(codes)
    assert MODEL.bits(codes) == pytest.approx(8 * (len(payload) - 4), rel=0.01)


def test_weights_that_could_round_are_refused() -> None:
    limits = {"context.0.weight": 900, "context.1.weight": 5000, "head.bias": 2**24}
    for name, value in {**limits, "embed": 2**21}.items():
        large = tensors()
        large[name] = np.full(large[name].shape, value, np.int32)
        with pytest.raises(ViqError, match="too large to add up"):
            LevelNetwork(large, LEVELS, STAMP)


def test_file(tmp_path: Path) -> None:
    MODEL.save(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [ENTROPY_FILE]
    again = EntropyModel.load(tmp_path)
    assert (again.digest, again.levels, again.fingerprint) == (MODEL.digest, LEVELS, STAMP)
    codes = [codes_of((50, 40))]
    assert read(MODEL.compress(codes), codes, again) == codes


@pytest.mark.parametrize("place", [0, 9, 100, -200, -1])
def test_damaged_file(tmp_path: Path, place: int) -> None:
    path = MODEL.save(tmp_path)
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    with pytest.raises(ViqError, match=ENTROPY_FILE):
        EntropyModel.load(path)


@pytest.mark.parametrize("digest", ["", "../0123456789abcdef", "0123456789abcde\n", "0123"])
def test_a_damaged_stamp_is_no_part_of_a_path(tmp_path: Path, digest: str) -> None:
    with pytest.raises(ViqError, match="damaged") as caught:
        find_model(digest, tmp_path)
    assert "\n" not in str(caught.value)


def test_models_that_come_and_go_are_noticed(tmp_path: Path) -> None:
    with pytest.raises(ViqError, match="which is missing"):
        find_model(MODEL.digest, tmp_path)
    MODEL.save_beside(tmp_path)
    assert find_model(MODEL.digest, tmp_path).digest == MODEL.digest
    (tmp_path / beside(MODEL.digest)).rename(tmp_path / "elsewhere")
    with pytest.raises(ViqError, match="which is missing"):
        find_model(MODEL.digest, tmp_path)
    assert find_model(MODEL.digest, tmp_path, [tmp_path / "elsewhere"]).digest == MODEL.digest


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ViqError, match="viq train entropy"):
        EntropyModel.load(tmp_path)


def test_exponential_is_the_same_on_every_machine() -> None:
    """Its entries are so far from a tie that no library of mathematics rounds them otherwise."""
    from math import exp

    for i in range(384):
        part = 65536 * exp(-i / 32) % 1
        assert abs(part - 0.5) > 1e-6 or i == 0
