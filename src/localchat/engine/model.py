"""A loaded model: its weights, its vocabulary, and what its file says about itself."""

from __future__ import annotations

import ctypes
import glob
import os
import re
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from localchat.engine import llama as llama_log
from localchat.engine.devices import handles
from localchat.engine.llama import api, complaints, device_bytes, makes_copies, shortage
from localchat.engine.mapped import let_go_of_mapped
from localchat.engine.offload import DeviceFull, Offload
from localchat.errors import DamagedFile, DoesNotFit, Interrupted
from localchat.hardware import available_memory
from localchat.safe_text import safe_line

_ATTR_UNKNOWN, _ATTR_CONTROL, _ATTR_USER_DEFINED = 1, 8, 16  # enum llama_token_attr
_METADATA_LIMIT = 1 << 22
_GIB = 1 << 30
_LOAD_MODE_NONE = 0  # enum llama_load_mode: the file is not mapped
_LET_GO_EVERY = 1 / 16  # of the file

# Of how many layers one sees the whole window, where the others slide or are recurrent. Not every file says so; for
# those that do not, the most favourable of today's models is assumed, so that nothing is refused that would fit.
_FULL_LAYER_EVERY = {"gemma2": 2, "gpt-oss": 2, "cohere2": 4}
_FULL_LAYER_EVERY_AT_MOST = 6


class Model:
    """A GGUF file loaded by llama.cpp; everything but `n_vocab` and other plain fields belongs to the engine thread.

    `offload` says how much of it lies on which devices. A `weightless` one only tells what it would take: it is loaded
    without its weights, and windows of it come without their memory. Raises what `load` raises.
    """

    def __init__(
        self,
        path: Path,
        on_progress: Callable[[float], bool] | None = None,
        offload: Offload = Offload(),  # noqa: B008  (it is frozen)
        *,
        weightless: bool = False,
    ) -> None:
        llama = api()
        self.path = path
        self.is_weightless = weightless
        self.file_bytes = _size_with_shards(path)
        self._model: Any = None
        self.load(offload, on_progress)
        self.n_vocab: int = llama.llama_vocab_n_tokens(self._vocab)
        self.n_ctx_train: int = llama.llama_model_n_ctx_train(self._model)
        self.n_layer: int = llama.llama_model_n_layer(self._model)
        self.parameters: int = llama.llama_model_n_params(self._model)
        self.architecture = self.metadata("general.architecture") or "unknown"
        self.heads: int = llama.llama_model_n_head(self._model)
        self.head_size = self._head_size()
        self.template = self._template()
        self.adds_bos: bool = llama.llama_vocab_get_add_bos(self._vocab)
        self.bos: int = llama.llama_vocab_bos(self._vocab)
        self.eos: int = llama.llama_vocab_eos(self._vocab)
        # Recurrent state cannot be cut back to an earlier token.
        self.is_recurrent: bool = llama.llama_model_is_recurrent(self._model) or llama.llama_model_is_hybrid(
            self._model
        )
        self.n_swa: int = llama.llama_model_n_swa(self._model)
        self._pieces: dict[int, bytes] = {}
        self._visible: set[int] = set()
        self._piece_buffer = ctypes.create_string_buffer(64)

    def load(self, offload: Offload, on_progress: Callable[[float], bool] | None = None) -> None:
        """Have the weights where `offload` says; no context may use the model while they move.

        `on_progress` gets a fraction from 0 to 1 and answers whether to go on. Raises `DeviceFull` where a device has
        no room for its layers, `DoesNotFit` where what remains is larger than the machine's memory, `DamagedFile` where
        llama.cpp refuses the file, `Interrupted` where `on_progress` said no; then nothing is loaded.
        """
        llama = api()
        self.close()
        need, room = self.file_bytes - offload.freed_bytes, available_memory()
        if need > room and not self.is_weightless:
            beside = ", beside what the GPU takes," if offload.freed_bytes else ""
            raise DoesNotFit(
                f"{self.path.name} has {need / _GIB:.1f} GiB{beside} and this machine {room / _GIB:.1f} GiB free: "
                "close other programs, or take a smaller model or quantization"
            )
        params = llama.llama_model_default_params()
        chosen = handles(offload.devices)
        params.devices = ctypes.addressof(chosen)
        params.n_gpu_layers = offload.layers
        params.no_alloc = self.is_weightless
        if self.is_weightless:
            params.load_mode = _LOAD_MODE_NONE
        cancelled, let_go = False, 0.0
        logged = llama_log.lines_logged

        def watch(fraction: float, _user_data: object) -> bool:
            nonlocal cancelled, let_go
            if fraction >= let_go + _LET_GO_EVERY:
                let_go = fraction
                if makes_copies(logged):
                    let_go_of_mapped(self.path)
            cancelled = not (on_progress is None or on_progress(fraction))
            return not cancelled

        params.progress_callback = llama.llama_progress_callback(watch)
        self._model = llama.llama_model_load_from_file(os.fsencode(self.path), params)
        if not self._model:
            if cancelled:
                raise Interrupted("loading was stopped")
            if full := shortage(logged):
                if offload.layers:
                    raise DeviceFull(safe_line(full))
                raise DoesNotFit(
                    f"there is no memory for {self.path.name} ({safe_line(full)}): close other programs, or take a "
                    "smaller model or quantization"
                )
            reason = safe_line(complaints(logged))
            raise DamagedFile(f"llama.cpp cannot load {self.path.name} ({reason}): fetch or copy the file again")
        self._vocab = llama.llama_model_get_vocab(self._model)
        self.offload = offload
        self.device_bytes = device_bytes(logged, [device.name for device in offload.devices])
        self.processor_bytes = self.file_bytes - offload.freed_bytes
        if makes_copies(logged):
            let_go_of_mapped(self.path)

    @property
    def handle(self) -> object:
        """The `llama_model *`, for contexts."""
        return self._model

    @property
    def is_stateful(self) -> bool:
        """Whether its memory cannot be cut back to every earlier token: it slides, or keeps a state."""
        return self.is_recurrent or self.n_swa > 0

    def is_long(self, n_ctx: int) -> bool:
        """Whether a window of `n_ctx` tokens is beyond the one that the model was first trained with.

        Models with two sets of rope factors take the long one then: the same tokens are other numbers.
        """
        original = self.metadata(f"{self.architecture}.rope.scaling.original_context_length") or ""
        return original.isdecimal() and n_ctx > int(original)

    @property
    def is_loaded(self) -> bool:
        """Whether the weights are in memory; after a `load` that failed they are not."""
        return bool(self._model)

    def close(self) -> None:
        """Give the memory back; no context may use the model any more."""
        if self._model:
            api().llama_model_free(self._model)
            self._model = None

    def metadata(self, key: str) -> str | None:
        """A metadata value of the GGUF as text, or None where it has none of that name."""
        buffer = ctypes.create_string_buffer(256)
        length = api().llama_model_meta_val_str(self._model, key.encode(), buffer, len(buffer))
        if length >= len(buffer):
            buffer = ctypes.create_string_buffer(min(length + 1, _METADATA_LIMIT))
            length = api().llama_model_meta_val_str(self._model, key.encode(), buffer, len(buffer))
        return None if length < 0 else buffer.value.decode(errors="replace")

    def _template(self) -> str | None:
        raw = api().llama_model_chat_template(self._model, None)
        return raw.decode(errors="replace") if raw else None

    def _number(self, key: str, default: int) -> int:
        """A whole number that the GGUF has for its architecture."""
        value = self.metadata(f"{self.architecture}.{key}") or ""
        return int(value) if value.isdecimal() else default

    def _head_size(self) -> int:
        """Values of an attention head; 0 where there is none, or where keys and values differ."""
        usual = api().llama_model_n_embd(self._model) // self.heads if self.heads else 0
        key, value = (self._number(f"attention.{part}_length", usual) for part in ("key", "value"))
        return key if key == value else 0

    def kv_bytes_estimate(self, n_ctx: int) -> int:
        """Bytes of a 16-bit KV cache of `n_ctx` tokens; where not all layers see the whole window, at least so many."""
        llama, number = api(), self._number
        heads_kv = number("attention.head_count_kv", llama.llama_model_n_head_kv(self._model))
        head_size = llama.llama_model_n_embd(self._model) // self.heads if self.heads else 0
        per_token = heads_kv * (number("attention.key_length", head_size) + number("attention.value_length", head_size))
        full = self.full_layers
        windowed = self.n_layer - full if self.n_swa else 0
        return (full * n_ctx + windowed * min(n_ctx, self.n_swa)) * per_token * 2

    @property
    def full_layers(self) -> int:
        """How many layers see the whole window; where the file does not tell, at least so many."""
        if not self.is_stateful:
            return self.n_layer
        every = _FULL_LAYER_EVERY.get(self.architecture, _FULL_LAYER_EVERY_AT_MOST)
        every = self._number("attention.sliding_window_pattern", self._number("full_attention_interval", every))
        return self.n_layer // max(1, every)

    def tokenize(self, text: str, *, parse_special: bool) -> list[int]:
        """Token ids of `text`. Without `parse_special` no control token can come out of it."""
        raw = text.encode(errors="replace")
        room = len(raw) + 8
        buffer = (ctypes.c_int32 * room)()
        count = api().llama_tokenize(self._vocab, raw, len(raw), buffer, room, False, parse_special)
        if count < 0:
            buffer = (ctypes.c_int32 * -count)()
            count = api().llama_tokenize(self._vocab, raw, len(raw), buffer, -count, False, parse_special)
        return buffer[:count]

    def piece(self, token: int) -> bytes:
        """The bytes of one token; none for control tokens, unless `show` made them visible."""
        piece = self._pieces.get(token)
        if piece is None:
            piece = self._pieces[token] = self._piece(token, special=token in self._visible)
        return piece

    def _piece(self, token: int, *, special: bool) -> bytes:
        length = api().llama_token_to_piece(self._vocab, token, self._piece_buffer, len(self._piece_buffer), 0, special)
        if length < 0:
            self._piece_buffer = ctypes.create_string_buffer(-length)
            length = api().llama_token_to_piece(self._vocab, token, self._piece_buffer, -length, 0, special)
        return self._piece_buffer.raw[: max(0, length)]

    def show(self, marker: str) -> None:
        """Let the control tokens of `marker` appear in `piece`, so that the text can be split at it."""
        for token in self.tokenize(marker, parse_special=True):
            self._visible.add(token)
            self._pieces.pop(token, None)

    def token_text(self, token: int) -> str:
        """The text of one token as the vocabulary has it; "" for an id outside of it."""
        return self._piece(token, special=True).decode(errors="replace") if 0 <= token < self.n_vocab else ""

    def is_end(self, token: int) -> bool:
        """Whether `token` ends generation."""
        return bool(api().llama_vocab_is_eog(self._vocab, token))

    def special_token(self, text: str) -> int | None:
        """The id of the control or user-defined token that `text` is as a whole, or None."""
        tokens = self.tokenize(text, parse_special=True)
        if len(tokens) != 1 or not self._attribute(tokens[0]) & (_ATTR_CONTROL | _ATTR_USER_DEFINED):
            return None
        return tokens[0]

    def is_control(self, token: int) -> bool:
        """Whether `token` is one that no text should become: a control token, or the unknown one."""
        return bool(self._attribute(token) & (_ATTR_CONTROL | _ATTR_UNKNOWN))

    def _attribute(self, token: int) -> int:
        return int(api().llama_vocab_get_attr(self._vocab, token))

    @cached_property
    def control_texts(self) -> list[str]:
        """The texts of all control tokens: a quarter of a second in a large vocabulary, so asked only when needed."""
        texts = [self.token_text(token) for token in range(self.n_vocab) if self.is_control(token)]
        return sorted({text for text in texts if len(text) > 1}, key=len, reverse=True)


def _size_with_shards(path: Path) -> int:
    """Bytes of a model file, with its siblings where it is the first of several (`-00001-of-00003.gguf`)."""
    try:
        match = re.fullmatch(r"(.+-)\d{5}(-of-\d{5}\.gguf)", path.name)
        parts = path.parent.glob(f"{glob.escape(match[1])}?????{match[2]}") if match else [path]
        return sum(part.stat().st_size for part in parts)
    except OSError as error:
        raise DamagedFile(f"cannot read {path} ({error.strerror}): see that the file is there and readable") from error
