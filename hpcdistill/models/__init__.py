"""Models, and how a saved one is made again. Imports: data, config, storage."""
