"""Text in, training batches out, as numpy: works where jax is not installed."""
