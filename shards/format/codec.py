"""The lossless tile codec: least-squares prediction of each band from the three below it, and packed residuals.

A spectrum is smooth, so three bands predict the next one to within its noise. The coefficients are fitted
to each tile and band and stored with it. Residuals are taken modulo 2**16, so every int16 value is preserved;
their zig-zag codes are split into a plane of low bytes and one of high bytes. The high plane is omitted for
bands that don't need it (two of three on real tiles); for the others it is almost all zeros and is compressed
with zstd. The low plane is nearly noise: zstd makes it a quarter smaller (*compact*), or it is stored uncompressed
and read in place (*fast*). Stronger prediction does not pay off: adding the row above makes files 3.5 % smaller and
decoding 20 % slower, a fourth band 1 % and 10 % (`tools/bench_codec.py` measures the codec).
"""

import struct
import threading
from typing import Any

import numpy as np
from numcodecs import Zstd, register_codec
from numcodecs.abc import Codec

from shards.errors import ShardError
from shards.sensors.sensor import NODATA

_HEADER = struct.Struct("<4sBBHIIIII")  # magic, version, flags, -, bands, height, width, bytes of low plane, of high
_MAGIC, _VERSION = b"SPRD", 1
_COLUMNS = 4  # coefficients of a band: 3 bands below, constant
_UNIT = 1.0 / 2048.0
_BLOCK = 2048  # pixels processed through all bands at a time
_FIT_ROWS = 4  # every fourth row is enough to fit four numbers

MOST = 1 << 16
"""Upper bound of the compression ratio of any packed file: zstd reaches 2**15, deflate 2**10."""

_scratch = threading.local()


class SpectralPredictor(Codec):
    """numcodecs codec for int16 tiles (bands, height, width).

    Args:
        pack_low: whether to compress the plane of low bytes too: 25 % smaller, 2.5 times slower to decode.
    """

    codec_id = "spectral_predictor"

    def __init__(self, pack_low: bool = False) -> None:
        self.pack_low = bool(pack_low)
        self._flags = int(self.pack_low)
        self.most = MOST if self.pack_low else 2  # bytes of a tile per stored byte
        self._zstd = Zstd(level=1)

    def encode(self, tile: np.ndarray) -> bytes:
        """Pack an int16 tile (bands, height, width); raises ValueError for other dtypes or ranks, or an empty tile."""
        from shards.format import kernels  # importing compiled code takes 0.3 s

        tile = _checked(tile)
        bands, height, width = tile.shape
        flat = tile.reshape(bands, -1)
        low, high = _buffer("low", flat.shape), _buffer("high", flat.shape)
        units = _fit(flat, width)
        kernels.difference(flat, units, low, high)
        packed_low = self._zstd.encode(low) if self.pack_low else low.tobytes()
        wide = high.any(axis=1)
        packed_high = self._zstd.encode(np.ascontiguousarray(high[wide]))
        header = _HEADER.pack(_MAGIC, _VERSION, self._flags, 0, bands, height, width, len(packed_low), len(packed_high))
        return b"".join((header, units.astype("<i2").tobytes(), wide.tobytes(), packed_low, packed_high))

    def decode(self, data: Any, out: np.ndarray | None = None) -> np.ndarray:
        """Unpack into ``out``, int16 (bands, height, width), C-contiguous, or into a new array, and return it.

        Raises:
            ShardError: if the bytes do not hold a tile of this shape.
            ValueError: if ``out`` can't be filled in place.
        """
        from shards.format import kernels

        content = np.frombuffer(data, dtype=np.uint8)
        shape, (units, wide, low, high) = self._parts(content)
        if out is None:
            out = np.empty(shape, dtype=np.int16)
        target = _writable(out)
        if target.size != shape[0] * shape[1] * shape[2]:
            raise ShardError(f"holds a tile of {shape}, expected {out.shape}")
        flat = target.reshape(shape[0], -1)
        low = self._unpack("low", low, flat.shape) if self.pack_low else low.reshape(flat.shape)
        count = int(np.count_nonzero(wide))
        plane = _buffer("high", (count + 1, flat.shape[1]))
        if count:
            self._unpack("high", high, (count, flat.shape[1]))
        plane[count] = 0  # shared by all bands without a high plane
        rows = np.where(wide, np.cumsum(wide) - 1, count)
        kernels.restore(low, plane, rows, units, flat, _BLOCK)
        return out

    def _parts(self, content: np.ndarray) -> tuple[tuple[int, int, int], tuple[np.ndarray, ...]]:
        """Return shape, coefficients, bands with high bytes and the two planes, with all sizes validated."""
        if content.size < _HEADER.size:
            raise ShardError(f"does not decode: {content.size} bytes are too few for a tile")
        magic, version, flags, _, bands, height, width, low, high = _HEADER.unpack(content[: _HEADER.size].tobytes())
        if (magic, version, flags) != (_MAGIC, _VERSION, self._flags):
            raise ShardError(f"does not decode: not written by {self.get_config()}")
        middle = _HEADER.size + bands * _COLUMNS * 2
        begin = middle + bands
        pixels = bands * height * width
        fits = pixels <= MOST * low if self.pack_low else low == pixels
        if pixels == 0 or begin + low + high != content.size or not fits:
            raise ShardError("does not decode: its header does not fit its length")
        units = content[_HEADER.size : middle].copy().view("<i2")  # copied since the bytes may be unaligned
        return (bands, height, width), (
            units.reshape(bands, _COLUMNS),
            content[middle:begin] != 0,
            content[begin : begin + low],
            content[begin + low :],
        )

    def shape_of(self, data: Any) -> tuple[int, int, int]:
        """Return (bands, height, width) from the header, without decoding; raises ShardError like `decode`."""
        return self._parts(np.frombuffer(data, dtype=np.uint8))[0]

    def _unpack(self, name: str, packed: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
        """Decompress a plane of bytes into this thread's scratch buffer."""
        plane = _buffer(name, shape)
        if _content_size(packed) != plane.size:
            raise ShardError(f"does not decode: its {name} plane has the wrong length")
        try:
            self._zstd.decode(packed, plane)
        except (RuntimeError, ValueError) as error:
            raise ShardError(f"does not decode: {error}") from None
        return plane

    def get_config(self) -> dict[str, Any]:
        return {"id": self.codec_id, "pack_low": self.pack_low}


class RawTile(Codec):
    """numcodecs codec that stores int16 values unchanged, little-endian, so that reads need no copy."""

    codec_id, most = "raw_tile", 1

    def encode(self, tile: np.ndarray) -> bytes:
        """Return the bytes of an int16 tile (bands, height, width); raises ValueError for other dtypes or ranks."""
        return _checked(tile).astype("<i2").tobytes()

    def decode(self, data: Any, out: np.ndarray | None = None) -> np.ndarray:
        """Copy into ``out``, int16, C-contiguous; without it return a flat array, since the shape is not stored."""
        values = np.frombuffer(data, dtype=np.uint8)
        if out is None:
            return values.copy().view("<i2")
        target = _writable(out)
        if values.size != target.nbytes:
            raise ShardError(f"holds {values.size} bytes, expected {target.nbytes}")
        target.reshape(-1).view(np.uint8)[:] = values
        return out


register_codec(SpectralPredictor)
register_codec(RawTile)


def _checked(tile: np.ndarray) -> np.ndarray:
    if tile.dtype != np.int16 or tile.ndim != 3 or not tile.size:
        raise ValueError(f"expected an int16 tile (bands, height, width), got {tile.dtype} {tile.shape}")
    return np.ascontiguousarray(tile)


def _writable(out: np.ndarray) -> np.ndarray:
    if out.dtype != np.int16 or not out.flags.c_contiguous:
        raise ValueError(f"expected a C-contiguous int16 buffer, got {out.dtype} with strides {out.strides}")
    return out


def _buffer(name: str, shape: tuple[int, int]) -> np.ndarray:
    """Return a uint8 scratch buffer of this thread; it is reused, since fresh pages cost as much as decoding."""
    flat = getattr(_scratch, name, None)
    if flat is None or flat.size < shape[0] * shape[1]:
        flat = np.empty(shape[0] * shape[1], dtype=np.uint8)
        setattr(_scratch, name, flat)
    return flat[: shape[0] * shape[1]].reshape(shape)


def _content_size(frame: np.ndarray) -> int:
    """Return the content size in a zstd frame header, -1 if there is none (RFC 8878, section 3.1.1.1)."""
    if frame.size < 6 or bytes(frame[:4]) != b"\x28\xb5\x2f\xfd":
        return -1
    descriptor = int(frame[4])
    single, kind = descriptor >> 5 & 1, descriptor >> 6
    width = (1 if single else 0, 2, 4, 8)[kind]
    begin = 5 + (0 if single else 1) + (0, 1, 2, 4)[descriptor & 3]
    if not width or frame.size < begin + width:
        return -1
    return int.from_bytes(bytes(frame[begin : begin + width]), "little") + (256 if width == 2 else 0)


def _fit(flat: np.ndarray, width: int) -> np.ndarray:
    """Return least-squares coefficients, int16 (bands, 4), in units of 2**-11, and the constant in units of 1.

    The normal equations are built from exact integer sums and solved by plain elimination in float64, all bands at
    once, which gives the same bytes on every machine. LAPACK does not guarantee that.
    """
    from shards.format import kernels

    sums = np.empty((len(flat), 5, 5), dtype=np.int64)
    kernels.gram(flat, width, _FIT_ROWS, np.int16(NODATA), sums)
    matrix = sums.astype(np.float64)
    left, right = matrix[:, :4, :4], matrix[:, :4, 4]
    diagonal = np.arange(_COLUMNS)
    left[:, diagonal, diagonal] += 0.25 * np.maximum(matrix[:, 3, 3], 1.0)[:, None]  # flat bands have no unique fit
    solution = _eliminate(left, right)
    solution[:, :3] /= _UNIT
    return np.clip(np.rint(solution), -32768, 32767).astype(np.int16)


def _eliminate(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Solve (n, k, k) positive definite systems without pivoting; returns float64 (n, k)."""
    left, right = left.copy(), right.copy()
    size = right.shape[1]
    for pivot in range(size):
        for row in range(pivot + 1, size):
            factor = left[:, row, pivot] / left[:, pivot, pivot]
            left[:, row, pivot:] -= factor[:, None] * left[:, pivot, pivot:]
            right[:, row] -= factor * right[:, pivot]
    for pivot in reversed(range(size)):
        for row in range(pivot + 1, size):
            right[:, pivot] -= left[:, pivot, row] * right[:, row]
        right[:, pivot] /= left[:, pivot, pivot]
    return right
