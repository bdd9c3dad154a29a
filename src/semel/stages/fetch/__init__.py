"""Fetch: records come from the source, and become values."""
