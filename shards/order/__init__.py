"""The order of samples: counter-based random bits, permutations, epochs, and the tiles a run may see."""
