"""Predictions of memory, step time and reading for a pretraining run, before GPUs are allocated."""
