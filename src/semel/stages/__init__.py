"""The five stages, in order: source, dedup, agent, sink, commit."""
