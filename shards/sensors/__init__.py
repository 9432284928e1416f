"""Sensors: band tables, bands found by wavelength, spectral response and resampling."""
