"""Floor 2: from an exported encoder to numbers; tasks, heads, protocols, metrics, report."""
