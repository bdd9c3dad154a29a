"""Kafka behind the port: the only package that knows aiokafka."""

from semel.kafka.broker import KafkaBroker
from semel.kafka.security import Security

__all__ = ["KafkaBroker", "Security"]
