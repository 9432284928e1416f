"""Floor 3: entry points. They turn argv, environment and YAML into typed configs; the floors below do the work."""
