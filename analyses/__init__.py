"""The study's analyses: each reads a config, computes and writes a table; `analyses.figures` draws them."""
