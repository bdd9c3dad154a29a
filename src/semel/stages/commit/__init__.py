"""Commit: an epoch is cut, written in one transaction, and landed in the store."""
