"""The outside world: an HTTP server that takes webhooks and believes only what is signed (Standard Webhooks)."""

import base64
import hashlib
import hmac
import queue
import secrets
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# What https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md calls the tolerance.
TOLERANCE_SECONDS = 300


def new_signing_key():
    return "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()


def is_signed(signing_key, headers, body):
    """Whether one of the signatures is right and the time is now."""
    key = base64.b64decode(signing_key.removeprefix("whsec_"))
    stamp = headers.get("webhook-timestamp", "")
    if not stamp.isdigit() or abs(time.time() - int(stamp)) > TOLERANCE_SECONDS:
        return False
    signed = f"{headers.get('webhook-id', '')}.{stamp}.".encode() + body
    expected = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    given = headers.get("webhook-signature", "").split()
    return any(hmac.compare_digest(f"v1,{expected}", signature) for signature in given)


class Receiver:
    """Listens from `with` on. `requests` yields (headers, body, whether it was signed) in order of arrival."""

    def __init__(self, signing_key):
        self.requests = queue.Queue()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                good = is_signed(signing_key, self.headers, body)
                self.send_response(204 if good else 401)
                self.end_headers()
                receiver.requests.put((self.headers, body, good))

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()
