from support.kernels import interpreter  # noqa: F401
