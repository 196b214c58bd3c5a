"""Files that are whole or absent: HDF5, checkpoints, metrics, the run folder. Imports: errors."""
