"""One worker: its engine, and the process around it."""
