"""What was decided: episodes and decisions, the schema of their files, and actions as text."""
