"""One command that proves an installation on a GPU: `make gpu-check`, or `python -m tools.gpu_check`."""
