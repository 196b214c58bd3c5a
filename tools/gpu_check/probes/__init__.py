"""Programs of the check that use torch; each runs in a process of its own, which may crash or hang."""
