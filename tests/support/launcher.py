"""What an MPI launcher tells its ranks: an mpirun started from a test must not take it for its own."""

LAUNCHER_VARIABLES = ("PMI_", "PMIX", "OMPI_COMM_WORLD_", "OMPI_UNIVERSE_", "OMPI_APP_", "PRTE_LAUNCHED")
