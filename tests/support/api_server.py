"""As much of a Kubernetes API server as the real kubectl needs to keep JobSets: in memory."""

import contextlib
import http.server
import json
import threading
import urllib.parse

GROUP, VERSION = "jobset.x-k8s.io", "v1alpha2"
BASE = f"/apis/{GROUP}/{VERSION}"
DISCOVERED = {
    "/api": {"kind": "APIVersions", "versions": ["v1"]},
    "/api/v1": {"kind": "APIResourceList", "groupVersion": "v1", "resources": []},
    "/apis": {
        "kind": "APIGroupList",
        "apiVersion": "v1",
        "groups": [
            {
                "name": GROUP,
                "versions": [{"groupVersion": f"{GROUP}/{VERSION}", "version": VERSION}],
                "preferredVersion": {"groupVersion": f"{GROUP}/{VERSION}", "version": VERSION},
            }
        ],
    },
    BASE: {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": f"{GROUP}/{VERSION}",
        "resources": [
            {
                "name": "jobsets",
                "singularName": "jobset",
                "namespaced": True,
                "kind": "JobSet",
                "verbs": ["create", "delete", "get", "list", "patch", "watch"],
            }
        ],
    },
}
# kubectl asks whether the server itself refuses unknown fields: a parameter of PATCH says so.
PATCHED = {
    "openapi": "3.0.0",
    "paths": {
        f"{BASE}/namespaces/{{namespace}}/jobsets/{{name}}": {
            "patch": {
                "parameters": [{"name": "fieldValidation", "in": "query"}],
                "x-kubernetes-group-version-kind": {
                    "group": GROUP,
                    "version": VERSION,
                    "kind": "JobSet",
                },
            }
        }
    },
}


class Server(http.server.ThreadingHTTPServer):
    """`jobsets` by namespace and name; `deleted` keeps the names of those that were."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.jobsets, self.deleted = {}, []


class Handler(http.server.BaseHTTPRequestHandler):
    """One request; see https://kubernetes.io/docs/reference/using-api/api-concepts."""

    def do_GET(self):
        url = urllib.parse.urlsplit(self.path)
        asked = urllib.parse.parse_qs(url.query)
        if url.path in DISCOVERED:
            return self._answer(DISCOVERED[url.path])
        if url.path == "/openapi/v3":
            return self._answer({"paths": {BASE[1:]: {"serverRelativeURL": f"/openapi/v3{BASE}"}}})
        if url.path == f"/openapi/v3{BASE}":
            return self._answer(PATCHED)
        space, name = self._place()
        if name:
            return self._answer(self.server.jobsets.get((space, name)))
        marks = dict(
            word.split("=") for word in asked.get("labelSelector", [""])[0].split(",") if word
        )
        found = [
            one
            for (where, _), one in self.server.jobsets.items()
            if where == space and marks.items() <= one["metadata"]["labels"].items()
        ]
        kind = {"apiVersion": f"{GROUP}/{VERSION}", "kind": "JobSetList", "metadata": {}}
        return self._answer(kind | {"items": found})

    def do_POST(self):
        made = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        space, _ = self._place()
        self.server.jobsets[space, made["metadata"]["name"]] = made
        self._answer(made, 201)

    def do_DELETE(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        gone = self.server.jobsets.pop(self._place(), None)
        if gone is not None:
            self.server.deleted.append(gone["metadata"]["name"])
        self._answer(gone and {"kind": "Status", "apiVersion": "v1", "status": "Success"})

    def _place(self):
        """Namespace and name of the path; None for what it does not say."""
        words = urllib.parse.urlsplit(self.path).path.removeprefix(f"{BASE}/namespaces/").split("/")
        return words[0], (words[2] if len(words) > 2 else None)

    def _answer(self, body, status=200):
        if body is None:
            status = 404
            body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404}
            body |= {"reason": "NotFound", "message": "jobset not found"}
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        """Nothing: pytest's output is for failures."""


@contextlib.contextmanager
def serving():
    """A context with a server that listens on a port of its own."""
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
