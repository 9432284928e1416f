"""Resilience: guard, watchdog, signals, damaged tiles, and the run folder."""
