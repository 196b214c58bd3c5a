"""Pictures as images: store, batches, preparation."""
