"""The functions of ggml that measuring calls directly: the binding has no names for them, but its library has them."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from localchat.engine.llama import api

_DESCRIPTIONS_BYTES = 4 << 20


class InitParams(ctypes.Structure):
    """`struct ggml_init_params`."""

    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


@cache
def library() -> Any:
    """The loaded library with the types of the functions used here."""
    loaded = api()._lib
    pointer, size, i64 = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64
    number, real, text = ctypes.c_int, ctypes.c_float, ctypes.c_char_p
    for name, result, arguments in (
        ("ggml_init", pointer, [InitParams]),
        ("ggml_free", None, [pointer]),
        ("ggml_nbytes", size, [pointer]),
        ("ggml_new_tensor_2d", pointer, [pointer, number, i64, i64]),
        ("ggml_new_tensor_3d", pointer, [pointer, number, i64, i64, i64]),
        ("ggml_mul_mat", pointer, [pointer, pointer, pointer]),
        ("ggml_rms_norm", pointer, [pointer, pointer, real]),
        ("ggml_mul", pointer, [pointer, pointer, pointer]),
        ("ggml_add", pointer, [pointer, pointer, pointer]),
        ("ggml_permute", pointer, [pointer, pointer, number, number, number, number]),
        ("ggml_soft_max_ext", pointer, [pointer, pointer, pointer, real, real]),
        ("ggml_flash_attn_ext", pointer, [pointer, pointer, pointer, pointer, pointer, real, real, real]),
        ("ggml_new_graph_custom", pointer, [pointer, size, ctypes.c_bool]),
        ("ggml_build_forward_expand", None, [pointer, pointer]),
        ("ggml_backend_dev_by_type", pointer, [number]),
        ("ggml_backend_dev_by_name", pointer, [text]),
        ("ggml_backend_dev_init", pointer, [pointer, text]),
        ("ggml_backend_dev_buffer_type", pointer, [pointer]),
        ("ggml_backend_dev_backend_reg", pointer, [pointer]),
        ("ggml_backend_dev_supports_op", ctypes.c_bool, [pointer, pointer]),
        ("ggml_backend_reg_get_proc_address", pointer, [pointer, text]),
        ("ggml_backend_alloc_ctx_tensors_from_buft", pointer, [pointer, pointer]),
        ("ggml_backend_buft_alloc_buffer", pointer, [pointer, size]),
        ("ggml_backend_buft_get_alignment", size, [pointer]),
        ("ggml_backend_buft_is_host", ctypes.c_bool, [pointer]),
        ("ggml_backend_buffer_get_base", pointer, [pointer]),
        ("ggml_backend_buffer_clear", None, [pointer, ctypes.c_uint8]),
        ("ggml_backend_buffer_free", None, [pointer]),
        ("ggml_backend_tensor_alloc", number, [pointer, pointer, pointer]),
        ("ggml_backend_graph_compute", number, [pointer, pointer]),
        ("ggml_backend_free", None, [pointer]),
    ):
        getattr(loaded, name).restype = result
        getattr(loaded, name).argtypes = arguments
    return loaded


@contextmanager
def descriptions() -> Iterator[Any]:
    """A ggml context: it holds descriptions of tensors, not their data."""
    context = library().ggml_init(InitParams(_DESCRIPTIONS_BYTES, None, True))
    try:
        yield context
    finally:
        library().ggml_free(context)
