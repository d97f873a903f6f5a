"""Servers that fail: whatever they do ends, in the error that names both ways out, and nothing stays behind."""

import http.server
import socket
import threading
import time

import pytest

import cnlib.data
from cnlib.data import sources

datasets = pytest.importorskip("torchvision").datasets


def cut(server):
    server.send_response(200)
    server.send_header("Transfer-Encoding", "chunked")
    server.end_headers()
    server.wfile.write(b"1000\r\nxxxx")


def short(server):
    server.send_response(200)
    server.send_header("Content-Length", "1000")
    server.end_headers()
    server.wfile.write(b"xxxx")


def another_page(server):
    server.send_response(200)
    server.end_headers()
    server.wfile.write(b"<html>Please log in</html>")


def redirect(to):
    def answer(server):
        server.send_response(302)
        server.send_header("Location", to)
        server.end_headers()

    return answer


ANSWERS = {
    "cut": cut,
    "short": short,
    "another page": another_page,
    "not found": lambda server: server.send_error(404),
    "unavailable": lambda server: server.send_error(503),
    "no status": lambda server: server.wfile.write(b"220 mail.example ESMTP\r\n\r\n"),
    "nothing": lambda server: None,
    "silent": lambda server: time.sleep(1),
    "long header": lambda server: server.wfile.write(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000 + b"\r\n\r\n"),
    "loop": redirect("/again"),
    "redirect to no address": redirect("nonsense://x"),
    "redirect to a bad port": redirect("http://x:port/"),
}


@pytest.fixture(params=ANSWERS)
def url(request):
    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.close_connection = True
            ANSWERS[request.param](self)

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/cifar-10-python.tar.gz"
        server.shutdown()


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("CNLIB_DATA", str(tmp_path))
    monkeypatch.setattr(sources, "SILENCE", 0.3)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def refused(name, home):
    with pytest.raises(ConnectionError, match=f"{name} .*could not be downloaded .*connect.*copy.*CNLIB_DATA"):
        cnlib.data.load(name)
    assert not any(home.iterdir()) and socket.getdefaulttimeout() is None


def test_every_failure_names_both_ways_out(url, home, monkeypatch):
    monkeypatch.setattr(datasets.CIFAR10, "url", url)
    refused("cifar10", home)


def test_the_archive_of_tiny_imagenet(url, home, monkeypatch):
    monkeypatch.setattr(sources, "TINY_IMAGENET", url)
    refused("tiny-imagenet", home)


def test_nobody_answers(home, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setattr(datasets.CIFAR10, "url", f"http://127.0.0.1:{port}/cifar-10-python.tar.gz")
    refused("cifar10", home)


def test_an_archive_that_cannot_be_read(home, monkeypatch):
    monkeypatch.setattr(
        datasets.utils, "download_url", lambda url, root, filename, md5: open(f"{root}/{filename}", "wb").close()
    )
    refused("tiny-imagenet", home)


def test_a_package_that_reading_needs(home, monkeypatch):
    def lacks(*_, **__):
        raise ModuleNotFoundError("No module named 'scipy'", name="scipy")

    monkeypatch.setattr(datasets, "SVHN", lacks)
    with pytest.raises(ImportError, match="svhn .*install scipy, or put the four arrays"):
        cnlib.data.load("svhn")
