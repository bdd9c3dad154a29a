from __future__ import annotations

import socket
import threading

import pytest

from semel.local import ports
from semel.local.errors import PortTaken


def test_a_port_somebody_listens_on_is_refused_by_number() -> None:
    (free, taken) = ports.choose(2)
    with socket.create_server(("127.0.0.1", taken)), pytest.raises(PortTaken, match=f"Port {taken} "):
        ports.refuse_taken([free, taken])
    ports.refuse_taken([free, taken])


def test_a_port_taken_on_all_addresses_is_taken_here_too() -> None:
    (port,) = ports.choose(1)
    with socket.create_server(("", port)):
        assert not ports.is_free(port)


def test_a_port_with_only_a_finished_connection_is_free() -> None:
    (port,) = ports.choose(1)
    server = socket.create_server(("127.0.0.1", port))
    client = socket.create_connection(("127.0.0.1", port))
    accepted, _ = server.accept()
    accepted.close()  # the side that closes first is the one that lingers
    client.close()
    server.close()
    assert ports.is_free(port)


def test_chosen_ports_differ_and_lie_below_the_range_of_outgoing_connections() -> None:
    chosen = ports.choose(50)
    assert len(set(chosen)) == 50
    assert all(20000 <= port < 32768 for port in chosen)


def test_ports_promised_elsewhere_are_not_chosen() -> None:
    every_port_but_one = set(ports.RANGE) - {ports.choose(1)[0]}
    (left,) = ports.choose(1, every_port_but_one)
    assert left not in every_port_but_one
    with pytest.raises(PortTaken):
        ports.choose(2, every_port_but_one)


def test_a_port_that_is_being_let_go_is_waited_for() -> None:
    (port,) = ports.choose(1)
    server = socket.create_server(("127.0.0.1", port))
    letting_go = threading.Timer(0.2, server.close)
    letting_go.start()
    ports.refuse_taken([port], wait_s=30)
    letting_go.join()
    assert ports.is_free(port)
