"""The consumer group: membership, and who runs what."""
