"""Exact batched passes: packs, sweeps, decoding, captures and their store."""
