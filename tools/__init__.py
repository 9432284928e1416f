"""Demo, synthetic samples, benchmarks and documentation pages: they may import everything, and nothing imports them."""
