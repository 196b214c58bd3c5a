"""Prefixes of the variables that an MPI launcher sets for its ranks, and that a launcher in a test must not see."""

LAUNCHER_VARIABLES = ("PMI_", "PMIX", "OMPI_COMM_WORLD_", "OMPI_UNIVERSE_", "OMPI_APP_", "PRTE_LAUNCHED")
