"""Self-supervised objectives: modules that turn a batch of views into a loss, one per file."""
