"""`semel chaos`: a user's own pipeline under kills, freezes, lost answers and rebalances, and the proof at the end."""
