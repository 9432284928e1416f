"""Checkpoints: written, found again, loaded into any world size, and kept or removed."""
