"""Checks of a machine and of a Slurm job. Imports: exchange and all below it."""
