"""Check of the package on a GPU that can be reached for half an hour only: what it needs, and its three commands."""
