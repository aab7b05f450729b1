"""A hub on this machine: the few routes by which the clients of Hugging Face and ModelScope fetch a repository.

python small_hub.py FOLDER      serves FOLDER/models/ORG/NAME and FOLDER/datasets/ORG/NAME, and prints its address
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """Answers from the files of a folder."""

    root = Path()
    asked: list[str] = []
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self._answer()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def _answer(self) -> None:
        url = urlsplit(self.path)
        path, query = unquote(url.path).strip("/"), parse_qs(url.query)
        self.asked.append(f"{self.command} {path}")
        for pattern, method in ROUTES.items():
            found = re.fullmatch(pattern, path)
            if found:
                method(self, found.groupdict(), query)
                return
        self._json({"error": f"no route {path}"}, 404)

    def _folder(self, of: dict[str, str]) -> Path:
        return self.root / (of.get("kind") or "models") / of["name"]

    def _info(self, of: dict[str, str], query: dict[str, list[str]]) -> None:
        folder = self._folder(of)
        if not folder.is_dir():
            self._json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
            return
        files = [{"rfilename": name} for name in _names(folder)]
        shared = {"id": of["name"], "sha": COMMIT, "siblings": files, "private": False, "gated": False, "tags": []}
        self._json({**shared, "_id": "1", "disabled": False, "downloads": 0, "likes": 0, "lastModified": None})

    def _tree(self, of: dict[str, str], query: dict[str, list[str]]) -> None:
        folder = self._folder(of)
        self._json([_entry(folder, name) for name in _names(folder)])

    def _paths(self, of: dict[str, str], query: dict[str, list[str]]) -> None:
        folder = self._folder(of)
        text = self.body.decode()
        wanted = json.loads(text)["paths"] if text.startswith("{") else parse_qs(text).get("paths", [])
        self._json([_entry(folder, name) for name in _names(folder) if name in wanted])

    def _file(self, of: dict[str, str], query: dict[str, list[str]]) -> None:
        name = query["FilePath"][0] if "FilePath" in query else of["file"]
        file = self._folder(of) / name
        if not file.is_file():
            self._json({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            return
        self._bytes(file.read_bytes(), 200, {"X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"})

    def _json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._bytes(json.dumps(value).encode(), status, {"Content-Type": "application/json", **(headers or {})})

    def _bytes(self, content: bytes, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        digest = hashlib.sha1(content).hexdigest()
        for name, value in {"ETag": f'"{digest}"', "Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    # ── ModelScope ──

    def _scope_info(self, of: dict[str, str], query: dict[str, list[str]]) -> None:
        there = self._folder(of).is_dir()
        data = {"Id": 1, "Name": of["name"].split("/")[1], "Type": 1} if there else None
        self._json(
            {"Code": 200 if there else 404, "Success": there, "Data": data, "Message": ""}, 200 if there else 404
        )

    def _scope_revisions(self, of: dict[str, str], query: dict[str, list[str]]) -> None:
        branches = [{"Revision": "master", "CreatedAt": 1_700_000_000}]
        self._json({"Code": 200, "Success": True, "Data": {"RevisionMap": {"Branches": branches, "Tags": []}}})

    def _scope_files(self, of: dict[str, str], query: dict[str, list[str]]) -> None:
        folder = self._folder(of)
        files = [_scope_entry(folder, name) for name in _names(folder)]
        page = int(query.get("PageNumber", ["1"])[0])
        data = {"Files": files if page == 1 else [], "TotalCount": len(files), "LatestCommitter": {"Revision": COMMIT}}
        self._json({"Code": 200, "Success": True, "Data": data})


NAME = r"(?P<name>[\w.-]+/[\w.-]+)"
KIND = r"(?P<kind>models|datasets)"
ROUTES = {
    rf"api/{KIND}/{NAME}(/revision/[^/]+)?": Hub._info,
    rf"api/{KIND}/{NAME}/tree/[^/]+(/.*)?": Hub._tree,
    rf"api/{KIND}/{NAME}/paths-info/[^/]+": Hub._paths,
    rf"((?P<kind>datasets)/)?{NAME}/resolve/[^/]+/(?P<file>.+)": Hub._file,
    rf"api/v1/{KIND}/{NAME}": Hub._scope_info,
    rf"api/v1/{KIND}/{NAME}/revisions": Hub._scope_revisions,
    rf"api/v1/{KIND}/{NAME}/repo/(files|tree)": Hub._scope_files,
    rf"api/v1/{KIND}/{NAME}/repo": Hub._file,
}


def _names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _entry(folder: Path, name: str) -> dict[str, Any]:
    content = (folder / name).read_bytes()
    return {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}


def _scope_entry(folder: Path, name: str) -> dict[str, Any]:
    content = (folder / name).read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    shared = {"Name": Path(name).name, "Path": name, "Type": "blob", "Size": len(content), "Sha256": digest}
    return {**shared, "Revision": COMMIT, "IsLFS": False, "Mode": "33188", "CommittedDate": 1_700_000_000}


def main() -> None:
    Hub.root = Path(sys.argv[1])
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    sys.stdout.write(f"http://127.0.0.1:{server.server_port}\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    main()
