"""What stands between an SDK and the real program, and loses or changes answers: what was asked is done, and who asked never learns of it."""

import contextlib
import http.server
import threading
import urllib.error
import urllib.request


def losing(url, is_lost):
    """A server that passes everything on to `url`, and breaks off each answer that `is_lost(path)` wants lost."""

    def half(handler, status, data):
        handler.answer(status, data, data[: len(data) // 2])

    return changing(url, lambda path: half if is_lost(path) else None)


@contextlib.contextmanager
def changing(url, change_of):
    """A server that passes everything on to `url`, and has each answer given by `change_of(path)(handler, status, data)`, where that is not None."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_arguments):
            pass

        def do_GET(self):
            length = int(self.headers.get("content-length", 0))
            names = ("authorization", "content-type")
            headers = {name: self.headers[name] for name in names if name in self.headers}
            body = self.rfile.read(length) if length else None
            request = urllib.request.Request(url + self.path, data=body, headers=headers, method=self.command)
            try:
                with urllib.request.urlopen(request) as reply:
                    status, data = reply.status, reply.read()
            except urllib.error.HTTPError as error:
                status, data = error.code, error.read()
            change = change_of(self.path)
            if change is None:
                self.answer(status, data)
            else:
                self.close_connection = True
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    change(self, status, data)

        def answer(self, status, data, written=None):
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data if written is None else written)

        do_POST = do_GET

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
