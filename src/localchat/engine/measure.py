"""Measures how fast this machine computes with each tensor type, with the very kernels that the engine would use.

`python -m localchat.engine.measure` prints JSON lines: `{"done", "total"}` as it goes on, then `{"machine"}`. It is run
in a process of its own (`client.measured`), because native code may abort. It takes a few seconds.

Weights lie in the buffer type that llama.cpp would choose, so that repacked types are measured as they run. They are
one constant byte: no kernel's time depends on them, and none of the values is denormal or not a number. Where others
compute at the same time, one thread is measured by the time that it had a processor, and the rest concluded from that.
"""

from __future__ import annotations

import ctypes
import math
import sys
import time
from collections.abc import Callable
from typing import Any

import msgspec

from localchat.engine.devices import devices
from localchat.engine.ggml import descriptions, library
from localchat.engine.llama import api
from localchat.errors import LocalchatError
from localchat.hardware import available_memory
from localchat.machine import Attention, Figures, Machine, Rate, compute_threads, cpu_name, engine_stamp
from localchat.tuning import SLOW_ATTENTION

# Type number, values a block, bytes a block, as ggml has them.
TYPES: dict[str, tuple[int, int, int]] = {
    "F32": (0, 1, 4),
    "F16": (1, 1, 2),
    "BF16": (30, 1, 2),
    "Q8_0": (8, 32, 34),
    "Q6_K": (14, 256, 210),
    "Q5_K": (13, 256, 176),
    "Q5_0": (6, 32, 22),
    "Q5_1": (7, 32, 24),
    "Q4_K": (12, 256, 144),
    "Q4_0": (2, 32, 18),
    "Q4_1": (3, 32, 20),
    "IQ4_NL": (20, 32, 18),
    "IQ4_XS": (23, 256, 136),
    "MXFP4": (39, 32, 17),
    "Q3_K": (11, 256, 110),
    "Q2_K": (10, 256, 84),
}

_CPU_DEVICE = 0  # enum ggml_backend_dev_type
_F32, _F16 = 0, 1
# Between its products a layer of llama.cpp does more than `layer_seconds` measures: it turns, stores and attends.
_LAYER_STEPS = 2.0
# A matrix of a model with some billions of parameters.
_COLUMNS, _ROWS = 2048, 4096
_NARROW = 512  # the width of a small one, in whose rows there is little to do
_MICRO_BATCH = 512
_CACHED_BYTES, _STREAMED_BYTES = 24 << 20, 512 << 20
_FEW_ROWS = 512  # where caches or a whole micro-batch are measured
_HEADS, _ATTENDED = (64, 128, 256), 1024
_OWN = 0.9  # the share of the processors below which others compute as well
_READERS = 3  # threads that together read about as fast as a usual machine's memory allows
_COMPUTERS = 0.9  # the exponent of the threads that their speed grows with: they wait for each other at every step
_FILL = 0x11  # a small normal number in every type that has a scale or an exponent
_SECONDS = 0.05  # for each figure, and at least twice after a first time that does not count

_GRAPH_NODES = 2048


class Bench:
    """One device with `room` (bytes) for weights; `threads` counts on a processor only."""

    def __init__(self, device: Any, threads: int, room: int) -> None:
        ggml = library()
        self._device = device
        self._backend = ggml.ggml_backend_dev_init(device, None)
        if not self._backend:
            raise LocalchatError("the device cannot be used: look at the engine's log")
        self._plain = ggml.ggml_backend_dev_buffer_type(device)
        self._special: list[Any] = []
        registry = ggml.ggml_backend_dev_backend_reg(device)
        self._threads = 0  # on a device that computes by itself
        # Seconds of all computations, and of processor time in them.
        self.spent = self.had = 0.0
        if found := ggml.ggml_backend_reg_get_proc_address(registry, b"ggml_backend_set_n_threads"):
            self._threads = threads
            ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int)(found)(self._backend, threads)
        if found := ggml.ggml_backend_reg_get_proc_address(registry, b"ggml_backend_dev_get_extra_bufts"):
            listed = ctypes.CFUNCTYPE(ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p)(found)(device)
            index = 0
            while listed and listed[index]:
                self._special.append(listed[index])
                index += 1
        # Weights larger than the caches, but no strain on a small machine.
        self.streamed_bytes = min(_STREAMED_BYTES, max(2 * _CACHED_BYTES, room // 8))
        self._buffers: dict[Any, Any] = {}

    def close(self) -> None:
        """Give all memory back."""
        for buffer in self._buffers.values():
            library().ggml_backend_buffer_free(buffer)
        library().ggml_backend_free(self._backend)

    def check_own(self) -> None:
        """Raise `_Disturbed` where others have had the processors for a good part of the time.

        Threads never sleep while they compute, so what they lack, others had.
        """
        if self._threads > 1 and self.had < _OWN * self._threads * self.spent:
            raise _Disturbed

    def _buffer(self, buffer_type: Any) -> Any:
        """A filled buffer of that type, in which all weights of a measurement lie; only the last one is kept."""
        if buffer_type not in self._buffers:
            while self._buffers:
                library().ggml_backend_buffer_free(self._buffers.popitem()[1])
            # Tensors must not end where the buffer does: some kernels' layouts are a little larger than the type says.
            buffer = library().ggml_backend_buft_alloc_buffer(buffer_type, self.streamed_bytes + (8 << 20))
            if not buffer:
                raise LocalchatError("no memory for measuring: close other programs")
            base = library().ggml_backend_buffer_get_base(buffer)
            if buffer_type in self._special or library().ggml_backend_buft_is_host(buffer_type):
                ctypes.memset(base, _FILL, self.streamed_bytes + (8 << 20))
            else:
                library().ggml_backend_buffer_clear(buffer, _FILL)
            self._buffers[buffer_type] = buffer
        return self._buffers[buffer_type]

    def buffer_type(self, kind: int) -> Any:
        """The buffer type that llama.cpp keeps weights of this tensor type in; None where the device has no kernel."""
        ggml = library()
        for candidate in (*self._special, self._plain):
            with descriptions() as weights, descriptions() as others:
                weight = ggml.ggml_new_tensor_2d(weights, kind, _COLUMNS, 32)
                # A device asks where the weights lie before it says what it can do.
                buffer = ggml.ggml_backend_alloc_ctx_tensors_from_buft(weights, candidate)
                if not buffer:
                    continue
                product = ggml.ggml_mul_mat(others, weight, ggml.ggml_new_tensor_2d(others, _F32, _COLUMNS, 1))
                can = ggml.ggml_backend_dev_supports_op(self._device, product)
                ggml.ggml_backend_buffer_free(buffer)
                if can:
                    return candidate
        return None

    def products(
        self, name: str, buffer_type: Any, size: int, rows: int, batch: int, columns: int = _COLUMNS
    ) -> tuple[float, int, int]:
        """Seconds for matrix products with `size` bytes of weights, one after the other; the bytes and matrices."""
        kind, block, block_bytes = TYPES[name]
        each = columns // block * block_bytes * rows
        alignment = library().ggml_backend_buft_get_alignment(buffer_type)
        step = -(-each // alignment) * alignment
        count = max(1, min(size // step, _GRAPH_NODES // 2))
        buffer = self._buffer(buffer_type)
        base = library().ggml_backend_buffer_get_base(buffer)
        ggml = library()
        with descriptions() as weights:
            matrices = []
            for index in range(count):
                matrix = ggml.ggml_new_tensor_2d(weights, kind, columns, rows)
                ggml.ggml_backend_tensor_alloc(buffer, matrix, base + index * step)
                matrices.append(matrix)

            def build(context: Any) -> list[Any]:
                values = ggml.ggml_new_tensor_2d(context, _F32, columns, batch)
                return [ggml.ggml_mul_mat(context, matrix, values) for matrix in matrices]

            return self._seconds(build), each * count, count

    def attention(
        self,
        cells: int,
        heads: int,
        heads_kv: int,
        head: int,
        batch: int,
        *,
        flash: bool = True,
        least_s: float | None = None,
    ) -> float:
        """Seconds for attention of `batch` tokens to `cells` others, laid out as in a 16-bit cache.

        `flash`: by one kernel, or with the scores written down between two products. It is computed again and again
        for `least_s` seconds, or as long as everything is.
        """
        ggml = library()

        def laid_out(context: Any, kind: int, count: int, length: int) -> Any:
            tensor = ggml.ggml_new_tensor_3d(context, kind, head, count, length)
            return ggml.ggml_permute(context, tensor, 0, 2, 1, 3)

        def build(context: Any) -> list[Any]:
            query = laid_out(context, _F32, heads, batch)
            keys, values = (laid_out(context, _F16, heads_kv, cells) for _ in range(2))
            mask = ggml.ggml_new_tensor_2d(context, _F16, cells, batch)
            if flash:
                return [ggml.ggml_flash_attn_ext(context, query, keys, values, mask, head**-0.5, 0.0, 0.0)]
            scores = ggml.ggml_soft_max_ext(context, ggml.ggml_mul_mat(context, keys, query), mask, head**-0.5, 0.0)
            # Without flash attention the cache keeps values the other way round.
            turned = ggml.ggml_new_tensor_3d(context, _F16, cells, head, heads_kv)
            return [ggml.ggml_mul_mat(context, turned, scores)]

        return self._seconds(build, least_s)

    def layer_seconds(self, layers: int = 64) -> float:
        """Seconds for the small steps of one layer: seven products, ten passes over the values, all very small."""
        ggml = library()

        def build(context: Any) -> list[Any]:
            matrix = ggml.ggml_new_tensor_2d(context, _F32, 64, 64)
            values = ggml.ggml_new_tensor_2d(context, _F32, 64, 1)
            for _ in range(layers):
                for _ in range(7):
                    values = ggml.ggml_mul_mat(context, matrix, values)
                for _ in range(2):
                    values = ggml.ggml_rms_norm(context, values, 1e-5)
                for _ in range(4):
                    values = ggml.ggml_mul(context, values, values)
                    values = ggml.ggml_add(context, values, values)
            return [values]

        return _LAYER_STEPS * self._seconds(build) / layers

    def _compute(self, graph: Any) -> float:
        """Seconds for one computation; of a single thread, those in which it had a processor."""
        began, began_processor = time.perf_counter(), time.process_time()
        library().ggml_backend_graph_compute(self._backend, graph)
        seconds, processor = time.perf_counter() - began, time.process_time() - began_processor
        self.spent += seconds
        self.had += processor
        return processor if self._threads == 1 else seconds

    def _seconds(self, build: Callable[[Any], list[Any]], least_s: float | None = None) -> float:
        """The shortest of several computations of the graph that `build` makes; infinite where the device cannot."""
        ggml = library()
        with descriptions() as context:
            graph = ggml.ggml_new_graph_custom(context, _GRAPH_NODES, False)
            results = build(context)
            if not all(ggml.ggml_backend_dev_supports_op(self._device, result) for result in results):
                return math.inf
            for result in results:
                ggml.ggml_build_forward_expand(graph, result)
            buffer = ggml.ggml_backend_alloc_ctx_tensors_from_buft(context, self._plain)
            try:
                ggml.ggml_backend_buffer_clear(buffer, 0x3C)
                ggml.ggml_backend_graph_compute(self._backend, graph)
                shortest, times, end = math.inf, 0, time.perf_counter() + (_SECONDS if least_s is None else least_s)
                while times < 2 or time.perf_counter() < end:
                    shortest = min(shortest, self._compute(graph))
                    times += 1
                return max(shortest, 1e-9)
            finally:
                ggml.ggml_backend_buffer_free(buffer)


def measure(name: str, device: Any, threads: int, room: int, on_step: Callable[[], None]) -> Figures:
    """The figures of one device; `on_step` is called after each of `len(TYPES) + 1` steps."""
    bench = Bench(device, threads, room)
    try:
        layer = bench.layer_seconds()
        kinds = {type_name: bench.buffer_type(TYPES[type_name][0]) for type_name in TYPES}
        rates: dict[str, Rate] = {}
        # Types that share a kind of buffer one after the other: it is filled once.
        for type_name in sorted(TYPES, key=lambda one: str(kinds[one])):
            if kinds[type_name] is not None and (rate := _rate(bench, type_name, kinds[type_name])):
                rates[type_name] = rate
            bench.check_own()
            on_step()
        if not rates:
            raise LocalchatError("the device computes with no tensor type that was tried")
        attention = {head: found for head in _HEADS if (found := _attention(bench, head))}
        on_step()
        return Figures(
            name=name,
            bandwidth=max(rate.decode for rate in rates.values()),
            layer_seconds=layer,
            cached_bytes=_CACHED_BYTES,
            streamed_bytes=bench.streamed_bytes,
            columns=_COLUMNS,
            rates=rates,
            attention=attention,
        )
    finally:
        bench.close()


class _Disturbed(Exception):
    """Others compute as well: threads that wait for one which they keep from the processor measure nothing but that."""


def _processor(device: Any, threads: int, on_step: Callable[[], None]) -> tuple[Figures, bool]:
    """The processor's figures, and whether others computed meanwhile."""
    told = 0

    def first_time() -> None:
        nonlocal told
        told += 1
        on_step()

    def once_more() -> None:
        """A step that was told the first time is not told again."""
        nonlocal told
        told -= 1
        if told < 0:
            on_step()

    try:
        return measure("CPU", device, threads, available_memory(), first_time), False
    except _Disturbed:
        return _scaled(measure("CPU", device, 1, available_memory(), once_more), threads), True


def _scaled(one: Figures, threads: int) -> Figures:
    """What so many threads would do, from one: arithmetic nearly grows with them, reading from memory soon does not."""
    reading, computing = min(threads, _READERS), threads**_COMPUTERS
    return msgspec.structs.replace(
        one,
        bandwidth=one.bandwidth * reading,
        rates={
            name: Rate(
                rate.decode * reading, rate.cached * computing, rate.prefill * computing, rate.row_seconds / computing
            )
            for name, rate in one.rates.items()
        },
        attention={
            head: msgspec.structs.replace(
                figures, decode=figures.decode * computing, prefill=figures.prefill * computing
            )
            for head, figures in one.attention.items()
        },
    )


def _rate(bench: Bench, name: str, buffer_type: Any) -> Rate | None:
    """All figures of one tensor type; None where the device cannot do all that is measured."""
    streamed, streamed_bytes, _ = bench.products(name, buffer_type, bench.streamed_bytes, _ROWS, 1)
    cached, cached_bytes, cached_count = bench.products(name, buffer_type, _CACHED_BYTES, _FEW_ROWS, 1)
    narrow, _, narrow_count = bench.products(name, buffer_type, _CACHED_BYTES // 2, 2 * _FEW_ROWS, 1, _NARROW)
    seconds, _, count = bench.products(name, buffer_type, 1, _FEW_ROWS, _MICRO_BATCH)
    if not all(map(math.isfinite, (streamed, cached, narrow, seconds))):
        return None
    # A row takes a fixed time and one for its values; two widths tell them apart.
    wide_row, narrow_row = cached / (cached_count * _FEW_ROWS), narrow / (narrow_count * 2 * _FEW_ROWS)
    row = narrow_row - (wide_row - narrow_row) / (_COLUMNS - _NARROW) * _NARROW
    return Rate(
        decode=streamed_bytes / streamed,
        cached=cached_bytes / cached,
        prefill=count * _COLUMNS * _FEW_ROWS * _MICRO_BATCH / seconds,
        row_seconds=min(max(0.0, row), narrow_row),
    )


def _attention(bench: Bench, head: int) -> Attention | None:
    """The figures of attention with heads of this size; None where the device has no kernel for it."""
    heads, heads_kv, batch = 8, 2, 128
    many = 2 * heads * head * _ATTENDED
    one, plain = (bench.attention(_ATTENDED, heads, heads_kv, head, 1, flash=flash) for flash in (True, False))
    # As the engine chooses (`engine.attention`).
    ordinary = one > SLOW_ATTENTION * plain
    several = bench.attention(_ATTENDED, heads, heads_kv, head, batch, flash=not ordinary)
    one = plain if ordinary else one
    if not math.isfinite(one) or not math.isfinite(several):
        return None
    return Attention(decode=many / one, prefill=many * batch / several, ordinary=ordinary)


def _print(line: dict[str, object]) -> None:
    print(msgspec.json.encode(line).decode(), flush=True)


def main() -> int:
    """Measure everything and print it; where that is impossible, the reason on stderr."""
    try:
        threads = compute_threads()
        ggml = library()
        others = devices()
        total, done = (len(TYPES) + 1) * (1 + len(others)), 0

        def step() -> None:
            nonlocal done
            done += 1
            _print({"done": done, "total": total})

        handle = ggml.ggml_backend_dev_by_type(_CPU_DEVICE)
        processor, was_busy = _processor(handle, threads, step)
        found = []
        for device in others:
            handle = ggml.ggml_backend_dev_by_name(device.name.encode())
            try:
                found.append(measure(device.name, handle, threads, device.free, step))
            except LocalchatError as error:
                print(f"{device.name}: {error.message}", file=sys.stderr)
        machine = Machine(
            engine=engine_stamp(),
            system=(api().llama_print_system_info() or b"").decode(errors="replace"),
            cpu=cpu_name(),
            threads=threads,
            processor=processor,
            devices=tuple(found),
            measured=time.strftime("%Y-%m-%dT%H:%M:%S"),
            was_busy=was_busy,
        )
        _print({"machine": machine})
    except LocalchatError as error:
        print(error.message, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
