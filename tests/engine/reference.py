"""What a model would say, computed the plain way: the whole text at once, in a context that has read nothing else."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np

from localchat.engine.llama import api
from localchat.engine.model import Model
from localchat.protocol import Message


def chatml_tokens(*turns: str | Message) -> list[int]:
    """The tokens of a conversation under `CHATML` on the vocabulary `BYTES`."""
    messages = [turn if isinstance(turn, Message) else Message("user", turn) for turn in turns]
    tokens: list[int] = []
    for message in messages:
        tokens += [257, *message.role.encode(), 10, *message.text().encode(), 258, 10]
    return [*tokens, 257, *b"assistant", 10]


class Reference:
    """A model beside the engine's own."""

    def __init__(self, path: Path) -> None:
        self._model = Model(path)

    def close(self) -> None:
        self._model.close()

    def regrets(self, prompt: list[int], answer: list[int]) -> np.ndarray:
        """For each token of an answer, by how much the likeliest token's logit was above its own: 0 is greedy."""
        llama = api()
        params = llama.llama_context_default_params()
        tokens = prompt + answer
        params.n_ctx = params.n_batch = params.n_ubatch = len(tokens)
        params.n_threads = params.n_threads_batch = 1
        params.swa_full = True
        context = llama.llama_init_from_model(self._model.handle, params)
        batch = llama.llama_batch_init(len(tokens), 0, 1)
        try:
            batch.n_tokens = len(tokens)
            for index, token in enumerate(tokens):
                batch.token[index], batch.pos[index] = token, index
                batch.n_seq_id[index], batch.seq_id[index][0] = 1, 0
                batch.logits[index] = index >= len(prompt) - 1
            assert llama.llama_decode(context, batch) == 0
            rows = []
            for index in range(len(prompt) - 1, len(tokens) - 1):
                row = llama.llama_get_logits_ith(context, index)
                address = ctypes.cast(row, ctypes.POINTER(ctypes.c_float))
                rows.append(np.ctypeslib.as_array(address, (self._model.n_vocab,)).copy())
        finally:
            llama.llama_batch_free(batch)
            llama.llama_free(context)
        logits = np.array(rows)
        return logits.max(axis=1) - logits[np.arange(len(answer)), answer]
