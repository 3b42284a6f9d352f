"""A hub on loopback: enough of its interface to make a repository, commit to it and read from it."""

import base64
import hashlib
import json
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlsplit


class Hub:
    """What the server holds and was asked.

    Attributes:
        repositories: {"user/name": {path: bytes}}.
        requests: (method, path, headers) of each request.
        url: Its address.
    """

    def __init__(self):
        self.repositories, self.requests, self.url = {}, [], ""

    def sha(self, repo):
        content = sorted(self.repositories[repo].items())
        return hashlib.sha1(repr(content).encode(), usedforsecurity=False).hexdigest()


@contextmanager
def running():
    """A Hub that answers until the block ends."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *args):
        """Say nothing."""

    def _send(self, content=b"", status=200, **headers):
        if isinstance(content, (dict, list)):
            content, headers = json.dumps(content).encode(), {"Content-Type": "application/json", **headers}
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _parts(self):
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path, dict(self.headers)))
        return path.strip("/").split("/")

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        parts = self._parts()
        if parts == ["api", "repos", "create"]:
            asked = json.loads(body)
            repo = "/".join(part for part in (asked.get("organization"), asked["name"]) if part)
            self.hub.repositories.setdefault(repo, {})
            return self._send({"url": f"{self.hub.url}/{repo}", "name": repo})
        if parts == ["api", "validate-yaml"]:
            return self._send({"errors": [], "warnings": []})
        repo, what = "/".join(parts[2:4]), parts[4]
        if what == "preupload":
            files = json.loads(body)["files"]
            modes = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]
            return self._send({"files": modes})
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                content = base64.b64decode(entry["value"]["content"])
                self.hub.repositories[repo][entry["value"]["path"]] = content
        sha = self.hub.sha(repo)
        return self._send({"commitUrl": f"{self.hub.url}/{repo}/commit/{sha}", "commitOid": sha})

    def do_GET(self):
        parts = self._parts()
        if parts[0] == "api":
            repo = "/".join(parts[2:4])
            if repo not in self.hub.repositories:
                return self._send({"error": "none"}, 404, X_Error_Code="RepoNotFound")
            held = self.hub.repositories[repo]
            if parts[4:5] == ["tree"]:
                files = ((path, len(content)) for path, content in held.items())
                return self._send([{"type": "file", "path": p, "size": n, "oid": p} for p, n in files])
            files = [{"rfilename": path} for path in held]
            return self._send({"id": repo, "sha": self.hub.sha(repo), "siblings": files, "tags": []})
        repo, path = "/".join(parts[:2]), "/".join(parts[4:])
        content = self.hub.repositories.get(repo, {}).get(path)
        if content is None:
            code = "EntryNotFound" if repo in self.hub.repositories else "RepoNotFound"
            return self._send(b"", 404, X_Error_Code=code)
        etag = hashlib.sha256(content).hexdigest()
        return self._send(content, ETag=f'"{etag}"', X_Repo_Commit=self.hub.sha(repo))

    do_HEAD = do_GET
