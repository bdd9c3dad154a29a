"""The parts of a Kafka cluster, in memory: logs, transactions, groups, and the faults between them and a client."""
