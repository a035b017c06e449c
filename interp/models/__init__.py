"""One hooked model: its hook points, and which of its computations are exact on which path."""
