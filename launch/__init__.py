"""Floor 3: entry points. argv, environment and YAML become typed configs; the work is done below."""
