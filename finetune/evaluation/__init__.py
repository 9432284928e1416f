"""The pieces of an evaluation: context, recipe, provenance, finished parts and results."""
