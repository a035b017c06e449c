"""Arrays only: linear probes with their controls, and what is computed from them."""
