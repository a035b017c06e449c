"""Games that are played and recorded; each environment in a package of its own."""
