"""ALFWorld's household, played by its own rules: scenes, engine, an expert, its traces and the recorded corpus."""
