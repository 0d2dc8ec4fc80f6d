"""Models of real shapes with nothing in them: the header is complete, the weights are a hole in the file.

They cost no disk and hardly any memory, and the engine makes the same buffers for them as for the real ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import gguf
import numpy as np

from tests.tiny_models import BYTES, _add_vocabulary

_Type = gguf.GGMLQuantizationType
_NORMAL = int(gguf.TokenType.NORMAL)


@dataclass(frozen=True)
class Real:
    """The shape of a real model, as its makers' configuration names it."""

    architecture: str
    vocabulary: int
    embedding: int
    layers: int
    feed_forward: int
    heads: int
    heads_kv: int
    head: int
    is_tied: bool = True
    window: int = 0
    experts: int = 0
    experts_used: int = 0
    state_heads: int = 0
    """Heads of the layers that keep a state of 128 values a row, all but every fourth layer."""

    def smaller(self) -> Real:
        """The same with few layers: for a real load."""
        return replace(self, layers=min(self.layers, 8))


LLAMA_8B = Real("llama", 128256, 4096, 32, 14336, 32, 8, 128, is_tied=False)
R1_1_5B = Real("qwen2", 151936, 1536, 28, 8960, 12, 2, 128, is_tied=False)
QWEN3_4B = Real("qwen3", 151936, 2560, 36, 9728, 32, 8, 128)
QWEN3_14B = Real("qwen3", 151936, 5120, 40, 17408, 40, 8, 128, is_tied=False)
GEMMA2_2B = Real("gemma2", 256000, 2304, 26, 9216, 8, 4, 256, window=4096)
GEMMA3_4B = Real("gemma3", 262144, 2560, 34, 10240, 8, 4, 256, window=1024)
QWEN3_30B_A3B = Real("qwen3moe", 151936, 2048, 48, 768, 32, 4, 128, is_tied=False, experts=128, experts_used=8)
GPT_OSS_20B = Real("gpt-oss", 201088, 2880, 24, 2880, 64, 8, 64, False, window=128, experts=32, experts_used=4)

QWEN35_2B = Real("qwen35", 248320, 2048, 24, 6144, 8, 2, 256, state_heads=16)
_STATE = 128


class _Writer:
    def __init__(self, path: Path, kind: _Type) -> None:
        self.path = path
        self.kind = kind
        self.size = 0
        self.file: gguf.GGUFWriter

    def tensor(self, name: str, *shape: int) -> None:
        """A matrix of the model's type (of another where its rows do not fill that one's blocks), or a vector."""
        kind = self.kind if len(shape) > 1 and not name.endswith(".bias") else _Type.F32
        if shape[-1] % gguf.GGML_QUANT_SIZES[kind][0]:
            kind = _Type.F16
        block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        size = int(np.prod(shape)) // block * block_bytes
        if kind == _Type.F32:
            self.file.add_tensor_info(name, list(shape), np.dtype(np.float32), size)
        else:
            rows = [*shape[:-1], shape[-1] // block * block_bytes]
            self.file.add_tensor_info(name, rows, np.dtype(np.uint8), size, raw_dtype=kind)
        self.size += -(-size // 32) * 32


def write_sparse(path: Path, real: Real, kind: _Type = _Type.Q6_K) -> Path:
    """Write the model with its matrices of that type."""
    writer = _Writer(path, kind)
    writer.file = file = gguf.GGUFWriter(str(path), real.architecture)
    file.add_context_length(131072)
    file.add_embedding_length(real.embedding)
    file.add_block_count(real.layers)
    file.add_feed_forward_length(real.feed_forward)
    file.add_head_count(real.heads)
    file.add_head_count_kv(real.heads_kv)
    file.add_key_length(real.head)
    file.add_value_length(real.head)
    file.add_layer_norm_rms_eps(1e-6)
    if real.window:
        file.add_sliding_window(real.window)
    if real.experts:
        file.add_expert_count(real.experts)
        file.add_expert_used_count(real.experts_used)
        file.add_expert_feed_forward_length(real.feed_forward)
    if real.state_heads:
        file.add_array(f"{real.architecture}.rope.dimension_sections", [11, 11, 10, 0])
        file.add_uint32(f"{real.architecture}.full_attention_interval", 4)
        file.add_rope_dimension_count(64)
        file.add_ssm_conv_kernel(4)
        file.add_ssm_inner_size(real.state_heads * _STATE)
        file.add_ssm_state_size(_STATE)
        file.add_ssm_time_step_rank(real.state_heads)
        file.add_ssm_group_count(real.state_heads)
    more = real.vocabulary - len(BYTES.tokens)
    tokens = (*BYTES.tokens, *[f"<{number}>" for number in range(more)])
    _add_vocabulary(file, replace(BYTES, tokens=tokens, types=(*BYTES.types, *[_NORMAL] * more)))
    writer.tensor("token_embd.weight", real.vocabulary, real.embedding)
    writer.tensor("output_norm.weight", real.embedding)
    if not real.is_tied:
        writer.tensor("output.weight", real.vocabulary, real.embedding)
    for layer in range(real.layers):
        has_state = real.state_heads and (layer + 1) % 4
        for name, shape in _layer_with_state(real) if has_state else _layer(real):
            writer.tensor(f"blk.{layer}.{name}", *shape)
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_ti_data_to_file()
    file.close()
    with path.open("r+b") as opened:
        opened.truncate(-(-path.stat().st_size // 32) * 32 + writer.size)
    return path


def _layer(real: Real) -> Sequence[tuple[str, tuple[int, ...]]]:
    width, queries, keys = real.embedding, real.heads * real.head, real.heads_kv * real.head
    tensors: list[tuple[str, tuple[int, ...]]] = [
        ("attn_norm.weight", (width,)),
        # Half of it is a gate where the architecture has one.
        ("attn_q.weight", (queries * (2 if real.state_heads else 1), width)),
        ("attn_k.weight", (keys, width)),
        ("attn_v.weight", (keys, width)),
        ("attn_output.weight", (width, queries)),
    ]
    if real.architecture in ("qwen2", "gpt-oss"):
        tensors += [("attn_q.bias", (queries,)), ("attn_k.bias", (keys,)), ("attn_v.bias", (keys,))]
    if real.architecture in ("qwen3", "qwen3moe", "gemma3", "qwen35"):
        tensors += [("attn_q_norm.weight", (real.head,)), ("attn_k_norm.weight", (real.head,))]
    if real.architecture == "gpt-oss":
        tensors += [("attn_output.bias", (width,)), ("attn_sinks.weight", (real.heads,))]
        tensors += [("post_attention_norm.weight", (width,))]
    elif real.state_heads:
        tensors += [("post_attention_norm.weight", (width,))]
    else:
        tensors += [("ffn_norm.weight", (width,))]
    if real.architecture in ("gemma2", "gemma3"):
        tensors += [("post_attention_norm.weight", (width,)), ("post_ffw_norm.weight", (width,))]
    if real.experts:
        tensors += [("ffn_gate_inp.weight", (real.experts, width))]
        tensors += [(f"ffn_{part}_exps.weight", (real.experts, real.feed_forward, width)) for part in ("gate", "up")]
        tensors += [("ffn_down_exps.weight", (real.experts, width, real.feed_forward))]
        if real.architecture == "gpt-oss":
            wide = (real.experts, real.feed_forward)
            tensors += [("ffn_gate_inp.bias", (real.experts,)), ("ffn_down_exps.bias", (real.experts, width))]
            tensors += [("ffn_gate_exps.bias", wide), ("ffn_up_exps.bias", wide)]
    else:
        tensors += _feed_forward(real)
    return tensors


def _layer_with_state(real: Real) -> Sequence[tuple[str, tuple[int, ...]]]:
    """A layer of gated delta net, with as many heads for keys as for values."""
    width, inner = real.embedding, real.state_heads * _STATE
    return [
        ("attn_norm.weight", (width,)),
        ("post_attention_norm.weight", (width,)),
        ("attn_qkv.weight", (3 * inner, width)),
        ("attn_gate.weight", (inner, width)),
        ("ssm_conv1d.weight", (3 * inner, 4)),
        ("ssm_dt.bias", (real.state_heads,)),
        ("ssm_a", (real.state_heads,)),
        ("ssm_beta.weight", (real.state_heads, width)),
        ("ssm_alpha.weight", (real.state_heads, width)),
        ("ssm_norm.weight", (_STATE,)),
        ("ssm_out.weight", (width, inner)),
        *_feed_forward(real),
    ]


def _feed_forward(real: Real) -> list[tuple[str, tuple[int, ...]]]:
    parts = [(f"ffn_{part}.weight", (real.feed_forward, real.embedding)) for part in ("gate", "up")]
    return [*parts, ("ffn_down.weight", (real.embedding, real.feed_forward))]
