"""Dedup: what each record is, and what becomes of those that the agent does not get."""
