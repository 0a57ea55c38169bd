"""Sampling of tokens with counter-based noise, and the log-probability sampled from."""
