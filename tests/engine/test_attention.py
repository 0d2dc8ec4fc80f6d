"""Which attention the engine takes, and that both say the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from localchat.engine import attention
from localchat.engine.context import Context
from localchat.engine.model import Model
from localchat.engine.offload import Offload
from localchat.tuning import MICRO_BATCH, Tuning, scores_bytes


class Shape(SimpleNamespace):
    """What the choice depends on of a model."""

    def kv_bytes_estimate(self, n_ctx: int) -> int:
        return int(n_ctx * self.kv_bytes)


def shape(heads: int = 9, head: int = 64, kv_bytes: int = 23040) -> Shape:
    return Shape(heads=heads, head_size=head, kv_bytes=kv_bytes, offload=Offload())


@pytest.fixture(autouse=True)
def slow_in_small_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_is_slow", lambda head: head < 128)


def test_ordinary_attention_where_flash_attention_is_slow() -> None:
    assert attention.chosen(shape(), 4096, Tuning()) == Tuning(micro_batch=MICRO_BATCH, flash_attention=False)
    assert attention.chosen(shape(head=128), 4096, Tuning()) == Tuning()
    assert attention.chosen(shape(head=0), 4096, Tuning()) == Tuning()  # keys and values differ, or there are none


@pytest.mark.parametrize(
    "decided", [Tuning(flash_attention=True), Tuning(flash_attention=False), Tuning(kv_type="q8_0")]
)
def test_what_was_decided_stays(decided: Tuning) -> None:
    assert attention.chosen(shape(), 4096, decided) == decided


def test_a_gpu_has_kernels_of_its_own() -> None:
    on_gpu = shape()
    on_gpu.offload = replace(Offload(), layers=3)
    assert attention.chosen(on_gpu, 4096, Tuning()) == Tuning()


def test_large_windows_are_read_in_smaller_bites_or_with_flash_attention() -> None:
    """32 heads and 32,768 tokens: the scores of 512 tokens would take 2 GiB."""
    many = shape(heads=32, kv_bytes=32768)
    made = attention.chosen(many, 32768, Tuning(decode_threads=3))
    assert made == Tuning(decode_threads=3, micro_batch=64, flash_attention=False)
    assert scores_bytes(32, 32768, 64) <= 256 << 20  # a quarter of the KV cache
    assert attention.chosen(shape(heads=64, kv_bytes=4096), 131072, Tuning()) == Tuning()


def test_both_kinds_of_attention_say_the_same(starter: Path) -> None:
    model = Model(starter)
    tokens = model.tokenize("The keeper of the light counts the ships that pass at night. " * 12, parse_special=False)
    likeliest = []
    for flash in (True, False):
        context = Context(model, 512, 1, Tuning(flash_attention=flash))
        assert context.tuning.flash_attention is flash
        context.begin()
        index = context.add(tokens, 0, 0, output=True)
        context.decode()
        likeliest.append(best(context, index, model.n_vocab))
        context.close()
    model.close()
    assert likeliest[0][0] == likeliest[1][0]
    assert likeliest[0][1] == pytest.approx(likeliest[1][1], abs=0.3)


def best(context: Context, index: int, n_vocab: int) -> tuple[int, float]:
    """The likeliest token and its logit."""
    from localchat.engine.llama import api

    logits = api().llama_get_logits_ith(context.handle, index)[:n_vocab]
    return max(range(n_vocab), key=logits.__getitem__), max(logits)
