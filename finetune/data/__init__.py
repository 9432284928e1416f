"""Labeled tiles: layouts of downloads, splits, datasets, content hashes and checks."""
