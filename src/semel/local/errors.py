"""What can go wrong with the local Kafka, before and while it runs."""

from __future__ import annotations

from semel.errors import SemelError


class LocalKafkaError(SemelError):
    """The local Kafka cannot do what was asked; the message says why and what to do next."""


class ToolMissing(LocalKafkaError):
    """Java or Maven is not on this machine, or too old."""


class ChecksumMismatch(LocalKafkaError):
    """A jar that was fetched is not the one this release of semel was tested with."""


class PortTaken(LocalKafkaError):
    """A port that was asked for belongs to another process."""


class NotReady(LocalKafkaError):
    """The broker process ended, or did not answer in time."""
