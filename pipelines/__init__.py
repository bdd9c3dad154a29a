"""What runs: each file declares one pipeline, from its source to its sink."""
