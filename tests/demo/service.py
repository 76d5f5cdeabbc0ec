"""A real `taxiway serve` in a folder of its own, and a client of its HTTP API. The demo and the bench both use it."""

import http.client
import json
import os
import subprocess
from pathlib import Path


class ServiceError(Exception):
    """The service did not do what its contract says."""


class Service:
    """Runs from `with` on; leaving the block sends SIGTERM and waits for its end."""

    def __init__(self, binary, folder, config="", environment=None):
        self.folder = Path(folder)
        self.data_dir = self.folder / "data"
        self.plugins_dir = self.folder / "plugins"
        self.log = self.folder / "service.log"
        self._binary = binary
        self._environment = {**os.environ, **(environment or {})}
        self._config = self.folder / "taxiway.toml"
        self._config.write_text(config, encoding="utf-8")
        # The service refuses a folder of plugins that others may write to.
        self.plugins_dir.mkdir(mode=0o700, exist_ok=True)
        self._process = None
        self._connection = None
        self.exit_status = None

    def __enter__(self):
        command = [str(self._binary), "serve", "--config", str(self._config), "--data-dir", str(self.data_dir)]
        command += ["--plugins-dir", str(self.plugins_dir), "--listen", "127.0.0.1:0"]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command, env=self._environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True
            )
        try:
            line = self._process.stdout.readline()
            if not line.startswith("listening on http://"):
                raise ServiceError(f"the service did not start (it said {line.strip()!r}); its log is below")
            self.url = line.split()[-1]
            self.address = self.url.removeprefix("http://")
            self.token = (self.data_dir / "token").read_text(encoding="utf-8").strip()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_):
        self.stop()

    @property
    def pid(self):
        """Of the service's own process."""
        return self._process.pid

    def stop(self):
        """Graceful stop; answers the exit status. A second call changes nothing."""
        if self._connection:
            self._connection.close()
            self._connection = None
        if self.exit_status is None:
            self._process.terminate()
            try:
                self.exit_status = self._process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self.exit_status = self._process.wait()
            self._process.stdout.close()
        return self.exit_status

    def reconnect(self):
        """Lets the next request open a connection of its own."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def request(self, method, path, body=None):
        """(status, value) of one request; `path` is below /api/v1."""
        if self._connection is None:
            self._connection = http.client.HTTPConnection(self.address)
        headers = {"Authorization": f"Bearer {self.token}"}
        if body is not None:
            headers["Content-Type"] = "application/json"
            body = json.dumps(body)
        self._connection.request(method, f"/api/v1{path}", body, headers)
        response = self._connection.getresponse()
        text = response.read().decode()
        return response.status, json.loads(text) if "json" in response.getheader("Content-Type", "") else text

    def get(self, path):
        """What GET answers, which has to be 200."""
        status, value = self.request("GET", path)
        if status != 200:
            raise ServiceError(f"GET {path} was answered {status}: {value}")
        return value

    def submit(self, **job):
        """The job as it was accepted."""
        status, value = self.request("POST", "/jobs", job)
        if status != 201:
            raise ServiceError(f"POST /jobs was answered {status}: {value}")
        return value

    def events(self):
        """Every event from now on. The connection is open when this returns, so nothing after it is missed."""
        connection = http.client.HTTPConnection(self.address)
        headers = {"Authorization": f"Bearer {self.token}", "Accept": "text/event-stream"}
        connection.request("GET", "/api/v1/events", headers=headers)
        response = connection.getresponse()
        if response.status != 200:
            raise ServiceError(f"GET /events was answered {response.status}: {response.read().decode()}")
        return self._parse(connection, response)

    @staticmethod
    def _parse(connection, response):
        # https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
        try:
            data = []
            while line := response.readline():
                line = line.decode().rstrip("\r\n")
                if line.startswith("data:"):
                    data.append(line[5:].removeprefix(" "))
                elif not line and data:
                    yield json.loads("\n".join(data))
                    data = []
        finally:
            connection.close()
        raise ServiceError("the stream of events ended")
