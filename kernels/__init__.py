"""The loss row by row, in four implementations behind one interface. Imports: torch."""
