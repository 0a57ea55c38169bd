"""Measurements: python -m benchmarks.NAME states its workload, prints a table and JSON."""
