"""Tables as rows: store, batches, preparation."""
