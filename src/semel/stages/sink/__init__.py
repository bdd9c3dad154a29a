"""Sink: results, dead letters and what is sent without an event become records."""
