"""Tile sources: rasters, products, archives, labels, and folder layouts."""
