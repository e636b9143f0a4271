"""A hub of one data set on this machine: as much of its HTTP interface as fetching a data set takes."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REVISIONS = ("main", COMMIT)


@contextmanager
def small_hub(name: str, folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Serves ``folder`` as the data set ``name``; yields the address and a list that fills with the files sent."""
    sent: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer()

        do_HEAD = do_POST = do_GET

        def log_message(self, *_: object) -> None:
            """Nothing on the terminal."""

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = unquote(urlsplit(self.path).path)
            if not path.removeprefix("/api").startswith(f"/datasets/{name}"):
                self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
                return
            _, _, rest = path.partition(name)
            action, revision, place = ([*rest.strip("/").split("/", 2), "", "", ""])[:3]
            if revision not in (*REVISIONS, ""):
                self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
            elif action == "resolve":
                self._file(folder / place)
            elif action == "paths-info":
                asked = json.loads(body)["paths"] if body.startswith(b"{") else []
                self._json([self._entry(folder / one) for one in asked if (folder / one).exists()])
            elif action == "tree":
                self._json([self._entry(one) for one in sorted((folder / place).rglob("*"))])
            elif action in ("revision", ""):
                self._json({"id": name, "sha": COMMIT, "private": False, "tags": [], "siblings": []})
            else:
                self._send(404, b"", {"X-Error-Code": "EntryNotFound"})

        def _file(self, file: Path) -> None:
            if not file.is_file():
                self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
                return
            if self.command == "GET":
                sent.append(str(file.relative_to(folder)))
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            self._send(200, file.read_bytes(), {"ETag": f'"{digest}"', "X-Repo-Commit": COMMIT})

        def _entry(self, path: Path) -> dict[str, object]:
            kind = "file" if path.is_file() else "directory"
            size = path.stat().st_size if path.is_file() else 0
            oid = hashlib.sha1(str(path).encode()).hexdigest()
            return {"type": kind, "path": str(path.relative_to(folder)), "size": size, "oid": oid}

        def _json(self, content: object) -> None:
            self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

        def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for key, value in ({"Content-Length": str(len(content))} | headers).items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", sent
    finally:
        server.shutdown()
        server.server_close()
