"""A model with the exact shape of DeepSeek-R1-Distill-Qwen-1.5B and random weights: it computes what the real one does.

It speaks with the starter's vocabulary, and the rest of its own 151,936 tokens are never likely.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np

_LAYERS, _WIDTH, _FEED_FORWARD, _HEADS, _HEADS_KV, _HEAD, _VOCABULARY = 28, 1536, 8960, 12, 2, 128, 151936
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def r1_shape(starter: Path) -> Path:
    """Its file in the temporary folder, with Q4_0 weights (1 GB), written the first time."""
    path = Path(tempfile.gettempdir()) / "localchat-benchmarks-r1-shape-Q4_0.gguf"
    if not path.exists():
        unfinished = path.with_suffix(".part")
        _write(unfinished, gguf.GGUFReader(starter).fields)
        unfinished.rename(path)
    return path


def _write(path: Path, spoken: dict[str, gguf.ReaderField]) -> None:
    writer = gguf.GGUFWriter(str(path), "qwen2")
    writer.add_name("R1 shape")
    writer.add_context_length(131072)
    writer.add_embedding_length(_WIDTH)
    writer.add_block_count(_LAYERS)
    writer.add_feed_forward_length(_FEED_FORWARD)
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(_HEADS_KV)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_chat_template(TEMPLATE)
    tokens = list(spoken["tokenizer.ggml.tokens"].contents())
    types = list(spoken["tokenizer.ggml.token_type"].contents())
    more = _VOCABULARY - len(tokens)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(str(spoken["tokenizer.ggml.pre"].contents()))
    writer.add_token_list([*tokens, *[f"<unused {number}>" for number in range(more)]])
    writer.add_token_types([*types, *[int(gguf.TokenType.UNUSED)] * more])
    writer.add_token_merges(list(spoken["tokenizer.ggml.merges"].contents()))
    # Nothing ends an answer, so that all are as long as they may be.
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(_VOCABULARY - 1)
    writer.add_add_bos_token(False)
    random = np.random.default_rng(1)
    kind = gguf.GGMLQuantizationType.Q4_0

    def matrix(name: str, rows: int, columns: int, different: int = 256) -> Any:
        """Random rows, so many of them different: they cost time to draw, and none to compute with."""
        values = random.standard_normal((different, columns), dtype=np.float32) * columns**-0.5
        tile = gguf.quants.quantize(values, kind)
        data = np.resize(tile, (rows, tile.shape[1]))
        writer.add_tensor(name, data, raw_dtype=kind)
        return data

    def vector(name: str, size: int, value: float) -> None:
        writer.add_tensor(name, np.full(size, value, dtype=np.float32))

    matrix("token_embd.weight", _VOCABULARY, _WIDTH)
    head = matrix("output.weight", _VOCABULARY, _WIDTH, len(tokens))
    # With a scale of 0 a token is as likely as the average, and never the likeliest.
    head[len(tokens) :] = 0
    head[[number for number, one in enumerate(types) if one != gguf.TokenType.NORMAL]] = 0
    vector("output_norm.weight", _WIDTH, 1.0)
    keys = _HEADS_KV * _HEAD
    for layer in range(_LAYERS):
        block = f"blk.{layer}"
        for name, rows, columns in (
            ("attn_q", _WIDTH, _WIDTH),
            ("attn_k", keys, _WIDTH),
            ("attn_v", keys, _WIDTH),
            ("attn_output", _WIDTH, _WIDTH),
            ("ffn_gate", _FEED_FORWARD, _WIDTH),
            ("ffn_up", _FEED_FORWARD, _WIDTH),
            ("ffn_down", _WIDTH, _FEED_FORWARD),
        ):
            matrix(f"{block}.{name}.weight", rows, columns)
        for name, size in (("attn_q", _WIDTH), ("attn_k", keys), ("attn_v", keys)):
            vector(f"{block}.{name}.bias", size, 0.0)
        vector(f"{block}.attn_norm.weight", _WIDTH, 1.0)
        vector(f"{block}.ffn_norm.weight", _WIDTH, 1.0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
