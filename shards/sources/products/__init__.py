"""Products of imaging spectrometers in their native files."""
