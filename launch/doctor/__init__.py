"""Checks of a cluster before a run: one green, yellow or red row per requirement (docs/doctor.md)."""
