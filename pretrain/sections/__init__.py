"""The sections of a pretraining config, each a typed model with its own rules."""
