"""The flow of an event: fetch, dedup, agent, sink, commit."""
