"""The demo, synthetic samples, benchmarks and documentation pages: may import everything; nothing imports them."""
