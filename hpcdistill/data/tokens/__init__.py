"""Text as tokens: store, batches, preparation."""
