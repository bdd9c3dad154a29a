"""What is done: agents, with the types of the events they handle. No Kafka in sight."""
