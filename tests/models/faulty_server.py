"""A small embedding server that misbehaves on command: an Open Inference Protocol v2 model, or any JSON service, with a list of faults.

The model is `embed`: three fixed linear features of an image, so that every answer can be checked by hand.
"""

from __future__ import annotations

import io
import json
import socket
import threading
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
from PIL import Image

from evenhand.models.protocol import HEADER, InferResponse, Tensor, decode_request, encode_response, error_body, read_header_length

DIM = 3


def embed(images):
    """(n, c, h, w) in [0, 1] -> (n, 3): mean, mean of the upper left quarter, mean square; float64 inside, float32 out."""
    values = np.asarray(images, np.float64)
    n, _, h, w = values.shape
    quarter = values[:, :, : h // 2, : w // 2]
    features = [part.reshape(n, -1).mean(axis=1) for part in (values, quarter, values**2)]
    return np.stack(features, axis=1).astype(np.float32)


def metadata(shape=(-1, 3, 8, 8), name="net", datatype="FP32", dim=DIM, **more):
    parameters = {"datatypes": ["FP32", "UINT8", "BYTES"], "max_batch": 8, **more.pop("parameters", {})}
    return {
        "name": name, "versions": ["1"], "platform": "test", "parameters": parameters,
        "inputs": [{"name": "images", "datatype": datatype, "shape": list(shape)}],
        "outputs": [{"name": "embeddings", "datatype": "FP32", "shape": [-1, dim]}], **more,
    }


class FaultyServer(ThreadingHTTPServer):
    """Attributes: ``faults``, a list used up by requests for embeddings, one each (None: behave); ``always``, one that never ends;
    ``expected``, how many requests must once be there together before any is answered (each waits five seconds at most)."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 64

    def __init__(self, context=None, port=0):
        super().__init__(("127.0.0.1", port), Handler)
        if context is not None:
            self.socket = context.wrap_socket(self.socket, server_side=True)
        self.faults, self.always, self.token = [], None, None
        self.metadata, self.models = metadata(), ["net"]
        self.seen, self.n_images, self.images = [], 0, []
        self.lock, self.release, self.at_once, self.most_at_once = threading.Lock(), threading.Event(), 0, 0
        self.handle_json, self.accepted = None, []
        self.max_batch = 8
        self.embed = embed
        self.delay = 0.0
        self.expected, self.gathered = 0, threading.Event()

    def get_request(self):
        """Remember every connection, so that a server that ends takes them with it."""
        accepted = super().get_request()
        self.accepted.append(accepted[0])
        return accepted

    def handle_error(self, request, client_address):
        """Clients that go away are part of the tests."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *arguments):
        pass

    def reply(self, status, body, headers=None, length=None):
        self.send_response(status)
        for key, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def refused(self):
        server = self.server
        if server.token is not None and self.headers.get("Authorization") != f"Bearer {server.token}":
            self.reply(401, error_body(f"bad token {self.headers.get('Authorization')}"))
            return True
        return False

    def do_GET(self):
        server = self.server
        server.seen.append(self.path)
        if self.refused():
            return
        if self.path.split("/versions/")[0] == f"/v2/models/{server.metadata['name']}":
            self.reply(200, json.dumps(server.metadata).encode())
        else:
            self.reply(404, error_body("no such model"))

    def do_POST(self):
        server = self.server
        body = self.rfile.read(int(self.headers["Content-Length"]))
        server.seen.append(self.path)
        if self.refused():
            return
        if self.path == "/v2/repository/index" and isinstance(server.models, int):
            self.reply(server.models, error_body("as the test wants it"))
            return
        if self.path == "/v2/repository/index":
            listed = None if server.models is None else json.dumps([{"name": name} for name in server.models]).encode()
            self.reply(404 if listed is None else 200, error_body("no index") if listed is None else listed)
            return
        with server.lock:
            fault = server.faults.pop(0) if server.faults else server.always
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
            if server.at_once >= server.expected:
                server.gathered.set()
        try:
            self.answer(body, fault)
        finally:
            with server.lock:
                server.at_once -= 1

    def answer(self, body, fault):
        server = self.server
        server.gathered.wait(5)
        if server.delay:
            server.release.wait(server.delay)
        if isinstance(fault, tuple):
            status, headers = fault
            self.reply(status, error_body("as the test wants it"), headers)
            return
        if fault == "reset":
            self.close_connection = True
            self.connection.close()
            return
        if fault == "slow":
            server.release.wait(20)
        if fault == "html":
            self.reply(200, b"<html><body>Log in to the hospital's network</body></html>", {"Content-Type": "text/html"})
            return
        if server.handle_json is not None:
            status, said = server.handle_json(json.loads(body))
            self.reply(status, json.dumps(said).encode())
            return
        self.infer(body, fault)

    def infer(self, body, fault):
        server = self.server
        request = decode_request(body, read_header_length(self.headers.get(HEADER), len(body)))
        data = request.inputs[0].data
        images = pixels(data)
        if len(images) > server.max_batch:
            self.reply(413, error_body("too many images"))
            return
        with server.lock:
            server.n_images += len(images)
            server.images.append(np.array(images, np.float64))
        rows = server.embed(images)
        if callable(fault):
            rows = fault(rows)
        version = fault.removeprefix("version ") if str(fault).startswith("version") else "1"
        answer = InferResponse(server.metadata["name"], (Tensor("embeddings", rows),), version)
        message = encode_response(answer, request)
        content = message.join()
        if fault == "drip":
            self.reply(200, b"", {HEADER: str(message.header_length)}, len(content))
            for byte in content:
                self.wfile.write(bytes([byte]))
                if server.release.wait(0.02):
                    return
        if fault == "truncated":
            self.reply(200, content[:-5], {HEADER: str(message.header_length)} if message.header_length else {}, len(content))
            self.close_connection = True
            return
        self.reply(200, content, {HEADER: str(message.header_length)} if message.header_length else {})


def pixels(data):
    """What a server makes of any of the datatypes: (n, c, h, w) in [0, 1]."""
    if data.dtype.kind != "O":
        return data / 255 if data.dtype == np.uint8 else data
    files = [np.asarray(Image.open(io.BytesIO(file))) for file in data.ravel()]
    return np.stack([np.moveaxis(file, -1, 0) if file.ndim == 3 else file[None] for file in files]) / 255


@contextmanager
def serving(context=None, port=0):
    """A server in a thread; ``url`` is its address."""
    server = FaultyServer(context, port)
    server.url = f"{'https' if context else 'http'}://localhost:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.release.set()
        server.shutdown()
        for accepted in server.accepted:
            with suppress(OSError):
                accepted.shutdown(socket.SHUT_RDWR)
        server.server_close()
        thread.join()
