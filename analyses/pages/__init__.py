"""Numbers in the README and the documentation: tables and sentences, made from the committed tables."""
