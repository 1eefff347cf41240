"""Associative memories that settle."""
