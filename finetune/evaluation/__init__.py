"""What an evaluation is: setting, recipe, provenance, finished parts and results."""
