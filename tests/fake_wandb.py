"""A stand-in for W&B's server: answers what a run asks for, until it is told to answer no more."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PROJECT = {"id": "p", "name": "project", "entity": {"id": "e", "name": "me"}}


class Server(ThreadingHTTPServer):
    """`blocked`: while it is set, connections are taken and nothing is answered."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.blocked, self.closing, self.asked = threading.Event(), threading.Event(), []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def close(self):
        self.closing.set()
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append(f"{self.command} {self.path}")
        if self.server.blocked.is_set():
            self.server.closing.wait()
            self.close_connection = True
            return
        data, known = {"project": None}, True
        if b"mutation UpsertBucket" in body:
            name = json.loads(body)["variables"]["name"]
            bucket = {"id": "b", "name": name, "displayName": name, "config": "{}"}
            data["upsertBucket"] = {
                "bucket": {**bucket, "historyLineCount": 0, "project": PROJECT},
                "inserted": True,
            }
        if b"mutation CreateRunFiles" in body:
            data["createRunFiles"] = {"runID": "b", "uploadHeaders": [], "files": []}
        elif b"mutation" in body and b"mutation Up" not in body:
            known = False
        if b"viewer" in body:
            data["viewer"] = {"id": "v", "entity": "me", "username": "me", "flags": "{}"}
        refusal = {"errors": [{"message": "not here"}]}
        answer = json.dumps({"data": data} if known else refusal).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_PUT = do_HEAD = do_POST
