"""The port in memory: a client, a cluster with logs, transactions and groups, and faults between them."""
