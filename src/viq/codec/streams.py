"""Symbols of several images to words of the range coder, and back.

A model walks over its symbols once, whether it writes or reads: `Writer` and `Reader` have the same
methods, and each gives back the symbols, those that it was given or those that it read. So the two
directions cannot fall out of step.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any, Protocol

import numpy as np

from viq.codec.entropy_model import constriction
from viq.codec.phases import Part
from viq.core.types import CodesError


class Stream(Protocol):
    """What `Writer` and `Reader` have in common; n = symbols of all parts."""

    def tables(
        self, parts: Sequence[Part], tables_nl: np.ndarray, symbols_n: np.ndarray
    ) -> np.ndarray:
        """Symbols with unnormalised probabilities, float64 of whole numbers."""
        ...

    def uniform(self, parts: Sequence[Part], sizes_n: np.ndarray, symbols_n: np.ndarray) -> Any:
        """Symbols that are equally likely from 0 to below their size, at most 2**24."""
        ...


class Writer:
    """Writes what it is given."""

    def __init__(self, images: int) -> None:
        stream = constriction()
        self._encoders = [stream.queue.RangeEncoder() for _ in range(images)]
        self._family = stream.model.Categorical(perfect=False)
        self._uniform = stream.model.Uniform()

    def tables(
        self, parts: Sequence[Part], tables_nl: np.ndarray, symbols_n: np.ndarray
    ) -> np.ndarray:
        symbols = symbols_n.astype(np.int32)
        for image, a, b in parts:
            self._encoders[image].encode(symbols[a:b], self._family, tables_nl[a:b])
        return symbols_n

    def uniform(
        self, parts: Sequence[Part], sizes_n: np.ndarray, symbols_n: np.ndarray
    ) -> np.ndarray:
        symbols, sizes = symbols_n.astype(np.int32), sizes_n.astype(np.int32)
        for image, a, b in parts:
            some = sizes[a:b] > 1
            self._encoders[image].encode(symbols[a:b][some], self._uniform, sizes[a:b][some])
        return symbols_n

    def only(self, images: Sequence[int]) -> Writer:
        """The same for some of the images."""
        some = copy(self)
        some._encoders = [self._encoders[image] for image in images]
        return some

    def words(self) -> list[np.ndarray]:
        """What was written, uint32, of each image."""
        return [encoder.get_compressed() for encoder in self._encoders]


class Meter:
    """Writes nothing: adds up the information content, in bits, of the symbols of each patch.

    Attributes:
        bits_T: of the patches of one image, in raster order.
    """

    def __init__(self, patches: int) -> None:
        self.bits_T = np.zeros(patches)
        self._places_n = np.arange(patches)

    def at(self, places_n: np.ndarray) -> Meter:
        """The same, for symbols of the patches at these places, each once."""
        some = copy(self)
        some._places_n = places_n
        return some

    def tables(
        self, parts: Sequence[Part], tables_nl: np.ndarray, symbols_n: np.ndarray
    ) -> np.ndarray:
        likely_n = np.take_along_axis(tables_nl, symbols_n[:, None].astype(np.int64), 1)[:, 0]
        self.bits_T[self._places_n] += np.log2(tables_nl.sum(1)) - np.log2(likely_n)
        return symbols_n

    def uniform(
        self, parts: Sequence[Part], sizes_n: np.ndarray, symbols_n: np.ndarray
    ) -> np.ndarray:
        self.bits_T[self._places_n] += np.log2(np.maximum(sizes_n, 1))
        return symbols_n


class Reader:
    """Reads; the symbols that it is given say no more than how many there are.

    Raises:
        CodesError: no symbol can begin like this; says `damage`.
    """

    def __init__(self, words: Sequence[np.ndarray], damage: str) -> None:
        stream = constriction()
        self._decoders = [stream.queue.RangeDecoder(part) for part in words]
        self._family = stream.model.Categorical(perfect=False)
        self._uniform = stream.model.Uniform()
        self._damage = damage

    def tables(
        self, parts: Sequence[Part], tables_nl: np.ndarray, symbols_n: np.ndarray
    ) -> np.ndarray:
        found = np.zeros(len(symbols_n), np.int64)
        for image, a, b in parts:
            found[a:b] = self._decode(image, self._family, tables_nl[a:b])
        return found

    def uniform(
        self, parts: Sequence[Part], sizes_n: np.ndarray, symbols_n: np.ndarray
    ) -> np.ndarray:
        found, sizes = np.zeros(len(symbols_n), np.int64), sizes_n.astype(np.int32)
        for image, a, b in parts:
            some = sizes[a:b] > 1
            found[a:b][some] = self._decode(image, self._uniform, sizes[a:b][some])
        return found

    def only(self, images: Sequence[int]) -> Reader:
        """The same for some of the images."""
        some = copy(self)
        some._decoders = [self._decoders[image] for image in images]
        return some

    def _decode(self, image: int, model: Any, parameters: np.ndarray) -> np.ndarray:
        try:
            return self._decoders[image].decode(model, parameters)
        except AssertionError:
            raise CodesError(self._damage) from None
