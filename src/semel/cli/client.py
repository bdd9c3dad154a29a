"""Asking a running worker over HTTP."""

from __future__ import annotations

import http.client
import json
from typing import Any, cast
from urllib.parse import urlsplit

from semel.cli.exits import Unreachable
from semel.errors import ConfigError, SemelError

TIMEOUT_S = 30.0  # a worker gives another one five seconds; a page of a merged table asks several times
ANSWER_BYTES_MAX = 256 << 20


class Refused(SemelError):
    """The worker answered, but not with what was asked for; `document` is its answer."""

    def __init__(self, status: int, document: dict[str, Any]) -> None:
        self.status = status
        self.document = {"error": f"the worker answered {status}"} | document
        super().__init__(str(self.document["error"]))


class WorkerClient:
    """GET requests to the worker at `url`. The token is sent where the worker asks for it: `web_token` of the settings.

    ConfigError: no usable URL, or the token is missing or wrong.
    """

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        try:
            parts = urlsplit(self._url)
            port = parts.port
        except ValueError:
            parts, port = urlsplit(""), None
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
            raise ConfigError(f"--url {url!r} is no URL of a worker; write http://host:port")
        secure = parts.scheme == "https"
        self._connection_class = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        self._address = (parts.hostname, port)
        self._base = parts.path
        self._authorization: dict[str, str] = {}

    def get(self, path: str) -> Any:
        """The document of a 200. Refused, Unreachable, ConfigError."""
        status, document = self._request(path)
        if status == 401 and not self._authorization:
            self._authorization = {"Authorization": f"Bearer {self._token()}"}
            status, document = self._request(path)
        if status == 401:
            raise ConfigError(f"{self._url} refuses the web_token of these settings; set that of the worker")
        if status != 200:
            raise Refused(status, cast("dict[str, Any]", document) if isinstance(document, dict) else {})
        return document

    def _request(self, path: str) -> tuple[int, Any]:
        connection = self._connection_class(*self._address, timeout=TIMEOUT_S)
        try:
            connection.request("GET", self._base + path, headers={"Accept": "application/json", **self._authorization})
            response = connection.getresponse()
            body = response.read(ANSWER_BYTES_MAX)
            return response.status, json.loads(body)
        except (OSError, http.client.HTTPException) as lost:
            reason = "no answer in time" if isinstance(lost, TimeoutError) else getattr(lost, "strerror", None)
            cause = reason or str(lost) or type(lost).__name__
            raise Unreachable(
                f"no worker answers at {self._url} ({cause}); start one, or name another with --url"
            ) from lost
        except ValueError as foreign:
            raise Unreachable(f"what answers at {self._url} is not a semel worker; name one with --url") from foreign
        finally:
            connection.close()

    def _token(self) -> str:
        from semel.config import Settings

        token = Settings.load().web_token
        if token is None:
            raise ConfigError(f"{self._url} asks for its web_token; set SEMEL_WEB_TOKEN or SEMEL_WEB_TOKEN_FILE")
        return token.get_secret_value()
