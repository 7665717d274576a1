"""A webhook endpoint in a process of its own, as a user's application would be.

Prints its address, then a JSON line for every request it got. `POST /_answers` with a JSON list
says which statuses to answer next; then 200. `/slow` takes 50 ms for each.
"""

import base64
import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

answers: list[int] = []


one_at_a_time = threading.Lock()


def say(**line: object) -> None:
    with one_at_a_time:
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        status = 200
        if self.path == "/_answers":
            answers.extend(json.loads(body))
        else:
            # Before it is answered: the next delivery may come as soon as it is.
            packed = base64.b64encode(body).decode()
            say(path=self.path, headers=dict(self.headers), body=packed, time=time.time())
            status = answers.pop(0) if answers else 200
            if self.path == "/slow":
                time.sleep(0.05)
        self.send_response(status)
        if 300 <= status < 400:
            self.send_header("Location", "/elsewhere")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    say(url=f"http://127.0.0.1:{server.server_port}")
    server.serve_forever()
