"""Checks: verify, compare, inspect and describe a folder of shards."""
