"""The order of samples: counter-based random bits, permutations, epochs, and selection of tiles."""
