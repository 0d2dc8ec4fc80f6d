"""Attachments: what can be read, and one sentence for everything that cannot."""

from __future__ import annotations

import os
import socket
import zlib
from pathlib import Path

import pypdf
import pytest

from localchat.chats import attachments
from localchat.chats.attachments import read
from localchat.chats.records import Attachment
from localchat.errors import UsageError


def pdf(*pages: str, stream: bytes = b"", packed: bool = False) -> bytes:
    """A PDF with a line of text on each page; `stream` is what every page holds instead."""
    count = len(pages)
    kids = b" ".join(b"%d 0 R" % (4 + 2 * number) for number in range(count))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [%b] /Count %d >>" % (kids, count),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for number, text in enumerate(pages):
        body = stream or (b"BT /F1 24 Tf 72 720 Td (%b) Tj ET" % text.encode() if text else b"0 0 9 9 re f")
        about = b"/Length %d" % len(body) + (b" /Filter /FlateDecode" if packed else b"")
        page = b"/MediaBox [0 0 612 792] /Contents %d 0 R /Resources << /Font << /F1 3 0 R >> >>" % (5 + 2 * number)
        objects.append(b"<< /Type /Page /Parent 2 0 R " + page + b" >>")
        objects.append(b"<< " + about + b" >>\nstream\n" + body + b"\nendstream")
    raw, places = b"%PDF-1.4\n", []
    for number, content in enumerate(objects, 1):
        places.append(len(raw))
        raw += b"%d 0 obj\n" % number + content + b"\nendobj\n"
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    end = b"trailer << /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF" % (len(objects) + 1, len(raw))
    return raw + b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1) + table + end


def refused(path: Path) -> str:
    with pytest.raises(UsageError) as refusal:
        read(path)
    assert "\n" not in refusal.value.message and ": " in refusal.value.message
    return refusal.value.message


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_text_is_read_in_every_encoding_that_says_what_it_is(tmp_path: Path, encoding: str) -> None:
    file = tmp_path / "grüße.py"
    file.write_bytes("x = 'Grüße'\r\n".encode(encoding))
    assert read(file) == Attachment("grüße.py", "x = 'Grüße'\r\n")


def test_the_pages_of_a_pdf_are_read(tmp_path: Path) -> None:
    file = tmp_path / "paper.PDF"
    file.write_bytes(pdf("First page", "", "Third page"))
    assert read(file) == Attachment("paper.PDF", "First page\n\nThird page\n")
    nameless = tmp_path / "paper"
    nameless.write_bytes(b"\n" + file.read_bytes())
    assert read(nameless).text == "First page\n\nThird page\n"


def test_a_pdf_that_only_forbids_printing_is_read(tmp_path: Path) -> None:
    file = tmp_path / "a.pdf"
    file.write_bytes(pdf("Open"))
    for password, readable in (("", True), ("secret", False)):
        writer = pypdf.PdfWriter(clone_from=file)
        writer.encrypt(password, "owner", algorithm="RC4-128")
        locked = tmp_path / "locked.pdf"
        writer.write(locked)
        if readable:
            assert read(locked).text == "Open\n"
        else:
            assert "is protected by a password" in refused(locked)


def test_a_pdf_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    whole = pdf("Some text")
    file = tmp_path / "a.pdf"
    for raw in (whole[:200], b"%PDF-1.7\n" + os.urandom(3000), b"no pdf at all", whole.replace(b"[4 0 R]", b"[2 0 R]")):
        file.write_bytes(raw)
        assert "is not a PDF that can be read" in refused(file)
    file.write_bytes(pdf(""))
    assert "with no text in it, perhaps scanned" in refused(file)


def test_a_pdf_bomb_harms_nobody(tmp_path: Path) -> None:
    file = tmp_path / "bomb.pdf"
    file.write_bytes(pdf("x", stream=zlib.compress(b"\0" * (512 << 20), 1), packed=True))
    assert "takes too much memory or time" in refused(file)


def test_a_pdf_without_end_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attachments, "PDF_LIMIT_S", 0.5)
    file = tmp_path / "slow.pdf"
    file.write_bytes(pdf("x", stream=b"BT /F1 24 Tf " + b"(x) Tj 1 0 0 1 0 0 cm " * 300_000 + b"ET"))
    assert "takes too much memory or time" in refused(file)


def test_a_module_beside_the_person_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pypdf.py").write_text("raise SystemExit('taken')")
    (tmp_path / "a.pdf").write_bytes(pdf("Text"))
    monkeypatch.chdir(tmp_path)
    assert read(Path("a.pdf")).text == "Text\n"


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_bytes(b"caf\xe9")
    assert "is not UTF-8 text (byte 0xe9 at position 3): convert it first" in refused(file)
    file.write_bytes(b"\x89PNG\r\n\0\0")
    assert "is not text but binary data" in refused(file)
    file.write_bytes(b" \n")
    assert "is empty" in refused(file)


def test_what_is_too_large_says_how_large(tmp_path: Path) -> None:
    file = tmp_path / "x"
    with file.open("wb") as huge:
        huge.truncate(5 << 30)
    assert "is too large (5,369 MB): at most 20 MB" in refused(file)
    file.write_text("x" * 4_000_001)
    assert "is too large (4,000,001 characters)" in refused(file)
    file.write_text("x" * 4_000_000)
    assert len(read(file).text) == 4_000_000


def test_what_is_no_file_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "there is no file" in refused(tmp_path / "gone" / "x")
    assert "is a folder" in refused(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        monkeypatch.chdir(tmp_path)  # the path of a socket must be short
        listener.bind("socket")
        for name in (tmp_path / "pipe", Path("/dev/zero"), Path("/dev/null")):
            assert "a device or a pipe" in refused(name)
        assert "cannot read" in refused(tmp_path / "socket")
    assert "there is no file a\u2400b" in refused(Path("a\0b"))
    assert "there is no file \u241b[2J" in refused(Path("\x1b[2J"))


def test_a_file_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    file = tmp_path / "x"
    file.write_text("x")
    file.chmod(0)
    assert "make it readable" in refused(file)


def test_a_link_to_a_file_is_that_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "link.txt").symlink_to("a.txt")
    assert read(tmp_path / "link.txt") == Attachment("link.txt", "text")
