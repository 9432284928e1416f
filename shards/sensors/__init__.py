"""Sensors: band tables, band matching by wavelength, spectral response and resampling."""
