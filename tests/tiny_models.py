"""Small models with random weights, written in a few milliseconds: any chat template on a real vocabulary.

Two vocabularies: the one of a real model file (`vocabulary_of`), or `BYTES`, where each byte of a text is one token, so
that a test knows the number of tokens of everything it writes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np

Architecture = Literal["llama", "gemma3", "mamba", "lfm2"]

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

_SHORT_CONVOLUTION = 3  # tokens that a recurrent layer of lfm2 sees

_NORMAL, _CONTROL, _USER_DEFINED = gguf.TokenType.NORMAL, gguf.TokenType.CONTROL, gguf.TokenType.USER_DEFINED


@dataclass(frozen=True)
class Vocabulary:
    """What a GGUF says about its tokens. `fields` are further `tokenizer.ggml.*` values."""

    model: str
    tokens: tuple[str | bytes, ...]
    types: tuple[int, ...]
    merges: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    fields: tuple[tuple[str, Any], ...] = ()

    def with_special(self, *texts: str, user_defined: bool = False) -> Vocabulary:
        """The same vocabulary with more special tokens at its end; those that it has stay what they are."""
        # llama.cpp aborts the process on a token that is there twice.
        texts = tuple(text for text in texts if text not in self.tokens)
        kind = int(_USER_DEFINED if user_defined else _CONTROL)
        scores = self.scores and (*self.scores, *[0.0] * len(texts))
        types = (*self.types, *[kind] * len(texts))
        return Vocabulary(self.model, (*self.tokens, *texts), types, self.merges, scores, self.fields)


def _byte_characters() -> list[str]:
    """GPT-2's printable stand-in for each byte."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_CHARACTERS = _byte_characters()

BYTES = Vocabulary(
    "gpt2",
    (*_CHARACTERS, *_SPECIAL),
    (*[int(_NORMAL)] * 256, *[int(_CONTROL)] * len(_SPECIAL)),
    # Not one merge would be refused; this one joins two bytes that no text of ours has next to each other.
    (f"{_CHARACTERS[0]} {_CHARACTERS[0]}",),
    fields=(("pre", "gpt-2"), ("bos_token_id", 256), ("eos_token_id", 258), ("add_bos_token", False)),
)
END = 258
"""The id of `<|im_end|>` in `BYTES`."""

LETTERS = (*range(ord("A"), ord("Z") + 1), *range(ord("a"), ord("z") + 1))
"""The ids of the letters in `BYTES`."""

WORDS = ("<unk>", "<s>", "</s>", *[f"<0x{byte:02X}>" for byte in range(256)], "\u2581", "a", "b", "\u2581a", "ab")

SENTENCEPIECE = Vocabulary(
    "llama",
    WORDS,
    (int(gguf.TokenType.UNKNOWN), int(_CONTROL), int(_CONTROL), *[int(gguf.TokenType.BYTE)] * 256, *[int(_NORMAL)] * 5),
    scores=(*[0.0] * 259, -1.0, -2.0, -3.0, -4.0, -5.0),
    fields=(("bos_token_id", 1), ("eos_token_id", 2), ("unknown_token_id", 0), ("add_bos_token", True)),
)
"""A vocabulary of Llama 2's kind: the tokenizer puts a space before the text."""


@cache
def vocabulary_of(model: Path) -> Vocabulary:
    """The vocabulary of a GGUF."""
    fields = gguf.GGUFReader(model).fields
    prefix = "tokenizer.ggml."

    def values(name: str) -> tuple[Any, ...]:
        field = fields.get(prefix + name)
        return () if field is None else tuple(field.contents())

    lists = ("tokens", "token_type", "merges", "scores")
    single = tuple(
        (key.removeprefix(prefix), field.contents())
        for key, field in fields.items()
        if key.startswith(prefix) and len(field.types) == 1 and key != prefix + "model"
    )
    return Vocabulary(
        str(fields[prefix + "model"].contents()), *(values(name) for name in lists[:2]), *map(values, lists[2:]), single
    )


def write_model(
    path: Path,
    *,
    template: str | None = CHATML,
    vocabulary: Vocabulary = BYTES,
    architecture: Architecture = "llama",
    context: int = 2048,
    layers: int = 2,
    width: int = 64,
    window: int = 64,
    seed: int = 1,
    speaks: Iterable[int] | None = None,
) -> Path:
    """Write a GGUF of random weights. What it says depends on all it has read, and has no sense.

    `context` is what it claims to be trained for, `window` the sliding window of gemma3, both in tokens. In lfm2 every
    second layer is recurrent and the others see all. `speaks`: the only tokens that it is likely to choose (`LETTERS`
    never end an answer).
    """
    random = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_name(path.stem)
    writer.add_context_length(context)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_vocab_size(len(vocabulary.tokens))
    writer.add_layer_norm_rms_eps(1e-5)
    _add_vocabulary(writer, vocabulary)
    if template is not None:
        writer.add_chat_template(template)

    def tensor(name: str, *shape: int, scale: float | None = None) -> None:
        spread = scale if scale is not None else shape[-1] ** -0.5
        writer.add_tensor(f"{name}.weight", (random.standard_normal(shape) * spread).astype(np.float32))

    def ones(name: str, size: int) -> None:
        writer.add_tensor(f"{name}.weight", np.ones(size, np.float32))

    tensor("token_embd", len(vocabulary.tokens), width, scale=1.0)
    output = random.standard_normal((len(vocabulary.tokens), width)).astype(np.float32)
    if speaks is not None:
        # A row of zeros is a logit of zero; among some dozens of random ones, a larger one is always found.
        kept = list(speaks)
        output[np.setdiff1d(np.arange(len(output)), kept)] = 0.0
    writer.add_tensor("output.weight", output)
    ones("token_embd_norm" if architecture == "lfm2" else "output_norm", width)
    for layer in range(layers):
        block = f"blk.{layer}"
        ones(f"{block}.attn_norm", width)
        if architecture == "mamba":
            _add_mamba(writer, tensor, block, width, random)
            continue
        if architecture == "lfm2" and layer % 2 == 0:
            tensor(f"{block}.shortconv.conv", width, _SHORT_CONVOLUTION)
            tensor(f"{block}.shortconv.in_proj", 3 * width, width)
            tensor(f"{block}.shortconv.out_proj", width, width)
        else:
            for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
                tensor(f"{block}.{part}", width, width, scale=3 * width**-0.5)
            if architecture == "lfm2":
                ones(f"{block}.attn_q_norm", width // 4)
                ones(f"{block}.attn_k_norm", width // 4)
        ones(f"{block}.ffn_norm", width)
        tensor(f"{block}.ffn_gate", 2 * width, width)
        tensor(f"{block}.ffn_up", 2 * width, width)
        tensor(f"{block}.ffn_down", width, 2 * width)
        if architecture == "gemma3":
            ones(f"{block}.attn_q_norm", width // 4)
            ones(f"{block}.attn_k_norm", width // 4)
            ones(f"{block}.post_attention_norm", width)
            ones(f"{block}.post_ffw_norm", width)
    if architecture == "mamba":
        writer.add_feed_forward_length(0)
        writer.add_head_count(0)
        writer.add_ssm_conv_kernel(4)
        writer.add_ssm_inner_size(2 * width)
        writer.add_ssm_state_size(16)
        writer.add_ssm_time_step_rank(4)
    else:
        writer.add_feed_forward_length(2 * width)
        writer.add_head_count(4)
        writer.add_head_count_kv([4 * (layer % 2) for layer in range(layers)] if architecture == "lfm2" else 4)
    if architecture == "lfm2":
        writer.add_shortconv_l_cache(_SHORT_CONVOLUTION)
    if architecture == "gemma3":
        writer.add_key_length(width // 4)
        writer.add_value_length(width // 4)
        writer.add_sliding_window(window)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_mamba(writer: gguf.GGUFWriter, tensor: Any, block: str, width: int, random: np.random.Generator) -> None:
    inner, state, rank = 2 * width, 16, 4
    tensor(f"{block}.ssm_in", 2 * inner, width)
    tensor(f"{block}.ssm_conv1d", inner, 4, scale=0.5)
    writer.add_tensor(f"{block}.ssm_conv1d.bias", np.zeros(inner, np.float32))
    tensor(f"{block}.ssm_x", rank + 2 * state, inner)
    tensor(f"{block}.ssm_dt", inner, rank)
    writer.add_tensor(f"{block}.ssm_dt.bias", np.zeros(inner, np.float32))
    writer.add_tensor(f"{block}.ssm_a", -np.exp(random.standard_normal((inner, state)).astype(np.float32)))
    writer.add_tensor(f"{block}.ssm_d", np.ones(inner, np.float32))
    tensor(f"{block}.ssm_out", width, inner)


def _add_vocabulary(writer: gguf.GGUFWriter, vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_token_list(list(vocabulary.tokens))
    writer.add_token_types(list(vocabulary.types))
    if vocabulary.merges:
        writer.add_token_merges(list(vocabulary.merges))
    if vocabulary.scores:
        writer.add_token_scores(list(vocabulary.scores))
    for key, value in vocabulary.fields:
        name = f"tokenizer.ggml.{key}"
        if isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value)
        elif isinstance(value, str) and key != "chat_template":
            writer.add_string(name, value)
