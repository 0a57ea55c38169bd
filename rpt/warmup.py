"""Supervised warm-up before RPT."""
