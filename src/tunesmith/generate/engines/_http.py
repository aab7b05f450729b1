"""Requests to a server that speaks OpenAI's API: JSON there and back, and Problems for what does not pass by itself.

    429, 5xx, no connection, no answer in time    tried again, each time after twice as long
    anything else                                 a Problem with what the server said

The key goes to the given address alone: redirects are not followed, and no key leaves this machine in clear text.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, OpenerDirector, ProxyHandler, Request, build_opener

from tunesmith.core.problem import Problem

LARGEST = 1 << 26
"""Bytes of an answer that are read at most."""
HERE = ("127.0.0.1", "::1", "localhost")


class _Stay(HTTPRedirectHandler):
    """Follows no redirect, so that what was meant for one server reaches no other."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


@dataclass(frozen=True, slots=True)
class Server:
    """A server by its address, such as http://127.0.0.1:8000/v1. key: sent with each request, empty for none."""

    address: str
    key: str
    timeout_seconds: float
    retries: int
    pause_seconds: float

    def __post_init__(self) -> None:
        """Raises: Problem: no address, or the key would travel in clear text."""
        parts = urlsplit(self.address)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise Problem(f"address {self.address!r}", "is no address of a server", "Such as http://127.0.0.1:8000/v1")
        if self.key and parts.scheme == "http" and parts.hostname not in HERE:
            what = "is on another machine and not encrypted, and a key would be sent to it"
            raise Problem(f"address {self.address}", what, "Use https, or name a variable that holds no key")

    def ask(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """What the server answers.

        Raises:
            Problem: it cannot be reached, refuses, or answers with no JSON object.
        """
        with closing(self._open(path, body)) as response:
            try:
                found = json.loads(response.read(LARGEST))
            except (OSError, HTTPException) as error:
                raise self._fault(f"broke off its answer ({_why(error)})") from error
            except ValueError as error:
                raise self._fault(f"answered with no JSON ({error})") from error
        if not isinstance(found, dict):
            raise self._fault(f"answered with {type(found).__name__} and no JSON object")
        return found

    def events(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The parts of an answer as they come.

        Raises:
            Problem: as `ask`.
        """
        with closing(self._open(path, {**body, "stream": True})) as response:
            try:
                for line in response:
                    name, _, value = line.decode("utf-8", "replace").partition(":")
                    if name == "data" and value.strip() == "[DONE]":
                        return
                    if name == "data":
                        yield json.loads(value)
            except (OSError, HTTPException) as error:
                raise self._fault(f"broke off its answer ({_why(error)})") from error
            except ValueError as error:
                raise self._fault(f"sent a part that is no JSON ({error})") from error

    def _open(self, path: str, body: dict[str, Any]) -> Any:
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        request = Request(f"{self.address.rstrip('/')}/{path}", json.dumps(body).encode(), headers, method="POST")
        for attempt in range(self.retries + 1):
            try:
                return self._opener().open(request, timeout=self.timeout_seconds)
            except HTTPError as error:
                if attempt == self.retries or not (error.code == 429 or error.code >= 500):
                    raise self._refused(error) from error
            except (OSError, HTTPException) as error:
                if attempt == self.retries:
                    tries = f" after {self.retries + 1} tries" if self.retries else ""
                    raise self._fault(f"cannot be reached{tries} ({_why(error)})") from error
            time.sleep(self.pause_seconds * 2**attempt)
        raise AssertionError("the last try returns or raises")

    def _opener(self) -> OpenerDirector:
        here = urlsplit(self.address).hostname in HERE
        return build_opener(_Stay, *([ProxyHandler({})] if here else []))

    def _refused(self, error: HTTPError) -> Problem:
        with closing(error):
            said = error.read(4096).decode("utf-8", "replace")
        try:
            found = json.loads(said)
            inner = found.get("error", found)
            said = str(inner.get("message", inner) if isinstance(inner, dict) else inner)
        except (ValueError, AttributeError):
            pass
        return self._fault(f"refused with status {error.code} ({' '.join(said.split())[:300] or error.reason})")

    def _fault(self, what: str) -> Problem:
        return Problem(f"server {self.address}", what, "Check that it runs, its model's name and the key")


def _why(error: Exception) -> str:
    return str(getattr(error, "reason", None) or error or type(error).__name__)
