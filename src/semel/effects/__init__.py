"""Effects outside Kafka that happen once: a key, an outcome that is remembered, and what to do where nobody knows."""
