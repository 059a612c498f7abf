"""Our tokenizers, and those of others, as rows of the comparison."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING

from PIL import Image

from viq.core.levels import codebook_size
from viq.core.types import ViqError
from viq.eval.compare.row import Encoded, Prepared, split_rate
from viq.models.tokenizer.counted import parts_of
from viq.models.tokenizer.tokenizer import VisualTokenizer

if TYPE_CHECKING:
    from viq.codec.entropy_model import EntropyModel
    from viq.eval.peers.protocol import Peer

PEERS = ("qlip", "unitok", "simvq")  # kinds of tokenizers of others that have codes
_CONTINUOUS = "siglip2"


class TokenizerRow:
    """One of our tokenizers, on pictures of any size.

    Plain, a code takes the whole bits that its codebook needs (16 of 64,000 codes). Entropy coded,
    it is what the entropy model beside the weights makes of the codes of a picture.

    Args:
        name: of the row.
        tokenizer: with a pixel decoder.
        tile: as in `VisualTokenizer.encode`.
        bpp: bits a pixel of the whole file of each picture, by a variable number of codes; None:
            four codes a patch.
        compress: with `bpp`, of what is stored of it compressed; what is decoded was compressed
            and read again.

    Raises:
        ViqError: a tokenizer without pixel decoder, without codes, or, with `bpp`, without
            refinement, or, to `compress`, without entropy model.
    """

    kind, licence = "tokenizer", None

    def __init__(
        self,
        name: str,
        tokenizer: VisualTokenizer,
        tile: int | None = None,
        bpp: float | None = None,
        compress: bool = False,
    ) -> None:
        if tokenizer.decoder is None:
            raise ViqError(
                f"{name}: has no pixel decoder, so it gives no pictures to compare; choose another "
                "model, or train one"
            )
        self.name, self.series, self._bpp = name, split_rate(name)[0], bpp
        self._bits = (codebook_size(tokenizer.levels) - 1).bit_length()
        self._tokenizer, self._tile = tokenizer, tile
        self._entropy, self.note = None, ""
        self._coder = None  # of codes with counts
        if bpp is None:
            self._entropy, self.note = _entropy_of(tokenizer)
            return
        parts_of(tokenizer)
        if compress:
            self._coder, self.note = tokenizer.entropy, "entropy coded (--compress)"

    def prepare(self, image: Image.Image) -> Prepared:
        return Prepared(image, image)

    def setting(self, sample: Prepared, max_bytes: float | None) -> None:
        return None

    def encode(self, sample: Prepared, setting: int | None) -> Encoded:
        (codes,) = self._tokenizer.encode(
            sample.picture, tile=self._tile, bpp=self._bpp, compress=self._coder is not None
        )
        if codes.counts is None:
            return Encoded(codes, self._bits * codes.ids.size)
        if self._coder is None:
            return Encoded(codes, 8 * len(codes.to_bytes()))
        (read,) = self._coder.decompress(
            self._coder.compress([codes]), [codes.size], [codes.tile], [codes.counts], codes.meaning
        )
        return Encoded(replace(codes, ids=read.ids), 8 * self._coder.stored_bytes(codes))

    def entropy_bits(self, encoded: Encoded) -> float | None:
        """Bits of the codes after entropy coding; None without an entropy model."""
        if self._entropy is None:
            return None
        return 8 * len(self._entropy.compress([encoded.data])[0])

    def decode(self, encoded: Encoded) -> Image.Image:
        return self._tokenizer.decode(encoded.data)[0]


class PeerRow:
    """A tokenizer of others, on the squares that it takes."""

    kind = "tokenizer"

    def __init__(self, name: str, peer: Peer) -> None:
        self.name = self.series = name
        self.licence = peer.licence
        self.note = f"weights: {peer.licence}"
        licence = peer.licence.lower()
        if "-nc" in licence and "commercial" not in licence:
            self.note += " (no commercial use)"
        self._peer = peer

    def prepare(self, image: Image.Image) -> Prepared:
        return Prepared(image, self._peer.prepare(image))

    def setting(self, sample: Prepared, max_bytes: float | None) -> None:
        return None

    def encode(self, sample: Prepared, setting: int | None) -> Encoded:
        """Codes of the image itself: what is prepared already would be prepared again."""
        pixels = sample.picture.width * sample.picture.height
        return Encoded(self._peer.encode([sample.image])[0], self._peer.bits_per_pixel * pixels)

    def entropy_bits(self, encoded: Encoded) -> None:
        """None: no entropy coding of these codes is published."""

    def decode(self, encoded: Encoded) -> Image.Image:
        return self._peer.decode([encoded.data])[0]


def load_tokenizer_row(
    name: str, *, device: str = "cpu", tile: int | None = None, compress: bool = False
) -> TokenizerRow | PeerRow:
    """The row of a tokenizer by its name: KIND:FOLDER of others, else one of ours.

    Args:
        name: "qlip:FOLDER", "unitok:FOLDER", "simvq:FOLDER"; or a bundled name, a folder or a hub
            id of ours, "viq:" before it or not, "@BPP" behind it for a variable number of codes.
        compress: as in `TokenizerRow`.

    Raises:
        ViqError: no such model, or one that gives no pictures; one line.
    """
    kind, _, place = name.partition(":")
    if kind == _CONTINUOUS:
        raise ViqError(
            f"{name}: has continuous features and no codes, so no bits and no pictures; compare it "
            "with viq eval features"
        )
    if kind in PEERS:
        from viq.eval.peers import load_peer

        if not place:
            raise ViqError(f"{name}: give its weights as {kind}:FOLDER")
        return PeerRow(name, load_peer(kind, place))
    from viq.models.tokenizer.loading import load

    found, bpp = split_rate(place if kind == "viq" else name)
    return TokenizerRow(name, load(found, device=device), tile, bpp, compress)


def _entropy_of(tokenizer: VisualTokenizer) -> tuple[EntropyModel | None, str]:
    """The entropy model of a tokenizer; or why its codes are counted plain alone."""
    if find_spec("constriction") is None:
        return None, "not entropy coded: pip install 'viq[codec]'"
    try:
        return tokenizer.entropy, ""
    except ViqError as error:
        return None, f"not entropy coded: {error}"
