"""Token stores on disk, and each rank's batches from them."""
