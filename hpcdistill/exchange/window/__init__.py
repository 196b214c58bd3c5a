"""The transport over MPI one-sided windows."""
