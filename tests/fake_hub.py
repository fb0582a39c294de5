"""A Hugging Face hub of one machine: as much of its protocol as making a repository and a commit takes."""

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
import yaml

TOKEN = "hf_secret"
OWNER = "somebody"


@dataclass
class Repository:
    private: bool = False
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[dict[str, str]] = field(default_factory=list)


@dataclass
class Hub:
    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub that answers until the block ends; this process's client talks to it, with a token."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers["Authorization"] != f"Bearer {TOKEN}":
                self.answer(401, {"error": "Invalid username or password."})
                return
            path = self.path.partition("?")[0]
            if path == "/api/repos/create":
                self.create(json.loads(body))
            elif path == "/api/validate-yaml":
                faults = front_matter_faults(json.loads(body)["content"])
                self.answer(400 if faults else 200, {"errors": faults, "warnings": []})
            elif path.endswith("/preupload/main"):
                modes = {"uploadMode": "regular", "shouldIgnore": False}
                self.answer(
                    200, {"files": [{"path": file["path"], **modes} for file in json.loads(body)["files"]]}
                )
            else:
                self.commit(path.removeprefix("/api/models/").removesuffix("/commit/main"), body)

        def create(self, wanted: dict) -> None:
            name = f"{wanted['organization'] or OWNER}/{wanted['name']}"
            known = name in hub.repositories
            if not known:
                hub.repositories[name] = Repository(wanted.get("visibility") == "private")
            self.answer(409 if known else 200, {"url": f"{hub.url}/{name}"})

        def commit(self, name: str, body: bytes) -> None:
            repository = hub.repositories[name]
            lines = [json.loads(line) for line in body.splitlines()]
            for line in lines:
                if line["key"] == "file":
                    repository.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            header = next(line["value"] for line in lines if line["key"] == "header")
            repository.commits.append(header | {"query": self.path.partition("?")[2]})
            oid = f"{len(repository.commits):040x}"
            url = f"{hub.url}/{name}/commit/{oid}"
            self.answer(
                200, {"commitUrl": url, "commitOid": oid, "pullRequestUrl": f"{hub.url}/{name}/discussions/1"}
            )

        def do_GET(self) -> None:
            name = self.path.removeprefix("/api/models/")
            if name in hub.repositories:
                self.answer(200, {"id": name, "private": hub.repositories[name].private, "siblings": []})
            else:
                self.answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})

        def do_HEAD(self) -> None:
            name, _, file = self.path[1:].partition("/resolve/main/")
            found = file in hub.repositories[name].files
            self.answer(200 if found else 404, {}, {} if found else {"X-Error-Code": "EntryNotFound"})

        def answer(self, status: int, content: dict, headers: dict[str, str] | None = None) -> None:
            data = b"" if self.command == "HEAD" else json.dumps(content).encode()
            self.send_response(status)
            for key, value in {"Content-Length": str(len(data)), "ETag": '"1"', **(headers or {})}.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        with pytest.MonkeyPatch.context() as patch:
            aim_client(patch, hub.url)
            yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def front_matter_faults(card: str) -> list[dict[str, str]]:
    if not card.startswith("---\n"):
        return []
    try:
        yaml.safe_load(card.split("---\n")[1])
    except yaml.YAMLError:
        return [{"message": "bad YAML"}]
    return []


def aim_client(patch: pytest.MonkeyPatch, url: str) -> None:
    """Let the hub's client of this process, which was loaded offline, talk to `url` with a token."""
    from huggingface_hub import constants

    files = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, url)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
    patch.setattr(constants, "ENDPOINT", url)
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    patch.setenv("HF_TOKEN", TOKEN)
    patch.setenv("NO_PROXY", "127.0.0.1")
