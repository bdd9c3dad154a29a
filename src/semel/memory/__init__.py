"""The port in memory: a cluster with logs, transactions and groups, and faults between it and its clients."""
