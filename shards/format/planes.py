"""The bytes of a predicted tile: a header, numbers of each band, and the codes of its pixels in two planes of bytes.

The high plane is omitted for bands that don't need it (two of three on real tiles); for the others it is almost all
zeros and is compressed with zstd. The low plane is nearly noise: it is compressed as well (``pack_low``), or stored as
it is and read in place. Compressed planes are one frame, or blocks that can be decoded one by one (frames.py).

`PixelwiseCodec.unpack` undoes the compression alone, for a device that undoes the prediction itself.
"""

import struct
import threading
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numcodecs import Zstd
from numcodecs.abc import Codec

from shards.errors import ShardError
from shards.format.frames import check_size, compress, decompress

_HEADER = struct.Struct("<4sBBHIIIII")  # magic, version, flags, -, bands, height, width, bytes of low plane, of high
_VERSION = 1

MOST = 1 << 16
"""Upper bound of the compression ratio of any packed file: zstd reaches 2**15, deflate 2**10."""

BLOCK = 1 << 14
"""Pixels processed through all bands at a time, so that the bands below stay in the L2 cache."""

COLUMNS = 6
"""Numbers that a band needs to be restored: c1, c2, c3, constant, bound, and the row of its high bytes."""

BOUND, HIGH_ROW = 4, 5
VALUES, MISSING = -1, -2
"""In place of a bound: the band is stored as int16 values, or is all missing and not stored."""

_COMPRESSION = ("pack_low", "blocks")
"""Options of a codec that don't change the codes."""

_scratch = threading.local()


@dataclass(frozen=True)
class Planes:
    """A tile's bytes, taken apart.

    Attributes:
        shape: (bands, height, width) of the tile.
        numbers: int16 (bands, numbers of a band).
        low: uint8 (bands, pixels), low bytes of the codes.
        high: uint8 (rows, pixels), high bytes; the last row is zero, and shared by all bands without a high plane.
        rows: (bands,), row of each band in ``high``.
    """

    shape: tuple[int, int, int]
    numbers: np.ndarray
    low: np.ndarray
    high: np.ndarray
    rows: np.ndarray


class PlaneCodec(Codec):
    """Base of the predicting codecs.

    Args:
        pack_low: whether to compress the plane of low bytes too: 25 % smaller, 2.5 times slower to decode.
        blocks: whether to compress planes in independent blocks (frames.py), which versions before can't read.
    """

    magic: ClassVar[bytes]
    numbers: ClassVar[int]
    """Stored numbers of a band, int16."""

    def __init__(self, pack_low: bool = False, blocks: bool = False) -> None:
        self.pack_low, self.blocks = bool(pack_low), bool(blocks)
        self._flags = int(self.pack_low) | int(self.blocks) << 1
        self.most = MOST if self.pack_low else 2  # bytes of a tile per stored byte
        self._zstd = Zstd(level=1)

    def shape_of(self, data: Any) -> tuple[int, int, int]:
        """Return (bands, height, width) from the header, without decoding; raises ShardError if it is damaged."""
        return self._parts(np.frombuffer(data, dtype=np.uint8))[0]

    def numbers_of(self, data: Any) -> np.ndarray:
        """Return the stored numbers of each band, int16 (bands, numbers), without decoding; raises ShardError."""
        return self._parts(np.frombuffer(data, dtype=np.uint8))[1][0]

    def get_config(self) -> dict[str, Any]:
        return {"id": self.codec_id, "pack_low": self.pack_low} | ({"blocks": True} if self.blocks else {})

    def recompress(self, data: Any, codec: "PlaneCodec") -> bytes:
        """Return the bytes of a tile with the compression of this codec; its values stay what they are.

        Args:
            data: bytes that ``codec`` encoded.
            codec: has `same_codes` as this one.

        Raises:
            ShardError: the bytes do not hold a tile.
        """
        planes = np.empty(codec.shape_of(data), dtype=np.int16)
        (numbers, wide), bands = codec._decompress(data, planes), len(planes)
        rows = planes.view(np.uint8).reshape(2 * bands, -1)
        high = np.zeros((bands, rows.shape[1]), dtype=np.uint8)
        high[wide] = rows[bands : bands + np.count_nonzero(wide)]
        return self._join(planes.shape, numbers, rows[:bands], high)

    def _decompress(self, data: Any, out: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Fill the first bytes of ``out``, int16 (bands, height, width), with the low plane and then the high plane.

        Returns:
            The numbers of the bands, int16 (bands, numbers), and which bands have a row in the high plane.

        Raises:
            ShardError: the bytes do not hold a tile of this shape.
            ValueError: ``out`` can't be filled in place.
        """
        shape, (numbers, wide, low, high) = self._parts(np.frombuffer(data, dtype=np.uint8))
        if shape != out.shape:
            raise ShardError(f"holds a tile of {shape}, expected {out.shape}")
        rows, bands = writable(out).view(np.uint8).reshape(2 * shape[0], -1), shape[0]
        if self.pack_low:
            decompress(self._zstd, low, rows[:bands], self.blocks)
        else:
            rows[:bands] = low.reshape(bands, -1)
        count = int(np.count_nonzero(wide))
        if count:
            decompress(self._zstd, high, rows[bands : bands + count], self.blocks)
        return numbers, wide

    def _join(self, shape: tuple[int, int, int], numbers: np.ndarray, low: np.ndarray, high: np.ndarray) -> bytes:
        """Return the bytes of a tile from the numbers of its bands and the planes of its codes (bands, pixels)."""
        packed_low = compress(self._zstd, low, self.blocks) if self.pack_low else low.tobytes()
        wide = high.any(axis=1)
        packed_high = compress(self._zstd, np.ascontiguousarray(high[wide]), self.blocks)
        header = _HEADER.pack(self.magic, _VERSION, self._flags, 0, *shape, len(packed_low), len(packed_high))
        return b"".join((header, numbers.astype("<i2").tobytes(), wide.tobytes(), packed_low, packed_high))

    def _split(self, data: Any, out: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, Planes]:
        """Take the bytes of a tile apart.

        Returns:
            ``out`` or a new array; the same as (bands, pixels); and the planes, in buffers of this thread.

        Raises:
            ShardError: the bytes do not hold a tile of this shape.
            ValueError: ``out`` can't be filled in place.
        """
        content = np.frombuffer(data, dtype=np.uint8)
        shape, (numbers, wide, low, high) = self._parts(content)
        if out is None:
            if self.pack_low:  # before memory is allocated
                check_size(low, shape[0] * shape[1] * shape[2], self.blocks)
            out = np.empty(shape, dtype=np.int16)
        target = writable(out)
        if target.size != shape[0] * shape[1] * shape[2]:
            raise ShardError(f"holds a tile of {shape}, expected {out.shape}")
        flat = target.reshape(shape[0], -1)
        if self.pack_low:
            packed, low = low, buffer("low", flat.shape)
            decompress(self._zstd, packed, low, self.blocks)
        count = int(np.count_nonzero(wide))
        plane = buffer("high", (count + 1, flat.shape[1]))
        if count:
            decompress(self._zstd, high, plane[:count], self.blocks)
        plane[count] = 0  # shared by all bands without a high plane
        rows = np.where(wide, np.cumsum(wide) - 1, count)
        return out, flat, Planes(shape, numbers, low.reshape(flat.shape), plane, rows)

    def _parts(self, content: np.ndarray) -> tuple[tuple[int, int, int], tuple[np.ndarray, ...]]:
        """Return shape, numbers, bands with high bytes and the two planes, with all sizes validated."""
        if content.size < _HEADER.size:
            raise ShardError(f"does not decode: {content.size} bytes are too few for a tile")
        magic, version, flags, _, bands, height, width, low, high = _HEADER.unpack(content[: _HEADER.size].tobytes())
        if (magic, version, flags) != (self.magic, _VERSION, self._flags):
            raise ShardError(f"does not decode: not written by {self.get_config()}")
        middle = _HEADER.size + bands * self.numbers * 2
        begin = middle + bands
        pixels = bands * height * width
        fits = pixels <= MOST * low if self.pack_low else low == pixels
        if pixels == 0 or begin + low + high != content.size or not fits:
            raise ShardError("does not decode: its header does not fit its length")
        numbers = content[_HEADER.size : middle].copy().view("<i2")  # copied since the bytes may be unaligned
        return (bands, height, width), (
            numbers.reshape(bands, self.numbers),
            content[middle:begin] != 0,
            content[begin : begin + low],
            content[begin + low :],
        )


class PixelwiseCodec(PlaneCodec):
    """Base of the codecs that predict a pixel from the same pixel in other bands alone, which a device can undo."""

    def unpack(self, data: Any, out: np.ndarray) -> np.ndarray:
        """Undo the compression alone: fill the bytes of ``out`` with the planes, and return the numbers of the bands.

        Args:
            data: the bytes of a tile.
            out: int16 (bands, height, width), C-contiguous. As rows of height * width bytes, the first ones are the
                low plane, and those after it the high plane; what is left keeps its values.

        Returns:
            int32 (bands, COLUMNS): ``VALUES`` and ``MISSING`` don't occur; a band without high bytes has row -1.

        Raises:
            ShardError: the bytes do not hold a tile of this shape.
            ValueError: ``out`` can't be filled in place.
        """
        numbers, wide = self._decompress(data, out)
        table = np.zeros((len(numbers), COLUMNS), np.int32)
        table[:, : self.numbers] = numbers
        table[:, HIGH_ROW] = np.where(wide, len(numbers) - 1 + np.cumsum(wide), -1)
        return table


def same_codes(first: Codec, second: Codec) -> bool:
    """Return whether two codecs differ at most in the compression of the planes: tiles have the same codes."""
    if not isinstance(first, PlaneCodec) or type(first) is not type(second):
        return False
    configs = [codec.get_config().items() for codec in (first, second)]
    before, after = ({name: value for name, value in items if name not in _COMPRESSION} for items in configs)
    return before == after


def checked(tile: np.ndarray) -> np.ndarray:
    """Return an int16 tile (bands, height, width) in C order; raises ValueError for other dtypes or ranks, or if it is
    empty."""
    if tile.dtype != np.int16 or tile.ndim != 3 or not tile.size:
        raise ValueError(f"expected an int16 tile (bands, height, width), got {tile.dtype} {tile.shape}")
    return np.ascontiguousarray(tile)


def writable(out: np.ndarray) -> np.ndarray:
    """Return a buffer that can be filled in place; raises ValueError for any other."""
    if out.dtype != np.int16 or not out.flags.c_contiguous:
        raise ValueError(f"expected a C-contiguous int16 buffer, got {out.dtype} with strides {out.strides}")
    return out


def buffer(name: str, shape: tuple[int, int]) -> np.ndarray:
    """Return a uint8 scratch buffer of this thread; it is reused, since fresh pages cost as much as decoding."""
    flat = getattr(_scratch, name, None)
    if flat is None or flat.size < shape[0] * shape[1]:
        flat = np.empty(shape[0] * shape[1], dtype=np.uint8)
        setattr(_scratch, name, flat)
    return flat[: shape[0] * shape[1]].reshape(shape)
