"""Check arguments, vectors and batches before anything is sent to a store."""
