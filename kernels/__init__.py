"""Fused operations, each with one public function in its api module."""
