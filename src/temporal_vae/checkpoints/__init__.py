"""Weights on disk: strict loading, and the small model that ships with the package (`embedded/`)."""
