"""Checks of a cluster before the queue: what a run needs of it, one row each, green or red (docs/doctor.md)."""
