"""A stand-in for the Hub on this machine: what the real client speaks to over HTTP, with the mishaps of a real one.

Source of the interface: what `huggingface_hub` sends (`hf_api.py`, `lfs.py`, `_commit_api.py`).
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

LARGE = 2000  # bytes from which on a file is sent by itself


class StandIn(ThreadingHTTPServer):
    """The server. Repositories and what was asked of it are its fields.

    `mishaps` maps the beginning of "METHOD /path" to what goes wrong there: a status, "drop" (the connection ends) or a
    list of these, one for each time; None in it is no mishap.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.token, self.user, self.orgs = "hf_" + "standin0" * 4, "alice", ["team"]
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.stored: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.mishaps: dict[str, Any] = {}
        self.commits: list[str] = []

    def mishap(self, asked: str) -> Any:
        for start, what in self.mishaps.items():
            if asked.startswith(start):
                return (what.pop(0) if what else None) if isinstance(what, list) else what
        return None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that was dropped is no news."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: StandIn

    def log_message(self, *args: Any) -> None:
        pass

    def handle_any(self) -> None:
        hub, path = self.server, self.path.partition("?")[0]
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        asked = f"{self.command} {path}"
        hub.asked.append(asked)
        what = hub.mishap(asked)
        if what == "drop":
            self.close_connection = True
            self.connection.close()
            return
        if what is not None:
            return self.answer({"error": "no, said the Hub"}, what)
        open_to_all = path.startswith("/lfs/") or path == "/api/validate-yaml" or "/resolve/" in path
        if not open_to_all and self.headers.get("Authorization") != f"Bearer {hub.token}":
            return self.answer({"error": "Invalid username or password."}, 401)
        self.answer(*self.route(path.strip("/").split("/"), body))

    do_GET = do_POST = do_PUT = do_HEAD = handle_any

    def answer(self, content: Any, status: int = 200) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if status == 404:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def route(self, parts: list[str], body: bytes) -> tuple[Any, int]:
        hub = self.server
        match parts:
            case ["api", "whoami-v2"]:
                return {"type": "user", "name": hub.user, "orgs": [{"name": name} for name in hub.orgs]}, 200
            case ["api", "validate-yaml"]:
                return {}, 200
            case ["api", "repos", "create"]:
                asked = json.loads(body)
                repo = f"{asked.get('organization') or hub.user}/{asked['name']}"
                there = repo in hub.repos
                hub.repos.setdefault(repo, {})
                if asked.get("private") or asked.get("visibility") == "private":
                    hub.private.add(repo)
                return {"url": f"{hub.url}/{repo}", "name": repo, "id": "0"}, 409 if there else 200
            case ["api", "models", owner, name, "preupload", _]:
                files = json.loads(body)["files"]
                modes = [
                    {"path": f["path"], "uploadMode": "lfs" if f["size"] > LARGE else "regular", "shouldIgnore": False}
                    for f in files
                ]
                return {"files": modes}, 200
            case [_, _, "info", "lfs", "objects", "batch"]:
                made = []
                for each in json.loads(body)["objects"]:
                    needed = {"actions": {"upload": {"href": f"{hub.url}/lfs/{each['oid']}"}}}
                    made.append({**each, **({} if each["oid"] in hub.stored else needed)})
                return {"transfer": "basic", "objects": made}, 200
            case ["lfs", oid]:
                assert hashlib.sha256(body).hexdigest() == oid
                hub.stored[oid] = body
                return {}, 200
            case ["api", "models", owner, name, "commit", _]:
                return self.commit(f"{owner}/{name}", [json.loads(line) for line in body.splitlines()]), 200
            case ["api", "models", owner, name, "branch", _]:
                return {}, 200
            case ["api", "models", owner, name, *_] if f"{owner}/{name}" in hub.repos:
                repo = f"{owner}/{name}"
                files = [
                    {"rfilename": f, "type": "file", "path": f, "size": 1, "oid": "0" * 40} for f in hub.repos[repo]
                ]
                if "tree" in parts:
                    return files, 200
                told = {"id": repo, "modelId": repo, "private": repo in hub.private, "siblings": files, "sha": "0" * 40}
                return {**told, "tags": [], "downloads": 0, "likes": 0}, 200
        return {"error": "Repository not found"}, 404

    def commit(self, repo: str, lines: list[dict[str, Any]]) -> dict[str, Any]:
        hub, files = self.server, self.server.repos[repo]
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                hub.commits.append(value["summary"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = hub.stored[value["oid"]]
        oid = f"{len(hub.commits):040x}"
        return {"commitUrl": f"{hub.url}/{repo}/commit/{oid}", "commitOid": oid, "pullRequestUrl": None}


def serve() -> StandIn:
    """A server that answers, on a port of its own."""
    hub = StandIn()
    threading.Thread(target=hub.serve_forever, args=(0.05,), daemon=True).start()
    return hub
