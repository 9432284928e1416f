"""Predictions for a pretraining run before it has GPUs: memory, step time and reading."""
