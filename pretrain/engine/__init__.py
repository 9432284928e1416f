"""The DeepSpeed adapter, optimizers, schedules and momentum networks."""
