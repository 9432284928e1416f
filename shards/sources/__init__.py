"""Tile sources: rasters of any kind, products, archives, labels, and the layouts of folders."""
