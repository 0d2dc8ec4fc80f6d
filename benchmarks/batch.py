"""Many prompts: `localchat batch`, the same engine asked one after another, and peers both ways.

32 prompts of about 50 tokens with answers of 64, greedy, 2 threads, for the starter as Q4_1 and as Q4_0, whose kernels
gain more from batches. What counts is answer tokens a second over all prompts; `localchat batch` includes the start of
its process, the others only the asking. Each round has prompts of its own, so that nobody finds them read.
`python benchmarks/batch.py [ROUNDS] [PROMPTS] [TOKENS] [MODEL.gguf …]`; 0 rounds: only the one that does not count, to
see that all runs (`0 2 4` is the least). Other models are tried without the peers.
"""

from __future__ import annotations

import http.client
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from urllib.parse import urlsplit

from common import NO_AMX, environment, home_with_starter, interleaved, localchat, report
from peers import xllamacpp_server
from shapes import starter_as

THREADS = 2
SIDE_BY_SIDE = 16
WORDS = """
river stone lamp quick forest silver paper engine winter garden bread music window mountain sailor story harbour
candle field bridge letter cloud horse kitchen market summer train teacher doctor island village morning
"""

ONE_BY_ONE = """
import json, sys, time
from localchat import protocol
from localchat.client.local import LocalEngine
given = json.loads(sys.stdin.read())
engine, tokens, began = LocalEngine(), 0, time.perf_counter()
for prompt in given["prompts"]:
    request = protocol.ChatRequest(
        messages=[protocol.Message("user", prompt)], model=given["model"], stream=True, temperature=0.0,
        max_tokens=given["tokens"], localchat=protocol.Extras(keep=False),
    )
    with engine.chat(request) as stream:
        for chunk in stream:
            tokens += chunk.usage.completion_tokens if chunk.usage else 0
print(json.dumps({"rate": tokens / (time.perf_counter() - began)}))
"""

LLAMA = (
    NO_AMX
    + """
import json, sys, time
from llama_cpp import Llama
given = json.loads(sys.stdin.read())
llama = Llama(given["model"], n_ctx=4096, n_threads=given["threads"], n_threads_batch=given["threads"], verbose=False)
tokens, began = 0, time.perf_counter()
for prompt in given["prompts"]:
    messages = [{"role": "user", "content": prompt}]
    answer = llama.create_chat_completion(messages, max_tokens=given["tokens"], temperature=0)
    tokens += answer["usage"]["completion_tokens"]
print(json.dumps({"rate": tokens / (time.perf_counter() - began)}))
"""
)


def prompts(seed: int, number: int) -> list[str]:
    """Prompts of about 50 tokens that nobody has read before."""
    chosen, words = random.Random(seed), WORDS.split()
    return ["Write a long story with these words: " + " ".join(chosen.choices(words, k=40)) for _ in range(number)]


def batch(model: Path, asked: list[str], tokens: int, env: dict[str, str]) -> float:
    """Answer tokens a second through the command, its start and end included."""
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        file.writelines(f"{json.dumps(one)}\n" for one in asked)
        file.flush()
        options = ["-m", str(model), "-n", "--temperature", "0", "--max-tokens", str(tokens)]
        command = localchat("batch", *options, file.name)
        began = time.perf_counter()
        done = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        seconds = time.perf_counter() - began
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(asked)
    return float(sum(answer["usage"]["completion_tokens"] for answer in answers)) / seconds


def child(code: str, model: Path, asked: list[str], tokens: int, env: dict[str, str]) -> float:
    """Answer tokens a second, as a process of its own counted them."""
    given = {"model": str(model), "prompts": asked, "tokens": tokens, "threads": THREADS}
    with tempfile.TemporaryFile("w+") as file:
        json.dump(given, file)
        file.seek(0)
        done = subprocess.run(
            [sys.executable, "-c", code],
            stdin=file,
            env=env,
            check=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
    rate: float = json.loads(done.stdout.splitlines()[-1])["rate"]
    return rate


def server(model: Path, asked: list[str], tokens: int) -> float:
    """Answer tokens a second from llama.cpp's own server, with as many slots as are asked side by side."""

    def ask(address: str, prompt: str) -> int:
        place = urlsplit(address)
        connection = http.client.HTTPConnection(place.hostname or "", place.port)
        body = {"messages": [{"role": "user", "content": prompt}], "max_tokens": tokens, "temperature": 0}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        answer = json.loads(connection.getresponse().read())
        connection.close()
        return int(answer["usage"]["completion_tokens"])

    context = SIDE_BY_SIDE * 512
    with (
        xllamacpp_server(model, context=context, threads=THREADS, parallel=SIDE_BY_SIDE) as address,
        ThreadPoolExecutor(SIDE_BY_SIDE) as pool,
    ):
        ask(address, "hi")
        began = time.perf_counter()
        answered = sum(pool.map(lambda prompt: ask(address, prompt), asked))
        return answered / (time.perf_counter() - began)


def contestants(
    model: Path, number: int, tokens: int, env: dict[str, str], *, peers: bool
) -> dict[str, Callable[[], float]]:
    seeds = count(random.randrange(1 << 30))

    def fresh() -> list[str]:
        return prompts(next(seeds), number)

    ours: dict[str, Callable[[], float]] = {
        "localchat batch": lambda: batch(model, fresh(), tokens, env),
        "the same engine, one after another": lambda: child(ONE_BY_ONE, model, fresh(), tokens, env),
    }
    if not peers:
        return ours
    return ours | {
        "`llama_cpp.Llama`, one after another": lambda: child(LLAMA, model, fresh(), tokens, env),
        f"`xllamacpp`'s server, {SIDE_BY_SIDE} slots": lambda: server(model, fresh(), tokens),
    }


def main(rounds: int, number: int, tokens: int, models: list[Path]) -> None:
    home, _ = home_with_starter()
    (home / "settings.toml").write_text(f"threads = {THREADS}\n")
    env = environment(home)
    for model in models or [starter_as("Q4_1"), starter_as("Q4_0")]:
        results = interleaved(contestants(model, number, tokens, env, peers=not models), rounds)
        subprocess.run(localchat("stop"), env=env, check=True, stdout=subprocess.DEVNULL)
        if not rounds:
            continue
        title = f"{number} prompts of 50 tokens, answers of {tokens}, {model.name}, {THREADS} threads"
        report(title, "tokens/s", results, [("localchat batch", name) for name in results if name != "localchat batch"])


if __name__ == "__main__":
    given = [int(argument) for argument in sys.argv[1:] if argument.isdecimal()]
    others = [Path(argument).resolve() for argument in sys.argv[1:] if not argument.isdecimal()]
    main(*given, *(5, 32, 64)[len(given) :], others)
