"""Packing: from the list of tiles to a finished folder of shards, over processes and nodes."""
