"""Causal attention within the segments of a row."""
