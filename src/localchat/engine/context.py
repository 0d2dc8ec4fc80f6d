"""A model's working memory: the KV cache with its sequences, one reused batch, and a way to stop in mid-computation."""

from __future__ import annotations

import ctypes

from localchat.engine import attention
from localchat.engine import llama as llama_log
from localchat.engine.llama import api, buffer_bytes, cache_bytes, complaints, device_bytes, shortage
from localchat.engine.model import Model
from localchat.engine.offload import DeviceFull
from localchat.errors import DoesNotFit, EngineFailed
from localchat.hardware import available_memory
from localchat.safe_text import safe_line
from localchat.tuning import MICRO_BATCH, Tuning, scores_bytes, sequences

_NO_SLOT, _ABORTED = 1, 2
_KV_TYPES = {"f16": 1, "q4_0": 2, "q5_1": 7, "q8_0": 8}  # enum ggml_type
_PARTIAL = 1  # LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY
_FLASH_ATTENTION = {None: -1, False: 0, True: 1}  # enum llama_flash_attn_type
_GIB = 1 << 30

State = ctypes.Array[ctypes.c_uint8]
"""What llama.cpp wrote of a sequence."""

SAFETY_BYTES = 128 << 20
"""Room for compute buffers, and for what other programs grow by in the meantime."""


class NoRoom(Exception):
    """The KV cache has no free cells for the batch; nothing was computed."""


class Aborted(Exception):
    """`abort` was called while the batch was computed: what of it is in the cache must be removed."""


class Context:
    """One `llama_context` of `n_ctx` tokens; only `abort` may be called from other threads.

    Raises `DoesNotFit` where its memory is larger than what is available, `DeviceFull` where a device has no room for
    its part of it.
    """

    def __init__(self, model: Model, n_ctx: int, threads: int, tuning: Tuning = Tuning()) -> None:  # noqa: B008
        llama = api()
        tuning = attention.chosen(model, n_ctx, tuning)
        bite = min(tuning.micro_batch or MICRO_BATCH, n_ctx)
        need, room = int(model.kv_bytes_estimate(n_ctx) * model.offload.kept_share) + SAFETY_BYTES, available_memory()
        if tuning.flash_attention is False:
            need += scores_bytes(model.heads, n_ctx, bite)
        if need > room and not model.is_weightless:
            raise DoesNotFit(
                f"a context window of {n_ctx} tokens needs {need / _GIB:.1f} GiB and {room / _GIB:.1f} GiB are free: "
                "ask for a smaller one with -o context N"
            )
        params = llama.llama_context_default_params()
        params.n_ctx = n_ctx
        params.n_batch = params.n_ubatch = bite
        self.sequences = sequences(is_stateful=model.is_stateful)
        # Where pieces of the others can be cut out to be saved, and put back, it is done in one more.
        self.scratch = self.sequences
        params.n_seq_max = self.sequences + (not model.is_stateful)
        # The default reserves an output for each token of the batch; nobody asks for more than one a sequence, or as
        # many for drafts while there are fewer.
        self.outputs = self.sequences
        params.n_outputs_max = max(self.outputs, params.n_seq_max)  # llama.cpp insists on one for each
        params.type_k = params.type_v = _KV_TYPES[tuning.kv_type or "f16"]
        params.flash_attn_type = _FLASH_ATTENTION[tuning.flash_attention]
        # All sequences share all cells, so a single conversation can use the whole window.
        params.kv_unified = True
        # Layers with a sliding window keep their window only.
        params.swa_full = False
        params.n_threads = tuning.decode_threads or threads
        params.n_threads_batch = tuning.prefill_threads or threads
        logged = llama_log.lines_logged
        self._context = llama.llama_init_from_model(model.handle, params)
        if not self._context:
            full = shortage(logged)
            if full and model.offload.layers:
                raise DeviceFull(safe_line(full))
            raise EngineFailed(
                f"llama.cpp cannot make a context window of {n_ctx} tokens: {safe_line(complaints(logged))}"
            )
        self._is_offloaded = model.offload.layers > 0
        self.n_ctx: int = llama.llama_n_ctx(self._context)
        self.tuning = tuning
        """As the window was made: with attention and micro-batch chosen, where nobody had decided."""
        self.threads, self.prefill_threads = int(params.n_threads), int(params.n_threads_batch)
        self.batch_size = int(params.n_batch)
        self.buffers = buffer_bytes(logged)
        self.device_bytes = device_bytes(logged, [device.name for device in model.offload.devices])
        self.processor_bytes = self._processor_bytes(model, logged)
        self._memory = llama.llama_get_memory(self._context)
        self._batch = llama.llama_batch_init(self.batch_size, 0, 1)
        for index in range(self.batch_size):
            self._batch.n_seq_id[index] = 1
        self._install_abort()

    @property
    def handle(self) -> object:
        """The `llama_context *`, for samplers."""
        return self._context

    def _processor_bytes(self, model: Model, logged: int) -> int:
        """Bytes of the window in the machine's own memory; those that a weightless model's would take."""
        devices = [device.name for device in model.offload.devices]
        buffers = sum(self.buffers.get(kind, 0) for kind in ("compute", "output"))
        buffers -= sum(device_bytes(logged, devices, "compute|output").values())
        return int(cache_bytes(logged) * model.offload.kept_share) + buffers

    def close(self) -> None:
        """Give the memory back."""
        if self._context:
            api().llama_batch_free(self._batch)
            api().llama_free(self._context)
            self._context = None

    def _install_abort(self) -> None:
        """llama.cpp asks an abort callback after every node of its graph, hundreds of times a token: too often for
        Python.

        So the callback is C's own strlen, and what it measures is a buffer of ours: an empty string says go on.
        """
        llama = api()
        self._stop = ctypes.create_string_buffer(2)
        strlen = ctypes.CDLL(None).strlen
        self._callback = ctypes.cast(strlen, llama.ggml_abort_callback)
        llama.llama_set_abort_callback(self._context, self._callback, ctypes.addressof(self._stop))

    def use_threads(self, decode: int, prefill: int) -> None:
        """Compute with this many threads from the next batch on: batches of one token, and of more."""
        if (decode, prefill) != (self.threads, self.prefill_threads):
            self.threads, self.prefill_threads = decode, prefill
            api().llama_set_n_threads(self._context, decode, prefill)

    def abort(self) -> None:
        """Stop the computation that is going on, or the next one; from any thread."""
        self._stop[0] = b"\x01"

    def clear_abort(self) -> None:
        """Forget an `abort` that came between two computations."""
        self._stop[0] = b"\x00"

    def begin(self) -> None:
        """Start a new batch."""
        self._batch.n_tokens = 0

    def add(self, tokens: list[int], position: int, sequence: int, *, output: bool) -> int:
        """Add consecutive tokens of a sequence; `output` asks for logits after the last. Returns that one's index."""
        batch = self._batch
        start = batch.n_tokens
        token, pos, seq_id, logits = batch.token, batch.pos, batch.seq_id, batch.logits
        for index, value in enumerate(tokens, start):
            token[index] = value
            pos[index] = position + index - start
            seq_id[index][0] = sequence
            logits[index] = 0
        last = start + len(tokens) - 1
        logits[last] = output
        batch.n_tokens = last + 1
        return int(last)

    def decode(self) -> None:
        """Compute the batch. Raises `NoRoom`, `Aborted`, `DeviceFull`, or `EngineFailed` where llama.cpp gives up."""
        logged = llama_log.lines_logged
        result = api().llama_decode(self._context, self._batch)
        if result == _NO_SLOT:
            raise NoRoom
        if result == _ABORTED:
            raise Aborted
        if result != 0:
            full = shortage(logged)
            if full and self._is_offloaded:
                raise DeviceFull(safe_line(full))
            raise EngineFailed(f"llama.cpp failed to compute ({result}): {safe_line(complaints(logged))}")
        # A GPU may still be at work: who times the batch means all of it.
        api().llama_synchronize(self._context)

    def cut(self, sequence: int, length: int) -> bool:
        """Forget all of a sequence from position `length` on; False where the model's memory cannot be cut there."""
        return bool(api().llama_memory_seq_rm(self._memory, sequence, length, -1))

    def forget(self, sequence: int) -> None:
        """Forget a sequence altogether."""
        api().llama_memory_seq_rm(self._memory, sequence, -1, -1)

    def share(self, source: int, target: int, length: int, start: int = 0) -> None:
        """Let an empty sequence begin with the first `length` tokens of another; their cells are shared, not copied.

        A recurrent state is shared as it is, at the end of the other sequence. With `start` only the cells from there
        on are shared; what is before it is the target's own.
        """
        api().llama_memory_seq_cp(self._memory, source, target, start, length)

    def first_position(self, sequence: int) -> int:
        """The earliest position still held: above 0 only where a sliding window has dropped older ones."""
        return int(api().llama_memory_seq_pos_min(self._memory, sequence))

    def positions(self, sequence: int) -> tuple[int, int]:
        """The first and the last position that a sequence holds; -1 where it is empty."""
        last = int(api().llama_memory_seq_pos_max(self._memory, sequence))
        return self.first_position(sequence), last

    def state_bytes(self, sequence: int, *, partial: bool = False) -> int:
        """How much memory `save` takes."""
        return int(api().llama_state_seq_get_size_ext(self._context, sequence, _PARTIAL if partial else 0))

    def save(self, sequence: int, *, partial: bool = False) -> State:
        """The state of one sequence, for a context of the same model. Empty where llama.cpp cannot write it.

        `partial` leaves out what `cut` can cut anyway: only the cells of sliding windows and recurrent states remain.
        """
        flags = _PARTIAL if partial else 0
        buffer = (ctypes.c_uint8 * self.state_bytes(sequence, partial=partial))()
        written = api().llama_state_seq_get_data_ext(self._context, buffer, len(buffer), sequence, flags)
        return buffer if written else (ctypes.c_uint8 * 0)()

    def restore(self, sequence: int, state: State, *, partial: bool = False) -> bool:
        """Bring back what `save` returned in this same process (llama.cpp aborts on a state that was cut short).

        A partial state takes the place of what the sequence has of that kind; the other cells must be there. False
        where no cells are free: then that kind is gone from the sequence.
        """
        flags = _PARTIAL if partial else 0
        return bool(api().llama_state_seq_set_data_ext(self._context, state, len(state), sequence, flags))

    def save_all(self) -> State:
        """The state of all sequences, what they share once; for another context of the same model."""
        buffer = (ctypes.c_uint8 * self.all_bytes())()
        written = api().llama_state_get_data(self._context, buffer, len(buffer))
        return buffer if written else (ctypes.c_uint8 * 0)()

    def all_bytes(self) -> int:
        """How much memory `save_all` takes."""
        return int(api().llama_state_get_size(self._context))

    def restore_all(self, state: State) -> bool:
        """Bring back what `save_all` returned of a context that was not larger; False where that cannot be."""
        return len(state) > 0 and bool(api().llama_state_set_data(self._context, state, len(state)))
