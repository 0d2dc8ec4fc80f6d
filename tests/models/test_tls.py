"""Certificates and proxies (T4): a real TLS server with certificates of an authority that was made up for the test."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from localchat.errors import FetchError
from localchat.models import store
from localchat.models.fetch import ensure
from localchat.models.transfer import connection as connection_module
from localchat.models.transfer import transport
from tests.loopback_hub import LoopbackHub, running_hub
from tests.models.conftest import FILE, REPO, Offer, place

pytestmark = pytest.mark.usefixtures("quick")


class Authority:
    """An authority that signs certificates; its own is in `file`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "ca.pem"
        self._openssl("req", "-x509", *self._key("ca"), "-out", self.file, "-days", "2", "-subj", "/CN=Test authority")

    def context(self, alternative_name: str, *, days: int = 1) -> ssl.SSLContext:
        """What a server needs to show a certificate for a name (`DNS:…` or `IP:…`); with negative `days`, expired."""
        request, certificate, names = (self.folder / name for name in ("server.csr", "server.pem", "names"))
        names.write_text(f"subjectAltName={alternative_name}")
        self._openssl("req", *self._key("server"), "-out", request, "-subj", "/CN=server")
        signed_by = ("-CA", self.file, "-CAkey", self.folder / "ca.key", "-set_serial", "1")
        self._openssl("x509", "-req", "-in", request, *signed_by, "-days", days, "-extfile", names, "-out", certificate)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, self.folder / "server.key")
        return context

    def _key(self, name: str) -> tuple[object, ...]:
        return (
            *("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-keyout", self.folder / f"{name}.key"),
        )

    def _openssl(self, *arguments: object) -> None:
        subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    if not shutil.which("openssl"):
        pytest.skip("needs the openssl command to make certificates")
    return Authority(tmp_path_factory.mktemp("authority"))


Secure = Callable[[ssl.SSLContext], LoopbackHub]


@pytest.fixture
def secure(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> Iterator[Secure]:
    """Runs a hub over https that takes the place of the real one."""
    running: list[object] = []
    connection_module._certificates.cache_clear()

    def run(context: ssl.SSLContext) -> LoopbackHub:
        manager = running_hub(context)
        running.append(manager)
        secured = manager.__enter__()
        monkeypatch.setenv("HF_ENDPOINT", secured.url)
        return secured

    yield run
    for manager in running:
        manager.__exit__(None, None, None)
    connection_module._certificates.cache_clear()


@pytest.mark.usefixtures("ranged")
def test_an_authority_of_ones_own_is_trusted_through_the_environment(
    home: Path, authority: Authority, secure: Secure, bigger: bytes, offer: Offer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    hub = secure(authority.context("IP:127.0.0.1"))
    hub.add(REPO, FILE, bigger)
    offer(bigger)
    assert ensure("tiny").path.read_bytes() == bigger
    assert len(hub.asked("GET")) > 8, "it came in ranges"


@pytest.mark.parametrize(
    ("trusted", "name", "days", "reason"),
    [
        (False, "IP:127.0.0.1", 1, "unable to get local issuer certificate"),
        (True, "IP:127.0.0.1", -1, "certificate has expired"),
        (True, "DNS:somebody.else", 1, "IP address mismatch"),
    ],
)
def test_a_bad_certificate_is_one_sentence(
    trusted: bool,
    name: str,
    days: int,
    reason: str,
    home: Path,
    authority: Authority,
    secure: Secure,
    tiny: bytes,
    offer: Offer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    hub = secure(authority.context(name, days=days))
    hub.add(REPO, FILE, tiny)
    offer(tiny)
    with pytest.raises(FetchError) as failed:
        ensure("tiny")
    assert f"the certificate of 127.0.0.1 cannot be trusted ({reason}" in failed.value.message
    assert not hub.requests and not place(home).exists() and store.installed() == []


@contextmanager
def listener(answer: bytes = b"") -> Iterator[str]:
    """A proxy that takes connections and says `answer` or nothing; gives its address."""
    server = socket.create_server(("127.0.0.1", 0))
    held: list[socket.socket] = []

    def take() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            held.append(connection)
            if answer:
                connection.recv(1 << 16)
                connection.sendall(answer)

    threading.Thread(target=take, daemon=True).start()
    yield f"http://127.0.0.1:{server.getsockname()[1]}"
    server.close()
    for connection in held:
        connection.close()


@pytest.mark.parametrize(
    ("scheme", "answer", "reason"),
    [
        ("https", b"", "did not answer within 2 s through the proxy that is set"),
        ("http", b"", "sent nothing for 1 s"),
        ("https", b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n", "the proxy on the way"),
        ("https", b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n", "the proxy on the way"),
    ],
)
def test_a_proxy_that_hangs_or_refuses_is_one_sentence(
    scheme: str,
    answer: bytes,
    reason: str,
    home: Path,
    hub: LoopbackHub,
    tiny: bytes,
    offer: Offer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not answer:
        monkeypatch.setattr(transport, *(("CONNECT_S", 2.0) if scheme == "https" else ("STALL_S", 1.0)))
    offer(tiny)
    with listener(answer) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy)
        monkeypatch.setenv("HTTP_PROXY", proxy)
        for name in ("NO_PROXY", "no_proxy", "https_proxy", "http_proxy"):
            monkeypatch.delenv(name, raising=False)
        if scheme == "https":
            monkeypatch.setenv("HF_ENDPOINT", "https://hub.invalid")
        began = time.monotonic()
        with pytest.raises(FetchError, match=reason):
            ensure("tiny")
        assert time.monotonic() - began < 25
    assert not place(home).exists() and not hub.requests
