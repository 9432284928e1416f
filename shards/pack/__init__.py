"""Packing: from the list of tiles to a finished folder of shards, parallel over processes and nodes."""
