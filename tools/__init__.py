"""Planner, converter, benchmarks and sample data: may import everything, is imported by nothing but tests."""
