"""Preparation of all kinds of data: pieces, folders, bad records. Imports: storage, data."""
