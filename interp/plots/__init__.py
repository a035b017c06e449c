"""Figures from tables beside their captions, and their export."""
