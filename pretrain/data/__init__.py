"""Training data: the stream of tiles to the device, augmentation, and a PyTorch dataset."""
