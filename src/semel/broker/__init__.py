"""What brokers answer, and asking them again."""
