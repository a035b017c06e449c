"""The page of a run: its sections, and what each says of the tables."""
