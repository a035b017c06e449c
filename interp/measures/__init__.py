"""Causal instruments: patching, attribution, prompt reliance, conflicts, early answers, shares, steering."""
