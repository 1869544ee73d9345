"""One Rubato process with a folder of its own, for tests with other people's clients.

Values of its environment may name its ports: `JAEGER_ENDPOINT="http://127.0.0.1:{jaeger_http}/api/traces"`.
"""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request

PATIENCE = 60.0


def eventually(what, ask):
    """Asks again and again until the answer is true, and returns it."""
    deadline = time.monotonic() + PATIENCE
    while True:
        answer = ask()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"gave up waiting: {what}")
        time.sleep(0.1)


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


class Rubato:
    """Use as a context manager; it is stopped and its folder removed at the end."""

    def __init__(self, binary, **environment):
        self.binary = str(pathlib.Path(binary).resolve())
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="rubato-real-"))
        self.http, self.grpc, self.otlp_grpc, self.otlp_http, self.jaeger_http, self.jaeger_compact, self.zipkin = free_ports(7)
        self.environment = environment
        self.process = None

    def __enter__(self):
        (self.folder / "config.yaml").write_text(f"""\
server:
  http_listen_address: 127.0.0.1
  http_listen_port: {self.http}
  grpc_listen_address: 127.0.0.1
  grpc_listen_port: {self.grpc}
distributor:
  receivers:
    otlp:
      protocols:
        grpc:
          endpoint: 127.0.0.1:{self.otlp_grpc}
        http:
          endpoint: 127.0.0.1:{self.otlp_http}
    jaeger:
      protocols:
        thrift_http:
          endpoint: 127.0.0.1:{self.jaeger_http}
        thrift_compact:
          endpoint: 127.0.0.1:{self.jaeger_compact}
    zipkin:
      endpoint: 127.0.0.1:{self.zipkin}
ingester:
  trace_idle_period: 1s
  max_block_duration: 5s
  flush_check_period: 500ms
storage:
  trace:
    backend: local
    local:
      path: {self.folder}/blocks
    wal:
      path: {self.folder}/wal
""")
        try:
            self.start()
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise
        return self

    def __exit__(self, kind, value, trace):
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        if kind is not None:
            log = (self.folder / "log").read_text(errors="replace").splitlines()
            print("---- last lines of the server's log ----", *log[-60:], sep="\n", file=sys.stderr)
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self):
        environment = {name: value for name, value in os.environ.items() if name != "RUST_LOG"}
        environment |= {name: value.format(**vars(self)) for name, value in self.environment.items()}
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(
                [self.binary, f"-config.file={self.folder}/config.yaml"],
                cwd=self.folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )

        def ready():
            assert self.process.poll() is None, f"the server ended with {self.process.returncode}"
            try:
                return self.get("/ready")[0] == 200
            except urllib.error.URLError:
                return False

        eventually("the server is ready", ready)

    def terminate(self):
        """SIGTERM; the exit status."""
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(PATIENCE)
        self.process = None
        return status

    def get(self, path, headers=None, **parameters):
        """Status and body."""
        query = "?" + urllib.parse.urlencode(parameters) if parameters else ""
        request = urllib.request.Request(f"http://127.0.0.1:{self.http}{path}{query}", headers={"Accept": "application/json"} | (headers or {}))
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def trace(self, trace_id):
        """The spans of a trace, each with its resource's attributes; None if there is none."""
        status, body = self.get(f"/api/traces/{trace_id:032x}")
        if status == 404:
            return None
        assert status == 200, (status, body)
        return [
            (span, batch["resource"].get("attributes", []), scope["scope"])
            for batch in json.loads(body)["batches"]
            for scope in batch["scopeSpans"]
            for span in scope["spans"]
        ]

    def search(self, q, limit=20):
        now = int(time.time())
        status, body = self.get("/api/search", q=q, limit=limit, start=now - 3600, end=now + 60)
        assert status == 200, (q, status, body)
        return json.loads(body).get("traces", [])

    def traces_in_blocks(self):
        metas = (self.folder / "blocks" / "single-tenant").glob("*/meta.json")
        return sum(json.loads(meta.read_text())["totalObjects"] for meta in metas)
