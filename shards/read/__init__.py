"""Reading: planned reads of tiles, quarantine of damaged tiles, the Zarr view of the shards."""
