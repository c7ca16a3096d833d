"""A hub on this machine that speaks the part of the hub's HTTP interface which a push and a download need."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import parse_qs, unquote, urlparse

import yaml

Files = dict[str, bytes]


@dataclass
class LocalHub:
    """Repositories by name, each with the files of every commit, and the commits of every branch."""

    address: str = ""
    token: str | None = None  # the token without which nothing is written; None lets everybody write
    commits: dict[str, dict[str, Files]] = field(default_factory=dict)
    branches: dict[str, dict[str, str]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def create(self, name: str) -> None:
        self.commits[name] = {}
        self.branches[name] = {}
        self.commit(name, "main", {})

    def commit(self, name: str, branch: str, files: Files) -> str:
        before = self.commits[name].get(self.branches[name].get(branch, ""), {})
        number = hashlib.sha1(f"{name}{len(self.commits[name])}".encode()).hexdigest()
        self.commits[name][number] = before | files
        self.branches[name][branch] = number
        return number

    def listed(self, kind: str, query: dict[str, list[str]]) -> list[dict[str, object]]:
        """The repositories of an author whose card has a tag."""
        entries = []
        for name, branches in self.branches.items():
            card = self.commits[name][branches["main"]].get("README.md", b"---\n{}\n---").decode()
            tags = yaml.safe_load(card.split("---")[1]).get("tags", [])
            name_alone = name.removeprefix("datasets/")
            of_kind = name.startswith("datasets/") == (kind == "datasets")
            if of_kind and name_alone.split("/")[0] == query["author"][0] and query["filter"][0] in tags:
                entries.append({"id": name_alone, "modelId": name_alone, "tags": tags})
        return entries

    def resolve(self, name: str, revision: str) -> str | None:
        number = self.branches.get(name, {}).get(revision, revision)
        return number if number in self.commits.get(name, {}) else None


class _Handler(http.server.BaseHTTPRequestHandler):
    hub: LocalHub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(self.path.partition("?")[0])
        self.hub.asked.append(path)
        if path == "/":
            return self.answer(200, b"")
        if path in ("/api/models", "/api/datasets"):
            return self.tell(self.hub.listed(path.removeprefix("/api/"), parse_qs(urlparse(self.path).query)))
        of_file = re.fullmatch(r"/((?:datasets/)?[^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        path = path.replace("/api/datasets/", "/api/models/datasets/")
        of_api = re.fullmatch(r"/api/models/((?:datasets/)?[^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path)
        match = of_file or of_api
        name = match[1] if match else ""
        if name not in self.hub.commits:
            return self.refuse("RepoNotFound")
        revision = (of_file[2] if of_file else of_api[3]) or "main"
        number = self.hub.resolve(name, revision)
        if number is None:
            return self.refuse("RevisionNotFound")
        files = self.hub.commits[name][number]
        if of_file:
            content = files.get(of_file[3])
            return self.refuse("EntryNotFound") if content is None else self.answer(200, content, number)
        tree = [
            {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for path, content in files.items()
        ]
        siblings = [{"rfilename": path} for path in files]
        about = {"id": name, "modelId": name, "sha": number, "siblings": siblings}
        return self.tell(tree if of_api[2] == "tree" else about)

    def do_POST(self) -> None:
        path = unquote(self.path.partition("?")[0])
        self.hub.asked.append(path)
        body = self.read()
        if self.hub.token is not None and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            return self.answer(401, b"{}")
        if path == "/api/repos/create":
            wanted = json.loads(body)
            kind = "datasets/" if wanted.get("type") == "dataset" else ""
            name = f"{kind}{wanted.get('organization') or 'me'}/{wanted['name']}"
            if name not in self.hub.commits:
                self.hub.create(name)
            return self.tell({"url": f"{self.hub.address}/{name}", "id": name})
        if path == "/api/validate-yaml":
            return self.tell({"errors": [], "warnings": []})
        path = path.replace("/api/datasets/", "/api/models/datasets/")
        pattern = r"/api/models/((?:datasets/)?[^/]+/[^/]+)/(preupload|commit)/(.+)"
        name, action, branch = re.fullmatch(pattern, path).groups()
        if action == "preupload":
            modes = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            return self.tell({"files": modes})
        lines = [json.loads(line) for line in body.splitlines() if line]
        files = {
            line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines if line["key"] == "file"
        }
        number = self.hub.commit(name, branch, files)
        url = f"{self.hub.address}/{name}/commit/{number}"
        return self.tell({"commitOid": number, "commitUrl": url, "success": True})

    def read(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def tell(self, value: object) -> None:
        self.answer(200, json.dumps(value).encode())

    def refuse(self, code: str) -> None:
        self.answer(404, b"{}", headers={"X-Error-Code": code, "X-Error-Message": "not here"})

    def answer(self, status: int, content: bytes, commit: str = "", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        etag = hashlib.sha1(content).hexdigest()
        all_headers = {"Content-Length": str(len(content)), "ETag": f'"{etag}"', "Content-Type": "application/json"}
        if commit:
            all_headers["X-Repo-Commit"] = commit
        for key, value in (all_headers | (headers or {})).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def running_hub() -> Iterator[LocalHub]:
    """A hub that answers until the block ends."""
    hub = LocalHub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
