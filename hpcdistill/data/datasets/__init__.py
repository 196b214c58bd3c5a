"""Data of a user's own: torch datasets and loaders, made by a function."""
