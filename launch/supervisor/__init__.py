"""Restarts of a run within its Slurm job: which nodes it runs on, what ended it, and what happens next."""
