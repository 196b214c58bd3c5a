"""The commands. Imports: everything."""
