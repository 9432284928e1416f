"""Reading: planned reads of tiles, damaged tiles set aside, the Zarr view of the shards."""
