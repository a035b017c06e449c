"""Logs of other programs as decisions: OpenAI messages, ShareGPT, inspect_ai, rollouts of TRL and verl."""
