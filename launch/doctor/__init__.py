"""Checks of a cluster before a run: one row for each requirement, green, yellow or red (docs/doctor.md)."""
