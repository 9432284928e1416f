"""Triton kernels for what eager torch does in many passes over memory, each behind a torch custom operator."""
