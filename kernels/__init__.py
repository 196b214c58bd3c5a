"""The loss row by row: four implementations of one interface. Imports: torch."""
