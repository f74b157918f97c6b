"""Serve a folder on this machine, its texts compressed: ``serve.py FOLDER PORT``."""

import contextlib
import functools
import gzip
import io
import os
import sys
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

TEXTS = (".html", ".js", ".css", ".json", ".svg", ".txt")


@functools.cache
def compressed(path, changed):
    """Return what is in a file, compressed; ``changed`` is when, so that no old one is returned."""
    with open(path, "rb") as file:
        return gzip.compress(file.read(), 6)


class Handler(SimpleHTTPRequestHandler):
    """Compresses texts for those who accept it, as a web server does."""

    def log_request(self, *_):
        """Say nothing of requests; errors are logged."""

    def send_head(self):
        """Send the header, and return a file of what follows."""
        path = self.translate_path(self.path)
        if os.path.isdir(path) and self.path.partition("?")[0].endswith("/"):
            path = os.path.join(path, "index.html")
        accepted = "gzip" in self.headers.get("Accept-Encoding", "")
        if not (accepted and path.endswith(TEXTS) and os.path.isfile(path)):
            return super().send_head()
        body = compressed(path, os.stat(path).st_mtime_ns)
        self.send_response(200)
        self.send_header("Content-Type", self.guess_type(path))
        self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Vary", "Accept-Encoding")
        self.end_headers()
        return io.BytesIO(body)


def server(folder, port=0):
    """Return a server of a folder; port 0 is any that is free."""
    return ThreadingHTTPServer(("127.0.0.1", port), functools.partial(Handler, directory=folder))


if __name__ == "__main__":
    with server(sys.argv[1], int(sys.argv[2])) as here, contextlib.suppress(KeyboardInterrupt):
        print(f"http://127.0.0.1:{here.server_port} (end with Ctrl-C)", flush=True)
        here.serve_forever()
