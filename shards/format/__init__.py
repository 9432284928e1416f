"""The shard format: tile codec, manifest, tile table, per-band statistics."""
