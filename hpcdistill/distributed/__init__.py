"""Processes: start, end, groups of ranks, averaged gradients. Imports: losses, config, storage."""
