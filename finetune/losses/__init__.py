"""Losses of labeled tasks, chosen by the config key ``loss``."""
