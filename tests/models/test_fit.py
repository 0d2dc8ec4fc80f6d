"""What a model needs, against what the engine itself says it needs; and how much of it fits, and how fast it is."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import msgspec
import pytest

from localchat.machine import Attention, Figures, Machine, Rate
from localchat.models import fit
from localchat.models.catalogue import load, shipped_file
from localchat.models.gguf import read_header
from localchat.models.shape import Layer, Shape, of_header
from localchat.tuning import Tuning
from tests import sparse_models as real
from tests.tiny_models import write_model

MIB = 1 << 20

# In a process of its own, as the engine opens its window: the buffers that llama.cpp names. The first argument says
# whether memory is really taken.
_ENGINE = """
import json, os, sys
from localchat.engine import llama as log
from localchat.tuning import MICRO_BATCH, sequences
api = log.api()
micro_batch = int(os.environ.get("MICRO_BATCH", MICRO_BATCH))
params = api.llama_model_default_params()
if sys.argv[1] == "no_alloc":
    params.no_alloc, params.load_mode = True, 0
model = api.llama_model_load_from_file(os.fsencode(sys.argv[2]), params)
assert model, log.complaints(0)
found = []
for context in map(int, sys.argv[3:]):
    params = api.llama_context_default_params()
    params.n_ctx = context
    stateful = api.llama_model_n_swa(model) or api.llama_model_is_recurrent(model) or api.llama_model_is_hybrid(model)
    params.n_seq_max = params.n_outputs_max = sequences(is_stateful=bool(stateful))
    params.n_batch = params.n_ubatch = min(micro_batch, context)
    params.flash_attn_type = int(os.environ.get("FLASH_ATTENTION", "-1"))
    params.kv_unified, params.swa_full = True, False
    logged = log.lines_logged
    made = api.llama_init_from_model(model, params)
    assert made, log.complaints(logged)
    found.append(log.buffer_bytes(logged))
    api.llama_free(made)
print(json.dumps(found))
"""


def engine_says(path: Path, *contexts: int, alloc: bool = False, **settings: int) -> list[dict[str, int]]:
    """Bytes of the buffers that the engine makes for a model at each context, by kind."""
    arguments = ["alloc" if alloc else "no_alloc", str(path), *map(str, contexts)]
    environment = {**os.environ, **{name.upper(): str(value) for name, value in settings.items()}}
    done = subprocess.run(
        [sys.executable, "-c", _ENGINE, *arguments], capture_output=True, text=True, timeout=120, env=environment
    )
    assert done.returncode == 0, done.stderr
    found: list[dict[str, int]] = json.loads(done.stdout.splitlines()[-1])
    return found


SHAPES = {
    "llama-8b": real.LLAMA_8B,
    "r1-1.5b": real.R1_1_5B,
    "qwen3-4b": real.QWEN3_4B,
    "qwen3-14b": real.QWEN3_14B,
    "gemma2-2b": real.GEMMA2_2B,
    "gemma3-4b": real.GEMMA3_4B,
    "qwen3-30b-a3b": real.QWEN3_30B_A3B,
    "gpt-oss-20b": real.GPT_OSS_20B,
}


def all_but_slow(names: Iterable[str], quick: set[str]) -> list[object]:
    """Each name as a parameter; a real engine takes seconds for each, so most of them are for the slow run."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", all_but_slow(SHAPES, {"qwen3-4b", "gemma3-4b", "gpt-oss-20b", "llama-8b"}))
def test_compute_buffers_are_those_of_the_engine(name: str, tmp_path: Path) -> None:
    path = real.write_sparse(tmp_path / "sparse.gguf", SHAPES[name])
    shape = of_header(read_header(path))
    contexts = (512, 2048, 8192, 32768)
    for context, buffers in zip(contexts, engine_says(path, *contexts), strict=True):
        expected = buffers["compute"] + buffers["output"]
        assert fit.memory(shape, 0, context).compute == pytest.approx(expected, rel=0.05), context


@pytest.mark.parametrize("name", all_but_slow(SHAPES, {"gemma3-4b"}))
@pytest.mark.parametrize(("micro_batch", "flash_attention"), [(64, True), (1024, True), (128, False), (512, False)])
def test_compute_buffers_are_those_of_a_tuned_engine(
    name: str, micro_batch: int, flash_attention: bool, tmp_path: Path
) -> None:
    path = real.write_sparse(tmp_path / "sparse.gguf", SHAPES[name])
    shape = of_header(read_header(path))
    contexts = (2048, 8192)
    tuning = Tuning(micro_batch=micro_batch, flash_attention=flash_attention)
    says = engine_says(path, *contexts, micro_batch=micro_batch, flash_attention=int(flash_attention))
    for context, buffers in zip(contexts, says, strict=True):
        expected = buffers["compute"] + buffers["output"]
        assert fit.memory(shape, 0, context, tuning=tuning).compute == pytest.approx(expected, rel=0.12), context


HYBRID = {"qwen3.5-2b": real.QWEN35_2B}


LOADED = ["r1-1.5b", "qwen3-4b", "gemma2-2b", "gemma3-4b", "qwen3.5-2b"]


@pytest.mark.parametrize("name", all_but_slow(LOADED, {"r1-1.5b", "gemma3-4b", "qwen3.5-2b"}))
def test_all_memory_is_that_of_a_real_load(name: str, tmp_path: Path) -> None:
    path = real.write_sparse(tmp_path / "sparse.gguf", {**SHAPES, **HYBRID}[name].smaller())
    header = read_header(path)
    shape = of_header(header)
    for context, buffers in zip((2048, 8192), engine_says(path, 2048, 8192, alloc=True), strict=True):
        memory = fit.memory(shape, header.tensor_bytes, context)
        buffers["KV"] += buffers.get("RS", 0)
        assert memory.kv == pytest.approx(buffers["KV"], rel=0.01), context
        engines = header.tensor_bytes + sum(buffers[kind] for kind in ("KV", "compute", "output"))
        assert memory.total == pytest.approx(engines, rel=0.05), context


def test_the_starter_takes_what_is_expected(starter: Path) -> None:
    header = read_header(starter)
    for context, buffers in zip((2048, 8192), engine_says(starter, 2048, 8192, alloc=True), strict=True):
        memory = fit.memory(of_header(header), header.tensor_bytes, context)
        assert memory.kv == pytest.approx(buffers["KV"], rel=0.01)
        assert memory.compute == pytest.approx(buffers["compute"] + buffers["output"], rel=0.05)


def test_a_recurrent_model_keeps_its_state_whatever_the_context(tmp_path: Path) -> None:
    path = write_model(tmp_path / "mamba.gguf", architecture="mamba", width=64, layers=4)
    shape = of_header(read_header(path))
    few, many = (fit.memory(shape, 0, context).kv for context in (256, 32768))
    assert few == many == pytest.approx(engine_says(path, 256, alloc=True)[0]["RS"], abs=16 << 10)


def test_a_sliding_layer_keeps_a_window_for_each_sequence() -> None:
    every = [layer.window for layer in SHAPE_GEMMA.memory_layers]
    assert every == [512] * 5 + [0] + [512] * 5 + [0] + [512] * 5 + [0] + [512] * 5 + [0, 512, 512]
    # Those that see everything grow with the context; the others stop at eight windows and a micro-batch.
    at = [fit.memory(SHAPE_GEMMA, 0, context).kv for context in (16384, 32768)]
    assert at[1] - at[0] == 4 * 16384 * 2 * 256 * 2
    alone = fit.memory(SHAPE_GEMMA, 0, 32768, side_by_side=1).kv
    assert at[1] - alone == 22 * (8 * 512 + 512 - 1024) * 2 * 256 * 2


def test_a_quantized_cache_is_smaller() -> None:
    full, half = (fit.memory(DENSE, 0, 4096, tuning=Tuning(kv_type=kind)).kv for kind in (None, "q8_0"))
    assert full == 4096 * 10 * 2 * 2 * 64 * 2
    assert half == full // 64 * 34


GIB = 1 << 30


@pytest.mark.parametrize(
    ("need", "available", "verdict"),
    [
        (4 * GIB, 16 * GIB, "yes"),
        (15 * GIB, 16 * GIB, "yes"),
        (int(15.3 * GIB), 16 * GIB, "tight"),
        (16 * GIB, 16 * GIB, "tight"),
        (16 * GIB + 1, 16 * GIB, "no"),
        (int(3.6 * GIB), 4 * GIB, "tight"),
        (3 * GIB, 4 * GIB, "yes"),
        (1, 0, "no"),
    ],
)
def test_judgement(need: int, available: int, verdict: str) -> None:
    assert fit.judge(need, available) == verdict


DENSE = Shape(layers=10, embedding=256, heads_kv=2, key_length=64, value_length=64, vocabulary=1000, heads=4)
SHAPE_GEMMA = Shape(
    layers=26,
    embedding=1152,
    heads_kv=1,
    key_length=256,
    value_length=256,
    vocabulary=262144,
    each=tuple(Layer(512, 0 if index % 6 == 5 else 512) for index in range(26)),
)


def test_layers_go_to_a_gpu_from_the_end() -> None:
    layers, head = [100 * MIB] * 10, 300 * MIB

    def fitting(free: int, context: int = 256) -> int:
        return fit.layers_on_gpu(DENSE, layers, head, context, free)

    assert fitting(0) == fitting(200 * MIB) == 0
    assert fitting(330 * MIB) == 1
    assert fitting(450 * MIB) == 2
    assert fitting(64 * GIB) == 11
    counts = [fitting(free * 50 * MIB) for free in range(40)]
    assert counts == sorted(counts) and set(counts) == set(range(12))
    # A longer window takes memory from each layer that is there.
    assert fitting(900 * MIB, 1 << 17) < fitting(900 * MIB)


def test_the_largest_last_layer_is_not_passed_over() -> None:
    # What does not fit ends the count: llama.cpp leaves none out.
    assert fit.layers_on_gpu(DENSE, [10 * MIB] * 9 + [900 * MIB], 10 * MIB, 256, 400 * MIB) == 1


def test_shapes_of_the_catalogue_spread_their_full_layers() -> None:
    shape = msgspec.structs.replace(DENSE, layers=26, full_layers=4, window=512)
    windows = [layer.window for layer in shape.memory_layers]
    assert windows.count(0) == 4 and len(windows) == 26
    hybrid = msgspec.structs.replace(DENSE, layers=8, full_layers=2, state=1000)
    assert sum(layer.kv > 0 for layer in hybrid.memory_layers) == 2
    assert fit.memory(hybrid, 0, 256).kv == 2 * 256 * 256 * 2 + 6 * 1000 * 8 * 4


def figures(name: str = "CPU", factor: float = 1.0) -> Figures:
    return Figures(
        name=name,
        bandwidth=20e9 * factor,
        layer_seconds=20e-6,
        cached_bytes=16 * MIB,
        streamed_bytes=256 * MIB,
        rates={
            "Q4_0": Rate(10e9 * factor, 40e9 * factor, 80e9 * factor),
            "Q6_K": Rate(12e9 * factor, 30e9 * factor, 40e9 * factor),
        },
        attention={128: Attention(5e9 * factor, 20e9 * factor)},
    )


MACHINE = Machine(engine="", system="", cpu="", threads=2, processor=figures(), devices=(figures("CUDA0", 20),))
R1 = Shape(
    layers=28,
    embedding=1536,
    heads_kv=2,
    key_length=128,
    value_length=128,
    vocabulary=151936,
    heads=12,
    feed_forward=8960,
)
R1_WEIGHTS = {
    "layers": {"Q4_0": 740 * 10**6, "F32": 10**6},
    "embedding": {"Q4_0": 131 * 10**6},
    "head": {"Q6_K": 191 * 10**6},
}


def test_a_token_reads_its_weights_and_what_is_remembered() -> None:
    weights = 740 * 10**6 + 10**6 + 191 * 10**6
    assert fit.moved_bytes(R1, R1_WEIGHTS, 100) == weights + 100 * 28 * 2 * 2 * 128 * 2
    assert fit.moved_bytes(R1, R1_WEIGHTS, 100, tuning=Tuning(kv_type="q8_0")) < fit.moved_bytes(R1, R1_WEIGHTS, 100)


def test_decode_is_bytes_over_their_rate() -> None:
    speed = fit.speed(R1, R1_WEIGHTS, MACHINE, context=1)
    assert speed.decode == pytest.approx(1 / (740e6 / 10e9 + 191e6 / 12e9 + 28 * 20e-6), rel=0.01)
    # Reading makes logits for one token only.
    assert speed.prefill == pytest.approx(80e9 / (740e6 / 18 * 32), rel=0.01)
    later = fit.speed(R1, R1_WEIGHTS, MACHINE, context=4096)
    assert speed.decode and later.decode and later.decode < speed.decode
    assert 1 / later.decode - 1 / speed.decode == pytest.approx(28 * 4095 * 12 * 256 / 5e9, rel=0.01)


def test_a_small_model_is_as_fast_as_the_caches() -> None:
    small = fit.speed(DENSE, {"layers": {"Q4_0": 8 * MIB}, "embedding": {"Q4_0": MIB}}, MACHINE, context=1)
    assert small.decode == pytest.approx(1 / (9 * MIB / 40e9 + 10 * 20e-6), rel=0.01)


def test_experts_count_as_far_as_they_are_used() -> None:
    shape = msgspec.structs.replace(R1, experts=128, experts_used=8)
    weights = {
        "layers": {"Q4_0": 10**9},
        "experts": {"Q4_0": 16 * 10**9},
        "embedding": {"Q4_0": 1},
        "head": {"Q4_0": 1},
    }
    speed = fit.speed(shape, weights, MACHINE, context=1)
    assert speed.decode == pytest.approx(1 / (2e9 / 10e9 + 28 * 20e-6), rel=0.01)


def test_a_gpu_takes_its_share() -> None:
    alone, half, whole = (
        fit.speed(R1, R1_WEIGHTS, MACHINE, gpu_layers=layers, device="CUDA0").decode or 0 for layers in (0, 14, 29)
    )
    assert alone < half < whole
    assert whole == fit.speed(R1, R1_WEIGHTS, msgspec.structs.replace(MACHINE, processor=figures(factor=20))).decode
    assert fit.speed(R1, R1_WEIGHTS, MACHINE, gpu_layers=5, device="Vulkan0") == fit.Speed(None, None)


def test_a_type_that_was_not_measured_is_not_invented() -> None:
    assert fit.speed(R1, {"layers": {"TQ1_0": 10**9}, "embedding": {"Q6_K": 10**6}}, MACHINE) == fit.Speed(None, None)


def test_sizes_that_are_not_known_are_estimated_near_those_that_are() -> None:
    ratios = sorted(
        fit.typical_size(quantization.name, entry.parameters) / quantization.size
        for entry, quantization in load(shipped_file()).files()
        if quantization.size
    )
    assert len(ratios) > 50
    assert statistics.median(ratios) == pytest.approx(1, abs=0.05)
    # What differs most are small models with large vocabularies.
    assert sum(0.85 < ratio < 1.15 for ratio in ratios) > 0.8 * len(ratios)
    assert fit.typical_size("UD-Q4_K_XL", 10**9) == fit.typical_size("q4_k_m", 10**9)


def test_a_guess_of_what_is_in_a_file_is_near_what_is(tmp_path: Path) -> None:
    weights = fit.typical_bytes("Q4_0", 1_063_000_000, R1)
    guessed = fit.speed(R1, weights, MACHINE).decode
    assert guessed == pytest.approx(fit.speed(R1, R1_WEIGHTS, MACHINE).decode, rel=0.2)


def test_rows_that_k_quants_do_not_divide_are_of_other_types() -> None:
    """SmolLM2's are 576 values wide, its inner ones 1,536: llama.cpp falls back where 256 is no divisor."""
    narrow = msgspec.structs.replace(R1, embedding=576, feed_forward=1536)
    weights = fit.typical_bytes("Q5_K_S", 100_000_000, narrow)
    assert weights["layers"]["Q5_1"] == pytest.approx(3 * weights["layers"]["Q5_K"], rel=0.01)
    assert list(weights["embedding"]) == ["Q8_0"]
    assert set(fit.typical_bytes("Q5_K_S", 100_000_000, R1)["layers"]) == {"Q5_K"}


def test_the_window_is_assessed_with_the_attention_that_the_engine_takes(starter: Path) -> None:
    """Where flash attention is slow with the model's heads, its scores are written down: that takes memory."""
    shape = of_header(read_header(starter))
    for ordinary in (False, True):
        heads = {shape.key_length: Attention(decode=1e9, prefill=1e9, ordinary=ordinary)}
        made = fit.as_made(shape, 4096, Tuning(), msgspec.structs.replace(figures(), attention=heads))
        assert made.flash_attention is (False if ordinary else None)
    plain, flash = (
        fit.memory(shape, 0, 4096, tuning=Tuning(flash_attention=kind, micro_batch=512)).compute
        for kind in (False, True)
    )
    assert plain - flash > 30 << 20


def test_numbers_without_sense_raise_nothing(tmp_path: Path) -> None:
    header = read_header(write_model(tmp_path / "tiny.gguf"))
    for key, value in {
        "llama.attention.head_count_kv": (1 << 63,) * 2,
        "llama.attention.key_length": 0,
        "llama.attention.head_count": 0,
        "llama.block_count": "many",
    }.items():
        changed = msgspec.structs.replace(header, metadata={**header.metadata, key: value})
        assert fit.memory(of_header(changed), 1, 4096).total > 0
    nothing = msgspec.structs.replace(header, n_layer=0, embedding=0, metadata={}, vocabulary=0, weights={})
    assert fit.memory(of_header(nothing), 1, 4096).total >= 1
