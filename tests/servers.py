"""A web server on the loopback for tests of downloads."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Handler(SimpleHTTPRequestHandler):
    """Serves the files of a folder. ``faults`` names those whose transfer breaks, and how."""

    faults: dict[str, str]

    def do_GET(self) -> None:
        fault = self.faults.get(self.path.lstrip("/"))
        content = (Path(self.directory) / self.path.lstrip("/")).read_bytes() if fault else b""
        if fault is None:
            super().do_GET()
        elif fault == "chunks":  # without a length, and without the last chunk
            self.protocol_version = "HTTP/1.1"
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"%x\r\n" % len(content) + content[: len(content) // 2])
        elif fault == "no length":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content) + {"short": 0, "longer": 1, "less": -10}[fault]))
            self.end_headers()
            self.wfile.write(content if fault != "short" else content[: len(content) // 2])

    def log_message(self, *arguments) -> None:
        pass


@contextmanager
def serve(folder: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the address of a folder, and its faults: file name -> "short", "longer", "less", "chunks", "no length"."""
    faults: dict[str, str] = {}
    handler = type("FaultyHandler", (Handler,), {"faults": faults})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", faults
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
