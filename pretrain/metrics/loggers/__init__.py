"""Loggers of a run's scalars and figures. Only rank 0 has loggers, and their errors never end a run."""
