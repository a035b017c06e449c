"""Whole games: many side by side, decoding batched over them."""
