"""Floor 1: encoders, self-supervised objectives, the ZeRO-3 engine, checkpoints and the training loop."""
