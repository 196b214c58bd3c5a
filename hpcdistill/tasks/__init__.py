"""Tasks: batches, objective and scores for each kind of data. Imports: losses, data, config."""
