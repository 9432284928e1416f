"""Compiles the loops of the codecs into numba's cache, before many processes that start together each do it."""

import numpy as np

from shards.format.bounded import BoundedPredictor
from shards.format.codec import SpectralPredictor
from shards.format.row_predictor import RowPredictor

tile = np.arange(6 * 8 * 8, dtype=np.int16).reshape(6, 8, 8)
for codec in (SpectralPredictor(pack_low=True), RowPredictor(pack_low=True), BoundedPredictor("noise/4")):
    codec.decode(codec.encode(tile))
