"""Counts what a training step asks of a GPU, without one: kernels, bytes, collectives, and waits of the host.

The step is the trainer's: the real loop, objective, DeepSpeed engine and guard, on tensors of a device "cuda" without
storage, as rank 0 of a process group whose collectives do nothing. ``python -m tools.fake_cuda --help``
"""
