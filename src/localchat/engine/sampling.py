"""How the next token is chosen: a chain of llama.cpp samplers, all in C; Python sees the chosen id only."""

from __future__ import annotations

import os

import msgspec

from localchat.engine.llama import api
from localchat.protocol import Sampling

DEFAULTS = Sampling(
    temperature=0.8,
    top_k=40,
    top_p=0.95,
    min_p=0.05,
    typical_p=1.0,
    repeat_penalty=1.0,
    repeat_last_n=64,
    frequency_penalty=0.0,
    presence_penalty=0.0,
)
"""llama.cpp's own defaults: what is used where neither the person nor the model's makers say anything."""

_SEEDS = 0xFFFFFFFF  # llama.cpp takes this very value as "draw one", so it is no seed
_CANDIDATES_KEPT = 1


def resolve(*choices: Sampling) -> Sampling:
    """The first choice that is made for each setting (person, model, engine), with a seed drawn where none is given."""
    values = {}
    for name in Sampling.__struct_fields__:
        chosen = (getattr(choice, name) for choice in (*choices, DEFAULTS))
        values[name] = next((value for value in chosen if value is not None), None)
    if values["seed"] is None:
        values["seed"] = int.from_bytes(os.urandom(8), "big") % _SEEDS
    return msgspec.convert(values, Sampling)


class Sampler:
    """One request's sampler chain, with its own random state and its own memory of repeated tokens."""

    def __init__(self, n_vocab: int, sampling: Sampling) -> None:
        """`sampling` as `resolve` returns it: no setting is None."""
        llama = api()
        self._chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
        s = sampling
        assert s.temperature is not None and s.seed is not None
        self._penalises = bool(s.repeat_last_n) and (
            (s.repeat_penalty, s.frequency_penalty, s.presence_penalty) != (1.0, 0.0, 0.0)
        )
        links = []
        if self._penalises:
            links.append(
                llama.llama_sampler_init_penalties(
                    n_vocab, s.repeat_last_n, s.repeat_penalty, s.frequency_penalty, s.presence_penalty
                )
            )
        if s.temperature == 0:
            links.append(llama.llama_sampler_init_greedy())
        else:
            links += [
                llama.llama_sampler_init_top_k(s.top_k),
                llama.llama_sampler_init_typical(s.typical_p, _CANDIDATES_KEPT),
                llama.llama_sampler_init_top_p(s.top_p, _CANDIDATES_KEPT),
                llama.llama_sampler_init_min_p(s.min_p, _CANDIDATES_KEPT),
                llama.llama_sampler_init_temp(s.temperature),
                llama.llama_sampler_init_dist(s.seed % _SEEDS),
            ]
        # The chain owns its links from here on and frees them with itself.
        for link in links:
            llama.llama_sampler_chain_add(self._chain, link)

    def read(self, tokens: list[int]) -> None:
        """Let the repetition penalties know what the prompt said."""
        if self._penalises:
            for token in tokens:
                api().llama_sampler_accept(self._chain, token)

    def sample(self, context: object, index: int) -> int:
        """Choose a token from the logits at `index` of the last batch, which must have asked for an output there."""
        return int(api().llama_sampler_sample(self._chain, context, index))

    def close(self) -> None:
        """Free the chain."""
        if self._chain:
            api().llama_sampler_free(self._chain)
            self._chain = None
