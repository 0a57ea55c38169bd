"""Experiments: one file each, a function get_config(arg='') that returns a ConfigDict."""
