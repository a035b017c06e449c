"""Tables with their provenance, records with their hash, and what is read out of them; nothing here draws."""
