"""Stores of tokens, rows and images: preparation and batches. Imports: storage, config."""
