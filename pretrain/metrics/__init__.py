"""Metrics: FLOPs, timers, rates, and the loggers that record them."""
