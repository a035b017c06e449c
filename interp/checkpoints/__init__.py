"""Weights on disk: what trainers leave there, read and checked, and a series swapped in place."""
