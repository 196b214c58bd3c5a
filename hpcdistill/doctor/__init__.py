"""Check-ups of a machine and of a cluster. Imports: exchange and all below it."""
