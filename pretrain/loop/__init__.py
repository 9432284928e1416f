"""The training loop, what it trains with, validation and probe."""
