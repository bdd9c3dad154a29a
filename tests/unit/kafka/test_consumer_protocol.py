from __future__ import annotations

import pytest
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment, ConsumerProtocolMemberMetadata

from semel.kafka.consumer_protocol import assigned_data, assignment, subscribed_metadata, subscription


@pytest.mark.parametrize("data", [b"", b"metadata", b"\0\0\xff\xff\xff\xff"])
def test_our_bytes_come_back_out_of_the_envelope(data: bytes) -> None:
    assert subscribed_metadata(subscription(data, ["t"])) == data
    assert assigned_data(assignment(data)) == data


def test_others_read_the_envelope_as_a_consumers() -> None:
    theirs = ConsumerProtocolMemberMetadata.decode(subscription(b"mine", ["b", "a"]))
    assert (theirs.version, theirs.subscription, theirs.user_data) == (0, ["a", "b"], b"mine")
    assigned = ConsumerProtocolMemberAssignment.decode(assignment(b"mine"))
    assert (assigned.version, assigned.assignment, assigned.user_data) == (0, [], b"mine")


def test_later_versions_of_a_stock_consumer_are_read_and_what_is_no_envelope_is_nothing() -> None:
    version_1 = b"\0\1" + subscription(b"theirs", ["t"])[2:] + b"\0\0\0\0"
    assert subscribed_metadata(version_1) == b"theirs"
    for odd in (b"", b"x", b"metadata", b"\0\0\0\0\0\1\0\5abc"):
        assert subscribed_metadata(odd) == b""
    assert assigned_data(b"") == b""
