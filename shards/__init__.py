"""Floor 0: tiles in, WebDataset tar shards out, and back again in an exactly resumable order."""
