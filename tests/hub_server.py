"""The parts of the Hugging Face hub's protocol that downloads and uploads need, on this machine."""

import base64
import contextlib
import hashlib
import http.server
import json
import threading

from huggingface_hub import constants

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REVISIONS = ("main", "v1")


class Hub(http.server.BaseHTTPRequestHandler):
    """One repository, a folder; what is uploaded arrives in it.

    Attributes:
      repository, folder: `owner/name`, and where its files are.
      requests: the method and the path of each.
      token: of whoever uploads.
      invalid: what is wrong with the model card; None: nothing.
    """

    repository, folder, requests, token, invalid = "", None, (), None, None

    def do_HEAD(self):
        self._file(body=False)

    def do_GET(self):
        self._file(body=True)

    def _file(self, body):
        self._note()
        *repository, _, revision, name = self.path.strip("/").split("/")
        error = None if "/".join(repository) == self.repository else "RepoNotFound"
        error = error or (None if revision in REVISIONS else "RevisionNotFound")
        error = error or (None if (self.folder / name).is_file() else "EntryNotFound")
        content = b"" if error else (self.folder / name).read_bytes()
        etag = hashlib.sha256(content).hexdigest()
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{etag}"'}
        self._send(404 if error else 200, {"X-Error-Code": error} if error else headers, content)

    def do_POST(self):
        self._note()
        body, api = self._body(), f"/api/models/{self.repository}"
        answer = {
            "/api/repos/create": self._create,
            "/api/validate-yaml": self._validate,
            f"{api}/branch/v1": lambda body: {},
            f"{api}/preupload/main": self._modes,
            f"{api}/preupload/v1": self._modes,
            f"/{self.repository}.git/info/lfs/objects/batch": self._large,
            f"{api}/commit/main": self._commit,
            f"{api}/commit/v1": self._commit,
        }.get(self.path, lambda body: None)(body)
        status = 404 if answer is None else 400 if "errors" in answer else 200
        self._send(status, {"Content-Type": "application/json"}, json.dumps(answer).encode())

    def do_PUT(self):
        self._note()
        (self.folder / self.path.rpartition("/")[2]).write_bytes(self._body())
        self._send(200, {}, b"")

    def _create(self, body):
        type(self).token = self.headers["Authorization"]
        given = json.loads(body)
        type(self).repository = f"{given['organization']}/{given['name']}"
        return {"url": f"{self._address()}/{self.repository}", **given}

    def _validate(self, body):
        return {"errors": [{"message": self.invalid}]} if self.invalid else {}

    def _modes(self, body):
        large = (".safetensors",)
        return {
            "files": [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(large) else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
        }

    def _large(self, body):
        objects = json.loads(body)["objects"]
        for item in objects:
            item["actions"] = {"upload": {"href": f"{self._address()}/large/{item['oid']}"}}
        return {"transfer": "basic", "objects": objects}

    def _commit(self, body):
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                (self.folder / value["path"]).write_bytes(base64.b64decode(value["content"]))
            elif item["key"] == "lfsFile":
                (self.folder / value["oid"]).rename(self.folder / value["path"])
        return {
            "commitUrl": f"{self._address()}/{self.repository}/commit/{COMMIT}",
            "commitOid": COMMIT,
        }

    def _address(self):
        return f"http://127.0.0.1:{self.server.server_port}"

    def _note(self):
        self.requests.append((self.command, self.path))

    def _body(self):
        return self.rfile.read(int(self.headers["Content-Length"]))

    def _send(self, status, headers, content):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *args):
        pass


@contextlib.contextmanager
def serve(folder, repository=""):
    """Yields a hub, as a class, and its address."""
    hub = type("Hub", (Hub,), {"repository": repository, "folder": folder, "requests": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), hub) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        try:
            yield hub, f"http://127.0.0.1:{running.server_port}"
        finally:
            running.shutdown()


def point_client_to(endpoint, monkeypatch):
    """What HF_ENDPOINT does, which the client reads when it is imported."""
    path = "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + path)
