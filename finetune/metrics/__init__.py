"""Scores, their accumulation over tiles, and their statistics."""
