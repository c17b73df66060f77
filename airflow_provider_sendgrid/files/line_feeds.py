"""Line feeds outside quotes, counted: by numpy where it is installed, else by the standard library.

The same question answered twice, for speed alone (measured on contacts, MB per CPU second: numpy 1,900, the other 380).
A stream of 64 bytes becomes one word: a bit for each quote, then the parity of the quotes up to each byte, then the
line feeds where it is odd.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Any, Protocol

_PIECE_BYTES = 128 * 1024  # with what is made of it, as much as a core's cache holds
_QUOTE, _LINE_FEED = b'"\n'
_ALL_BUT_STRUCTURE = bytes(set(range(256)) - set(b'"\n'))


class LineFeeds(Protocol):
    """Counts through a stream.

    Attributes:
        count: line feeds outside quotes so far.
        in_quotes: whether the next byte stands within quotes.
    """

    count: int
    in_quotes: bool

    def feed(self, plain: bytes | memoryview) -> None:
        """Count on through the next piece."""


def line_feeds() -> LineFeeds:
    """The faster way of those that can be had here."""
    try:
        return NumpyLineFeeds(import_module("numpy"))
    except ImportError:
        return PlainLineFeeds()


def _pieces(plain: bytes | memoryview) -> Iterator[memoryview]:
    view = memoryview(plain)
    return (view[start : start + _PIECE_BYTES] for start in range(0, len(view), _PIECE_BYTES))


class PlainLineFeeds:
    """By the standard library."""

    def __init__(self) -> None:
        self.count = 0
        self.in_quotes = False

    def feed(self, plain: bytes | memoryview) -> None:
        """Count on through the next piece."""
        for piece in _pieces(plain):
            self._feed_piece(bytes(piece))

    def _feed_piece(self, piece: bytes) -> None:
        # Two quotes side by side open and close, or close and open, nothing in between: without them only
        # the quotes around values with line breaks are left, in most pieces none.
        structure = piece.translate(None, _ALL_BUT_STRUCTURE).replace(b'""', b"")
        pieces = structure.split(b'"')
        self.count += sum(map(len, pieces[self.in_quotes :: 2]))
        self.in_quotes ^= len(pieces) % 2 == 0


class NumpyLineFeeds:
    """By numpy, whose module is given."""

    def __init__(self, numpy: Any) -> None:
        self.count = 0
        self.in_quotes = False
        self._numpy = numpy
        self._marks = numpy.zeros(_PIECE_BYTES, numpy.bool_)
        self._words = numpy.zeros(_PIECE_BYTES // 64, numpy.uint64)

    def feed(self, plain: bytes | memoryview) -> None:
        """Count on through the next piece."""
        for piece in _pieces(plain):
            self._feed_piece(piece)

    def _feed_piece(self, piece: memoryview) -> None:
        characters = self._numpy.frombuffer(piece, self._numpy.uint8)
        unquoted = self._unquoted(self._bits(characters, _QUOTE))
        lines = self._bits(characters, _LINE_FEED)
        self._numpy.bitwise_and(lines, unquoted, out=lines)
        self.count += self._ones(lines)

    def _bits(self, characters: Any, wanted: int) -> Any:
        """Words of 64 bits, one for each character: whether it is the wanted one; zeros fill up the last word."""
        marks = self._marks[: -(-len(characters) // 64) * 64]
        marks[len(characters) :] = False
        self._numpy.equal(characters, wanted, out=marks[: len(characters)])
        return self._numpy.packbits(marks, bitorder="little").view("<u8")

    def _unquoted(self, quotes: Any) -> Any:
        """Bits: whether the number of quotes up to and with each character is even, from the stream's begin on."""
        numpy, words = self._numpy, self._words[: len(quotes)]
        for bits in (1, 2, 4, 8, 16, 32):
            numpy.left_shift(quotes, bits, out=words)
            numpy.bitwise_xor(quotes, words, out=quotes)
        numpy.right_shift(quotes, 63, out=words)
        ends = numpy.bitwise_xor.accumulate(words)
        words[0] = not self.in_quotes
        numpy.bitwise_xor(ends[:-1], words[0], out=words[1:])
        self.in_quotes ^= bool(ends[-1])
        numpy.negative(words, out=words)  # 1 becomes 64 ones
        return numpy.bitwise_xor(quotes, words, out=quotes)

    def _ones(self, words: Any) -> int:
        """How many bits are set."""
        if hasattr(self._numpy, "bitwise_count"):
            return int(self._numpy.bitwise_count(words).sum())
        return int(self._numpy.count_nonzero(self._numpy.unpackbits(words.view(self._numpy.uint8))))
