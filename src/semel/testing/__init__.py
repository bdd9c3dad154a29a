"""What tests stand on: an in-memory broker, its faults, and virtual time."""
