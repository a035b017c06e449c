"""ALFWorld's household, played by its own rules: scenes, engine, expert, traces and recorded corpus."""
