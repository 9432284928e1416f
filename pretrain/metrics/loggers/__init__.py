"""Loggers: where the scalars and figures of a run go. Only rank 0 has any, and their errors never end a run."""
