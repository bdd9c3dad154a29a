"""How the parts of the cluster say no; the client's side turns it into the port's errors."""

from __future__ import annotations


class Refused(Exception):
    """A request is answered with this error code of the Kafka protocol."""

    def __init__(self, code: int, detail: str = "", member_id: str = "") -> None:
        super().__init__(code, detail)
        self.code = code
        self.detail = detail
        self.member_id = member_id
