"""What the tests of the models package share: an empty home, tiny real GGUF files, a hub on this machine."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import gguf as gguf_writer
import numpy
import pytest

from localchat import paths as paths_module
from localchat import settings as settings_module
from localchat.models import records
from tests.loopback_hub import LoopbackHub, Request, running_hub

REPO = "someone/Tiny-GGUF"
FILE = "tiny.Q8_0.gguf"


def forget() -> None:
    """Make this process read its environment and files anew."""
    paths_module.paths.cache_clear()
    settings_module.settings.cache_clear()
    records._remembered.clear()


def make_gguf(path: Path, *, tensor_rows: int = 64, vocabulary: int = 300, name: str = "Tiny", seed: int = 1) -> bytes:
    """Write a small but complete GGUF file with the reference writer; return its bytes."""
    writer = gguf_writer.GGUFWriter(str(path), "llama")
    writer.add_name(name)
    writer.add_context_length(2048)
    writer.add_embedding_length(64)
    writer.add_block_count(2)
    writer.add_head_count(4)
    writer.add_head_count_kv([2, 1])
    writer.add_file_type(7)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"token{number}" for number in range(vocabulary)])
    writer.add_token_scores([float(number) for number in range(vocabulary)])
    writer.add_chat_template("{{ messages }}")
    random = numpy.random.default_rng(seed)
    writer.add_tensor("token_embd.weight", random.standard_normal((tensor_rows, 64), dtype=numpy.float32))
    writer.add_tensor("output_norm.weight", numpy.ones(64, dtype=numpy.float32))
    packed = gguf_writer.quants.quantize(
        random.standard_normal((32, 64), dtype=numpy.float32), gguf_writer.GGMLQuantizationType.Q8_0
    )
    writer.add_tensor("blk.0.attn_q.weight", packed, raw_dtype=gguf_writer.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A GGUF file of some 25 kB."""
    return make_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture(scope="session")
def bigger(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A GGUF file of some 4 MB, for transfers that are to be interrupted."""
    return make_gguf(tmp_path_factory.mktemp("gguf") / "bigger.gguf", tensor_rows=16384, seed=2)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty LOCALCHAT_HOME."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("LOCALCHAT_HOME", str(folder))
    monkeypatch.delenv("LOCALCHAT_OFFLINE", raising=False)
    forget()
    yield folder
    forget()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    """A hub on this machine that takes the place of the real one; no token of the person's is used."""
    with running_hub() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
        monkeypatch.setenv("HF_TOKEN_PATH", "/nonexistent")
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        yield running


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses between attempts that a test can wait for."""
    monkeypatch.setattr("localchat.models.transfer.retries._FIRST_PAUSE_S", 0.01)


@pytest.fixture
def ranged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many small ranges over several connections, for a file of 4 MB."""
    monkeypatch.setattr("localchat.models.transfer.ranges.ONE_STREAM_BELOW", 1 << 20)
    monkeypatch.setattr("localchat.models.transfer.ranges.CHUNK", 256 << 10)
    monkeypatch.setattr("localchat.models.transfer.ranges.UNIT", 64 << 10)
    monkeypatch.setattr("localchat.models.transfer.tasks._WORTH_SPLITTING", 64 << 10)


def asked_bytes(requests: list[Request], size: int, *, sent: bool = False) -> numpy.ndarray:
    """For each byte of a file of `size`, whether one of the requests asked for it; with `sent`, whether it was sent."""
    asked = numpy.zeros(size, dtype=bool)
    for request in requests:
        first, _, last = request.headers.get("range", "bytes=0-").removeprefix("bytes=").partition("-")
        asked[int(first) : request.start + request.sent if sent else int(last or size - 1) + 1] = True
    return asked


Offer = Callable[..., str]


@pytest.fixture
def offer(home: Path) -> Offer:
    """Writes the person's own catalogue: one entry, `tiny`, for a file with the given content and sources."""

    def write(content: bytes, *sources: str, pinned: bool = True, starter: bool = True) -> str:
        pin = f'size = {len(content)}\nsha256 = "{hashlib.sha256(content).hexdigest()}"' if pinned else ""
        text = f"""
[[model]]
name = "tiny"
starter = {str(starter).lower()}
family = "Tiny"
parameters = 1000
license = "Apache-2.0"
abilities = ["chat"]
sampling = {{ temperature = 0.5 }}

[[model.quantization]]
name = "q8_0"
file = "{FILE}"
{pin}
"""
        for source in sources or (hub_source(),):
            text += f"\n[[model.quantization.source]]\n{source}\n"
        (home / "models.toml").write_text(text)
        forget()
        return "tiny"

    return write


def hub_source(revision: str = "main") -> str:
    """A hub source as TOML."""
    return f'kind = "hub"\nrepo = "{REPO}"\nrevision = "{revision}"\nfile = "{FILE}"'


def place(home: Path) -> Path:
    """Where the file of `tiny` belongs."""
    return home / "models" / REPO / FILE
