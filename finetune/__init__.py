"""Floor 2: evaluation of an exported encoder; tasks, heads, protocols, metrics, report."""
