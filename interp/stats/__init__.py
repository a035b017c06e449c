"""Arrays only: estimates with intervals that respect episodes, and comparisons over games and seeds."""
