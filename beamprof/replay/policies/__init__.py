"""Policies to be compared: each a small file, found by name in registry.py."""
