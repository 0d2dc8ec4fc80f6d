"""The header reader: agrees with the reference writer, and answers every damaged file with one sentence."""

from __future__ import annotations

import ctypes
import os
import random
import select
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import gguf as reference
import pytest

from localchat.errors import DamagedFile, NoSuchModel
from localchat.models import gguf
from localchat.models.gguf_types import FILE_TYPES, REMOVED_TENSOR_TYPES, TENSOR_TYPES
from localchat.safe_text import safe_line
from tests.tiny_models import write_model


class Bytes:
    """Bytes in memory as a source that counts what is read."""

    window = 1 << 20

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.size = len(content)
        self.read_bytes = 0

    def read(self, offset: int, length: int) -> bytes:
        part = self.content[offset : offset + length]
        self.read_bytes += len(part)
        return part


def parse(content: bytes) -> gguf.Header:
    return gguf.parse(Bytes(content), "x.gguf")


def text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def value(key: str, kind: int, raw: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + raw


def tensor(name: str, dims: list[int], kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def build(
    keys: list[bytes] | None = None,
    tensors: list[bytes] | None = None,
    *,
    data: int = 0,
    version: int = 3,
    n_keys: int | None = None,
    n_tensors: int | None = None,
) -> bytes:
    """A GGUF file by hand, so that any of its numbers can lie."""
    keys = [value("general.architecture", 8, text("llama"))] if keys is None else keys
    tensors = tensors or []
    head = b"GGUF" + struct.pack(
        "<IQQ",
        version,
        len(tensors) if n_tensors is None else n_tensors,
        len(keys) if n_keys is None else n_keys,
    )
    content = head + b"".join(keys) + b"".join(tensors)
    return content + bytes(-len(content) % 32) + bytes(data)


ARCHITECTURE = value("general.architecture", 8, text("llama"))


def test_agrees_with_the_reference_writer(tmp_path: Path, tiny: bytes) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(tiny)
    header = gguf.read_header(path)
    theirs = reference.GGUFReader(str(path))
    assert header.architecture == "llama"
    assert header.name == "Tiny"
    assert header.quantization == "Q8_0"
    assert (header.context, header.embedding, header.n_layer, header.n_head) == (2048, 64, 2, 4)
    assert header.n_head_kv == 2
    assert header.metadata["llama.attention.head_count_kv"] == (2, 1)
    assert (header.key_length, header.value_length) == (16, 16)
    assert header.vocabulary == 300
    assert header.chat_template == "{{ messages }}"
    assert header.tensors == len(theirs.tensors) == 3
    assert header.parameters == sum(int(one.n_elements) for one in theirs.tensors)
    assert header.tensor_bytes == sum(int(one.n_bytes) for one in theirs.tensors)
    assert header.lengths["tokenizer.ggml.scores"] == 300
    assert set(header.metadata) | set(header.lengths) == {key for key in theirs.fields if not key.startswith("GGUF.")}


def test_the_type_table_is_the_reference_table() -> None:
    theirs = {int(kind): (kind.name, *sizes) for kind, sizes in reference.GGML_QUANT_SIZES.items()}
    theirs[9] = ("Q8_1", 32, 36)  # the package says 40, the engine 36 (see the next test); no file holds this type
    assert {kind: TENSOR_TYPES[kind] for kind in theirs} == theirs
    labels = {
        int(one): one.name.removeprefix("MOSTLY_").removeprefix("ALL_").removesuffix("_MOE")
        for one in reference.LlamaFileType
    }
    del labels[1024]
    assert {kind: FILE_TYPES[kind] for kind in labels} == labels
    assert not set(REMOVED_TENSOR_TYPES) & set(TENSOR_TYPES)


def test_the_type_table_is_the_engines() -> None:
    import importlib.util

    spec = importlib.util.find_spec("llama_cpp")
    assert spec and spec.origin
    found = sorted(Path(spec.origin).parent.glob("lib/libggml-base.*"))
    library = ctypes.CDLL(str(found[0]))
    library.ggml_type_size.restype = ctypes.c_size_t
    library.ggml_blck_size.restype = ctypes.c_int64
    for kind, (_, block, size) in TENSOR_TYPES.items():
        assert (library.ggml_blck_size(kind), library.ggml_type_size(kind)) == (block, size), kind
    for kind in REMOVED_TENSOR_TYPES:
        assert library.ggml_blck_size(kind) == 0


def test_the_least_file_is_read() -> None:
    for version in (2, 3):
        header = parse(build(tensors=[tensor("a", [32])], data=128, version=version))
        assert (header.parameters, header.tensor_bytes, header.quantization) == (32, 128, "F32")
    assert parse(build()).chat_template is None


def test_a_large_vocabulary_is_quick_and_read_once() -> None:
    words = b"".join(text(f"▁word{number}") for number in range(262_144))
    array = value("tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, 262_144) + words)
    source = Bytes(build([ARCHITECTURE, array]))
    times = []
    for _ in range(3):
        source.read_bytes = 0
        began = time.perf_counter()
        assert gguf.parse(source, "x").vocabulary == 262_144
        times.append(time.perf_counter() - began)
        assert source.read_bytes < 1.3 * source.size
    assert min(times) < 0.5  # 30 ms on a machine with nothing else to do


def test_long_number_arrays_are_passed_over() -> None:
    array = value("scores", 9, struct.pack("<IQ", 6, 5_000_000) + bytes(20_000_000))
    source = Bytes(build([ARCHITECTURE, array, value("after", 4, struct.pack("<I", 7))]))
    header = gguf.parse(source, "x")
    assert header.metadata["after"] == 7 and header.lengths["scores"] == 5_000_000
    assert "scores" not in header.metadata
    assert source.read_bytes < 4 << 20


FAULTS = {
    "empty": (b"", "too short"),
    "magic only": (b"GGUF", "too short"),
    "not a GGUF": (b"PK\3\4" + bytes(100), "not a GGUF file"),
    "web page": (b"<!doctype html><html>" + bytes(100), "not a GGUF file"),
    "old version": (build(version=1), "version 1"),
    "future version": (build(version=4), "version 4"),
    "big endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0) + bytes(32), "big-endian"),
    "many keys": (build(n_keys=1 << 60), "metadata keys"),
    "more keys than there are": (build(n_keys=40), "damaged"),
    "many tensors": (build(n_tensors=1 << 60), "tensors"),
    "long key": (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 63) + bytes(64), "cut short"),
    "long text": (build([value("a", 8, struct.pack("<Q", (1 << 64) - 1))]), "cut short"),
    "long string array": (build([value("a", 9, struct.pack("<IQ", 8, 1 << 22))]), "cut short"),
    "endless string array": (build([value("a", 9, struct.pack("<IQ", 8, 1 << 62))]), "texts"),
    "string array that overflows": (
        build([value("a", 9, struct.pack("<IQQ", 8, 3, (1 << 64) - 8) + bytes(64))]),
        "cut short",
    ),
    "long number array": (build([value("a", 9, struct.pack("<IQ", 10, (1 << 61) + 1))]), "cut short"),
    "array of arrays": (build([value("a", 9, struct.pack("<IQ", 9, 1))]), "unknown type"),
    "unknown value": (build([value("a", 99, b"")]), "unknown type"),
    "key twice": (build([ARCHITECTURE, ARCHITECTURE]), "appears twice"),
    "no architecture": (build([]), "architecture"),
    "architecture is a number": (build([value("general.architecture", 4, bytes(4))]), "architecture"),
    "zero alignment": (build([ARCHITECTURE, value("general.alignment", 4, bytes(4))], [tensor("a", [1])]), "alignment"),
    "odd alignment": (build([ARCHITECTURE, value("general.alignment", 4, struct.pack("<I", 33))]), "alignment"),
    "alignment is a text": (build([ARCHITECTURE, value("general.alignment", 8, text("x"))]), "alignment"),
    "tensor twice": (build(tensors=[tensor("a", [8]), tensor("a", [8], offset=32)], data=64), "appears twice"),
    "tensor without name": (build(tensors=[tensor("", [8])], data=64), "tensor name"),
    "tensor with a long name": (build(tensors=[tensor("a" * 64, [8])], data=64), "tensor name"),
    "five dimensions": (build(tensors=[tensor("a", [1] * 5)], data=64), "5 dimensions"),
    "a billion dimensions": (build(tensors=[text("a") + struct.pack("<I", 1 << 30)]), "dimensions"),
    "no values": (build(tensors=[tensor("a", [8, 0])], data=64), "impossible shape"),
    "shape that overflows": (build(tensors=[tensor("a", [1 << 40, 1 << 40])], data=64), "impossible shape"),
    "withdrawn type": (build(tensors=[tensor("a", [32], kind=4)], data=64), "Q4_2, which was withdrawn"),
    "unknown type": (build(tensors=[tensor("a", [32], kind=77)], data=64), "number 77"),
    "half a block": (build(tensors=[tensor("a", [33], kind=8)], data=640), "no multiple of 32 as Q8_0"),
    "offset beyond the file": (build(tensors=[tensor("a", [8], offset=1 << 62)], data=64), "begin at"),
    "overlap": (build(tensors=[tensor("a", [8]), tensor("b", [8])], data=64), "begin at"),
    "data cut short": (build(tensors=[tensor("a", [64])], data=255), "cut short"),
    "no data": (build(tensors=[tensor("a", [1 << 40])]), "cut short"),
    "many layers": (build([ARCHITECTURE, value("llama.block_count", 4, struct.pack("<I", 513))]), "513 layers"),
    "negative layers": (build([ARCHITECTURE, value("llama.block_count", 5, struct.pack("<i", -1))]), "negative"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_named(name: str, tmp_path: Path) -> None:
    content, expected = FAULTS[name]
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    with pytest.raises(DamagedFile) as damaged:
        gguf.read_header(path)
    assert expected in damaged.value.message
    assert "bad.gguf" in damaged.value.message and "again" in damaged.value.message
    assert damaged.value.exit_code == 8


def test_hostile_text_in_a_fault_is_shown_safely() -> None:
    with pytest.raises(DamagedFile) as damaged:
        parse(build(tensors=[tensor("\x1b]52;c;x\a\u202e", [1] * 4, kind=99)]))
    assert damaged.value.message == safe_line(damaged.value.message)


def test_texts_kept_are_capped() -> None:
    huge = value("a", 8, text("x" * (33 << 20)))
    with pytest.raises(DamagedFile, match="short one"):
        parse(build([ARCHITECTURE, huge]))


def test_every_truncation_is_noticed(tiny: bytes) -> None:
    end = len(tiny)
    for cut in [*range(0, 4000, 97), *range(end - 2000, end - 64, 131), end // 2]:
        with pytest.raises(DamagedFile):
            parse(tiny[:cut])


def mutations(content: bytes, count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Files that are wrong in one to four places, most of them in the header."""
    chance = random.Random(seed)
    header_end = content.index(b"blk.0.attn_q.weight") + 64
    nasty = [0, 1, 7, 8, 9, 31, 255, 1 << 15, 1 << 31, (1 << 32) - 1, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]
    for number in range(count):
        changed = bytearray(content)
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(header_end if chance.random() < 0.9 else len(changed) - 8)
            match chance.randrange(6):
                case 0:
                    changed[at] ^= 1 << chance.randrange(8)
                case 1:
                    changed[at] = chance.randrange(256)
                case 2:
                    changed[at : at + 8] = struct.pack("<Q", chance.choice(nasty))
                case 3:
                    changed[at : at + 4] = struct.pack("<I", chance.choice(nasty) & 0xFFFFFFFF)
                case 4:
                    del changed[at : at + chance.randrange(1, 64)]
                case 5:
                    changed[at:at] = chance.randbytes(chance.randrange(1, 64))
            changed = changed if len(changed) > header_end else bytearray(content)
        if chance.random() < 0.1:
            del changed[chance.randrange(len(changed)) :]
        yield f"seed {seed}, mutation {number}", bytes(changed)


def hold_against(content: bytes, count: int) -> None:
    seed = int(os.environ.get("LOCALCHAT_TEST_SEED") or random.randrange(1 << 32))
    refused = 0
    for label, changed in mutations(content, count, seed):
        began = time.monotonic()
        try:
            parse(changed)
        except DamagedFile as damaged:
            refused += 1
            assert damaged.message == safe_line(damaged.message), label
        except BaseException as error:
            raise AssertionError(f"{label}: {error!r}") from error
        assert time.monotonic() - began < 5, label
    assert count // 3 < refused < count, f"seed {seed}: {refused} of {count} refused"


def test_mutations(tiny: bytes) -> None:
    hold_against(tiny, 200)


@pytest.mark.slow
def test_many_mutations(tiny: bytes) -> None:
    hold_against(tiny, 2_000)


# Loads one file after the other, as the engine does, and says of each how that ended.
_LOADER = """
import sys
from pathlib import Path
from localchat.engine.context import Context
from localchat.engine.model import Model
from localchat.errors import LocalchatError
for line in sys.stdin:
    model = None
    try:
        model = Model(Path(line.strip()))
        Context(model, 256, 1).close()
        outcome = "loaded"
    except LocalchatError as error:
        outcome = f"refused {error.message}"
    if model:
        model.close()
    print(outcome, flush=True)
"""


class Loader:
    """The engine in a process of its own, started anew where a file has killed it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def load(self, path: Path) -> str:
        """How a file fared: "loaded", "refused" with the sentence, or "died" with the signal. 10 s at most."""
        if not self._process:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _LOADER],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        process = self._process
        assert process.stdin and process.stdout
        print(path, file=process.stdin, flush=True)
        ready, _, _ = select.select([process.stdout], [], [], 10)
        assert ready, "the engine hangs"
        if answer := process.stdout.readline().strip():
            return answer
        self.close()
        assert process.returncode < 0, "the engine ended without a signal: an error of ours"
        return f"died of signal {-process.returncode}"

    def close(self) -> None:
        """End the process."""
        if self._process:
            self._process.communicate()
            self._process = None


def hold_the_engine_against(tmp_path: Path, count: int) -> None:
    """Files that the header reader lets through; what it refuses, the engine never sees."""
    seed = int(os.environ.get("LOCALCHAT_TEST_SEED") or random.randrange(1 << 32))
    content = write_model(tmp_path / "tiny.gguf").read_bytes()
    path, loader = tmp_path / "changed.gguf", Loader()
    ended: Counter[str] = Counter()
    try:
        for label, changed in mutations(content, 50 * count, seed):
            path.write_bytes(changed)
            try:
                gguf.read_header(path)
            except DamagedFile:
                continue
            try:
                outcome = loader.load(path)
            except AssertionError as error:
                raise AssertionError(f"{label}: {error}") from error
            if outcome.startswith("refused"):
                assert outcome == safe_line(outcome) and "again" in outcome, f"{label}: {outcome}"
            ended[outcome.split()[0]] += 1
            if ended.total() == count:
                break
    finally:
        loader.close()
    print(f"seed {seed}: {dict(ended)}")
    assert ended.total() == count, f"seed {seed}: {ended}"
    assert ended["loaded"], f"seed {seed}: {ended}"


def test_damaged_files_do_not_hang_the_engine(tmp_path: Path) -> None:
    hold_the_engine_against(tmp_path, 30)


@pytest.mark.slow
def test_many_damaged_files_do_not_hang_the_engine(tmp_path: Path) -> None:
    hold_the_engine_against(tmp_path, 300)


def test_weights_are_counted_by_what_they_are_for() -> None:
    header = parse(
        build(
            [ARCHITECTURE, value("llama.block_count", 4, struct.pack("<I", 2))],
            [
                tensor("token_embd.weight", [32, 4], kind=8),
                tensor("output_norm.weight", [32], offset=160),
                tensor("blk.0.attn_q.weight", [32, 2], kind=2, offset=288),
                tensor("blk.1.attn_q.weight", [32, 2], kind=8, offset=352),
                tensor("blk.1.ffn_up_exps.weight", [32, 1, 8], kind=2, offset=448),
            ],
            data=592,
        )
    )
    assert header.weights == {
        "embedding": {"Q8_0": 136},
        "head": {"F32": 128},
        "layers": {"Q4_0": 36, "Q8_0": 68},
        "experts": {"Q4_0": 144},
    }
    assert header.layer_bytes == (36, 212) and header.is_tied


def test_the_parts_of_a_split_model_are_joined() -> None:
    count = value("llama.block_count", 4, struct.pack("<I", 2))
    first = parse(build([ARCHITECTURE, count], [tensor("blk.0.attn_q.weight", [32])], data=128))
    # The later parts say nothing of the model.
    number = value("split.no", 2, struct.pack("<H", 1))
    second = parse(build([number], [tensor("blk.1.a.weight", [8]), tensor("output.weight", [8], offset=32)], data=64))
    whole = gguf.joined([first, second])
    assert (whole.architecture, whole.layer_bytes, whole.is_tied) == ("llama", (128, 32), False)
    assert whole.weights == {"layers": {"F32": 160}, "head": {"F32": 32}}
    assert (whole.tensors, whole.parameters, whole.tensor_bytes) == (3, 48, 192)
    assert gguf.joined([first]) == first


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(NoSuchModel, match="no file"):
        gguf.read_header(tmp_path / "absent.gguf")
    with pytest.raises(NoSuchModel, match="folder"):
        gguf.read_header(tmp_path)


def test_parts_of_a_split_model_are_all_wanted(tmp_path: Path) -> None:
    for number in (1, 3):
        (tmp_path / f"m-0000{number}-of-00003.gguf").touch()
    with pytest.raises(DamagedFile, match=r"m-00002-of-00003\.gguf is missing"):
        gguf.shards(tmp_path / "m-00001-of-00003.gguf")
    (tmp_path / "m-00002-of-00003.gguf").touch()
    assert [path.name[2:7] for path in gguf.shards(tmp_path / "m-00003-of-00003.gguf")] == ["00001", "00002", "00003"]
    assert gguf.shards(tmp_path / "plain.gguf") == [tmp_path / "plain.gguf"]
