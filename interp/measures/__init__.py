"""Causal instruments: patching, attribution, prompt reliance, conflicting traces, early answering, shares, steering."""
