"""Convert images of any kind (arrays and tensors, masked or not, scaled or not) to tensors of digital numbers.

Unambiguous input is accepted: masked pixels, NaN and infinities are missing, floats from 0 to 1 are reflectance.
Impossible input is refused in one line, since unmarked missing pixels would change the features silently.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pretrain.weights.description import WeightsError
from shards.sensors.sensor import NODATA, SCALE
from shards.sensors.spectrum import to_nanometers

Images = np.ndarray | Tensor
"""(B, bands, height, width) as given: possibly masked, of any byte order, strides and number type."""

REFLECTANCE = (-1.0, 2.0)
"""Fractions within this range are reflectance."""

SMALLEST_PEAK = 100.0
"""Non-integer values within ± this are not digital numbers: no image is darker than 1 % reflectance throughout."""

LARGEST = 100_000.0
"""The largest possible digital number: nothing reflects ten times the light that falls on it."""

LIKELY = (-100.0, 30_000.0)
"""A pixel with the same value outside this range in all bands marks "no measurement"."""

USUAL_MARK = -9999
"""The value that most products write where nothing was measured; as reflectance it would be -1."""

WIDER = {"u1": "i2", "i1": "i2", "u2": "i4", "u4": "i8", "u8": "f8", "f2": "f4", "f12": "f8", "f16": "f8"}
"""numpy types that torch lacks or that can't hold the marker of missing pixels, and the types that replace them."""

WIDER_TENSORS = {
    torch.uint8: torch.int16,
    torch.int8: torch.int16,
    torch.uint16: torch.int32,
    torch.uint32: torch.int64,
    torch.uint64: torch.int64,
}


def to_batch(images: Any) -> Images:
    """Return anything like an array, of one image (bands, height, width) or several, as a batch, without a copy.

    Raises:
        WeightsError: values that are not real numbers, or another rank.
    """
    try:
        batch = _as_array(images)
    except (TypeError, ValueError, RuntimeError) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"images: not an array of numbers ({why}); give (B, bands, height, width)") from None
    if isinstance(batch, Tensor):
        is_real = not (batch.is_complex() or batch.dtype == torch.bool) and batch.layout == torch.strided
    else:
        is_real = batch.dtype.kind in "iuf"
    if not is_real:
        raise WeightsError(f"images of type {batch.dtype}: give digital numbers (reflectance x 10000) or reflectance")
    if batch.ndim == 3:
        batch = batch[None]
    if batch.ndim != 4:
        raise WeightsError(f"images of shape {tuple(batch.shape)}: give (B, bands, height, width)")
    return batch


def _as_array(images: Any) -> Images:
    if isinstance(images, list | tuple) and images:
        if any(isinstance(image, Tensor) for image in images):
            return torch.stack([torch.as_tensor(image) for image in images])
        if any(np.ma.isMaskedArray(image) for image in images):
            return np.ma.stack(images)
    if isinstance(images, Tensor) or np.ma.isMaskedArray(images):
        return images
    return np.asarray(images)


def check_bands(batch: Images, count: int, hint: str) -> None:
    """Raise WeightsError if images don't have ``count`` bands; ``hint`` says what to do."""
    shape = tuple(batch.shape)
    if shape[1] == count:
        return
    if shape[3] == count:
        move = "images.movedim(-1, -3)" if isinstance(batch, Tensor) else "numpy.moveaxis(images, -1, -3)"
        raise WeightsError(f"images of shape {shape}: their bands are the last axis: give {move}")
    raise WeightsError(f"images of {shape[1]} bands: {hint}")


def band_centers(wavelengths_nm: Any, what: str = "wavelengths_nm") -> np.ndarray:
    """Return band centers in nm, float64 (bands,), given in nm or micrometers.

    Raises:
        WeightsError: a band without a finite number above 0, or two bands with the same center.
    """
    centers = to_nanometers(band_numbers(wavelengths_nm, what))
    values, counts = np.unique(centers, return_counts=True)
    if counts.max(initial=1) > 1:
        center = values[counts.argmax()]
        first, second = np.flatnonzero(centers == center)[:2]
        raise WeightsError(f"{what}: bands {first} and {second} (from 0) are both at {center:g} nm: remove one of them")
    return centers


def band_numbers(values: Any, what: str) -> np.ndarray:
    """Return one number above 0 for each band, float64 (bands,); raises WeightsError for anything else."""
    try:
        array = values.detach().cpu() if isinstance(values, Tensor) else values
        numbers = np.ma.filled(np.ma.asarray(array, dtype=np.float64), np.nan)
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{what}: not a number for each band ({error})") from None
    if numbers.ndim != 1:
        raise WeightsError(f"{what}: shape {numbers.shape}: give one number per band")
    wrong = np.flatnonzero(~(np.isfinite(numbers) & (numbers > 0)))
    if len(wrong):
        raise WeightsError(
            f"{what}: {numbers[wrong[0]]:g} for band {wrong[0]} (from 0): give its value in nm, or remove the band "
            "from both"
        )
    return numbers


def to_tensor(batch: Images) -> Tensor:
    """Return images as signed integers or floats; masked pixels, NaN and infinities become `NODATA`."""
    values = batch if isinstance(batch, Tensor) else torch.from_numpy(_plain(batch))
    values = values.to(WIDER_TENSORS.get(values.dtype, values.dtype))
    if not values.is_floating_point():
        return values
    if values.dtype != torch.float64:
        values = values.float()
    return torch.where(values.isfinite(), values, float(NODATA))


def _plain(batch: np.ndarray) -> np.ndarray:
    """An array as torch needs it: native byte order, C-contiguous, writable, without a mask."""
    mask, data = np.ma.getmask(batch), np.ma.getdata(batch)
    kind = data.dtype.str[1:]
    data = data.astype(np.dtype(WIDER.get(kind, kind)), copy=False)
    if mask is not np.ma.nomask:
        data = np.where(mask, data.dtype.type(NODATA), data)
    return np.require(data, requirements=["C", "W"])


@dataclass(frozen=True)
class ValueRange:
    """The smallest and largest value that is not missing, and whether all values are integers."""

    low: float
    high: float
    are_integers: bool


def value_range(values: Tensor, scale: float = 1.0) -> ValueRange | None:
    """Return the range of a tensor of `to_tensor`; None if all pixels are missing.

    Args:
        scale: factor that converts the values to digital numbers.

    Raises:
        WeightsError: values that can only mark missing pixels, or that can't be reflectance in any scale.
    """
    values = values.detach()
    low, high = (float(end) for end in torch.aminmax(values)) if values.numel() else (0.0, 0.0)
    if LIKELY[0] <= low and high <= LIKELY[1] and not values.is_floating_point():
        return ValueRange(low, high, True)
    missing = values == NODATA
    ends = torch.iinfo(values.dtype) if not values.is_floating_point() else torch.finfo(values.dtype)
    lowest, highest = values.masked_fill(missing, ends.max).amin(1), values.masked_fill(missing, ends.min).amax(1)
    low, high = float(lowest.min()), float(highest.max())
    if low > high:
        return None
    _check_marks(values, lowest, highest, scale)
    if max(-low, high) > LARGEST:
        raise WeightsError(_no_reflectance(low if -low > high else high, ""))
    are_integers = not values.is_floating_point() or bool(((values == values.round()) | missing).all())
    return ValueRange(low, high, are_integers)


def _check_marks(values: Tensor, lowest: Tensor, highest: Tensor, scale: float) -> None:
    """Refuse values that mark missing pixels; ``lowest`` and ``highest`` are over the bands of each pixel."""
    unlikely = (lowest * scale < LIKELY[0]) | (highest * scale > LIKELY[1])
    marks = (lowest == highest) & unlikely & (values.shape[1] > 2)
    if bool(marks.any()):
        raise WeightsError(_no_reflectance(float(lowest[marks][0]), " in all bands of a pixel"))
    if bool((values == USUAL_MARK / scale).any()):
        raise WeightsError(_no_reflectance(USUAL_MARK / scale, " in some bands"))


def _no_reflectance(value: float, where: str) -> str:
    exact = value.is_integer() and abs(value) < LARGEST
    how = f"numpy.ma.masked_{'equal' if exact else 'values'}(images, {value:.7g})"
    return (
        f"images with the value {value:.7g}{where}: not reflectance; if it marks missing pixels, use NaN, -32768 or "
        f"a masked array there ({how})"
    )


def scale_of(ranges: Iterable[ValueRange | None]) -> float:
    """Return the factor that converts images with these values to digital numbers: 1, or ``SCALE`` for reflectance.

    Raises:
        WeightsError: they are neither.
    """
    known = [value_range for value_range in ranges if value_range is not None]
    if all(value_range.are_integers for value_range in known):
        return 1.0
    low, high = min(value_range.low for value_range in known), max(value_range.high for value_range in known)
    if REFLECTANCE[0] <= low and high <= REFLECTANCE[1]:
        return SCALE
    if low == NODATA / SCALE or low == float(np.float32(NODATA / SCALE)):
        raise WeightsError(_no_reflectance(NODATA / SCALE, f" ({NODATA} / {SCALE:g})"))
    if max(-low, high) <= SMALLEST_PEAK:
        raise WeightsError(
            f"images with values from {low:.3g} to {high:.3g}: neither reflectance x 10000 nor reflectance from 0 to "
            "1: multiply percent by 100, undo a normalization"
        )
    return 1.0
