"""From a decision, a conversation or plain text to token ids with spans and the prompt boundary."""
