"""State: RocksDB below, an overlay of what is not committed yet above, the changelog beside them."""
