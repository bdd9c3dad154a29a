"""The local Kafka before anything is started: what its directory must be."""

from __future__ import annotations

from pathlib import Path

import pytest

from semel.local.errors import LocalKafkaError
from semel.local.kafka import LocalKafka


def test_a_data_directory_that_is_a_file_is_refused_with_the_way_out(tmp_path: Path) -> None:
    place = tmp_path / "a file"
    place.write_text("x")
    with pytest.raises(LocalKafkaError, match=r"a file cannot hold a broker's data .* --data"):
        LocalKafka.existing(place)
    with pytest.raises(LocalKafkaError, match=r"inside cannot hold a broker's data .* --data"):
        LocalKafka(place / "inside").start()


def test_an_empty_directory_holds_no_kafka(tmp_path: Path) -> None:
    assert LocalKafka.existing(tmp_path) is None
