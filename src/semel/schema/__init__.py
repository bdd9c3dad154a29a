"""Types of values: what is exact, what has changed."""
