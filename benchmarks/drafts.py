"""Answers with and without drafts: copying a 150-line file, changing a word all through it, and telling a story.

All through the host, greedy, in turn, by the starter in several quantizations: whether drafts pay depends on what a
batch costs. Beside them `llama_cpp.Llama`, without and with its own prompt lookup, reading the same tokens.
`python benchmarks/drafts.py [ROUNDS] [QUANTIZATION …]`

The starter is too small to copy a file when it is asked to, so its answer is begun for it: it goes on with what it has
before its eyes, sometimes wrongly. What it says is the same in every round; how much of it was drafted and right is
printed beside the speed.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from functools import partial

from common import NO_AMX, child_json, environment, home_with_starter, interleaved, localchat, report
from shapes import starter_as

THREADS = 2
TOKENS = 256
PEERS = ("Q4_0",)
"""The quantizations at which the peers take part: they need a minute a round."""

_THINGS = (
    "account",
    "basket",
    "carrier",
    "delivery",
    "estimate",
    "forecast",
    "garden",
    "harbour",
    "invoice",
    "journey",
)
_PARTS = ("amount", "bearing", "colour", "depth", "energy", "frequency", "gravity", "height", "interval", "junction")


def file_to_copy() -> str:
    """A Python file of 150 lines, the same each time."""
    lines = [
        '"""What a small shop keeps in memory."""',
        "",
        "from __future__ import annotations",
        "",
        "import json",
        "import sys",
        "",
    ]
    for number, thing in enumerate(_THINGS):
        one, other, last = (_PARTS[(number + step) % len(_PARTS)] for step in (0, 3, 7))
        lines += [
            "",
            f"class {thing.capitalize()}:",
            f'    """One {thing} with its {one}."""',
            "",
            f"    def __init__(self, {one}: int, {other}: float = {number}.5) -> None:",
            f"        self.{one} = {one}",
            f"        self.{other} = {other}",
            "",
            f"    def {last}_of(self, factor: int) -> float:",
            f'        """The {last} for a factor."""',
            f"        if factor < {number + 2}:",
            f'            raise ValueError("no {last} below {number + 2}")',
            f"        return self.{one} * factor + self.{other}",
            "",
        ]
    return "\n".join([*lines, "", "def main() -> None:", "    print(json.dumps(sys.argv))", ""])


def tasks() -> dict[str, list[tuple[str, str]]]:
    """Conversations as roles and texts; where the last is the assistant's, it goes on."""
    file = file_to_copy()
    begun = "\n".join(file.splitlines()[:42]) + "\n    def"
    renamed = re.sub(r"\bfactor\b", "share", begun)
    return {
        "copying": [
            ("user", f"```python\n{file}\n```\n\nRepeat the file above exactly."),
            ("assistant", f"```python\n{begun}"),
        ],
        "editing": [
            ("user", f"```python\n{file}\n```\n\nWrite the file above again with `factor` renamed to `share`."),
            ("assistant", f"```python\n{renamed}"),
        ],
        "a story": [("user", "Write a long story about a dragon who learns to sail.")],
    }


ASK = """
import json, sys
from localchat.client.local import LocalEngine
from localchat.protocol import ChatRequest, Extras, Message
model, turns, tokens = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
messages = [Message(role, text) for role, text in turns]
extras = Extras(continue_final=turns[-1][0] == "assistant", keep=False)
answer = LocalEngine().answer(
    ChatRequest(messages=messages, model=model, temperature=0, max_tokens=tokens, localchat=extras)
)
report = answer.localchat
print(json.dumps({
    "rate": report.timings.tokens_per_second, "drafted": report.drafted_tokens, "accepted": report.accepted_tokens,
    "tokens": answer.usage.completion_tokens,
}))
"""

PEER = (
    NO_AMX
    + """
import json, sys, time
from llama_cpp import Llama
from llama_cpp.llama_speculative import LlamaPromptLookupDecoding
path, turns, count, threads, drafts = sys.argv[1], json.loads(sys.argv[2]), *map(int, sys.argv[3:])
lookup = LlamaPromptLookupDecoding(num_pred_tokens=drafts) if drafts else None
llama = Llama(path, n_ctx=4096, n_threads=threads, n_threads_batch=threads, verbose=False,
    draft_model=lookup, logits_all=bool(drafts))
text = "<|im_start|>system\\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\\n"
for role, said in turns:
    text += f"<|im_start|>{role}\\n{said}<|im_end|>\\n"
text = text.removesuffix("<|im_end|>\\n") if turns[-1][0] == "assistant" else text + "<|im_start|>assistant\\n"
times = []
# Not `create_completion`: that makes text of all tokens again for each new one.
for token in llama.generate(llama.tokenize(text.encode(), special=True), temp=0.0, repeat_penalty=1.0):
    times.append(time.perf_counter())
    if len(times) == count or token == llama.token_eos():
        break
print(json.dumps({"rate": (len(times) - 1) / (times[-1] - times[0])}))
"""
)


def ours(env: dict[str, str], words: list[str], last: dict[str, float]) -> float:
    """Tokens a second through a host; `last` keeps what an answer that had drafts says of them."""
    answer = child_json(ASK, env, *words)
    if answer["drafted"] or not last:
        last.update(answer)
    return answer["rate"]


def peer(env: dict[str, str], words: list[str], drafts: int) -> float:
    """Tokens a second of `llama_cpp.Llama`; so many tokens drafted by its own lookup, 0 for none."""
    return child_json(PEER, env, *words, str(THREADS), str(drafts))["rate"]


def main(rounds: int, quantizations: list[str]) -> None:
    home, _ = home_with_starter()
    homes = {"with drafts": home.with_name(f"{home.name}-drafts"), "without": home.with_name(f"{home.name}-plain")}
    for name, folder in homes.items():
        folder.mkdir(exist_ok=True)
        wanted = "true" if name == "with drafts" else "false"
        (folder / "settings.toml").write_text(f'threads = {THREADS}\ndrafts = {wanted}\nprefix_cache = "0"\n')

    for quantization in quantizations:
        model = starter_as(quantization)
        for task, turns in tasks().items():
            words = [str(model), json.dumps(turns), str(TOKENS)]
            last: dict[str, float] = {}
            contestants = {name: partial(ours, environment(folder), words, last) for name, folder in homes.items()}
            if quantization in PEERS:
                contestants["llama_cpp.Llama"] = partial(peer, environment(home), words, 0)
                contestants["llama_cpp.Llama, its prompt lookup"] = partial(peer, environment(home), words, 10)
            results = interleaved(contestants, rounds)
            ratios = [("with drafts", name) for name in results if name != "with drafts"]
            title = f"{task.capitalize()}, {model.name}, {THREADS} threads, {last['tokens']:.0f} tokens"
            report(title, "tokens/s", results, ratios)
            print(f"- drafted {last['drafted']:.0f} tokens, of which {last['accepted']:.0f} were right")
    for folder in homes.values():
        subprocess.run(localchat("stop"), env=environment(folder), check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5, sys.argv[2:] or ["Q4_0", "Q4_1"])
