"""Decode speed while other programs use a core: localchat against fixed numbers of threads and against its peers.

    python benchmarks/busy.py [-r ROUNDS] [-n TOKENS] [-s SECONDS] [-l idle,busy,flicker] [MODEL.gguf …]
    python benchmarks/busy.py chart    # records a run while a core is taken and given back, and draws docs/threads.svg
    python benchmarks/busy.py draw     # only draws what was recorded last (docs/threads.json)

`idle`: nobody else computes; `busy`: another program has a core all the time; `flicker`: it takes one for 300 ms of
every second. All are greedy, with the same prompt. Who is not done after SECONDS is stopped, and its rate taken so
far: with a core taken, two fixed threads would need half an hour for 400 tokens. Each one runs in a session of its own,
as programs of different windows do: Linux shares processors between sessions first.
"""

from __future__ import annotations

import argparse
import http.client
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from busy_chart import DATA, SVG, draw
from common import NO_AMX, environment, home_with_starter, interleaved, localchat, machine, report
from decode import BARE, PROMPT, RENDERED
from peers import xllamacpp_server

from localchat.hardware import usable_cores

LOADS = ("idle", "busy", "flicker")

_OTHER = """
import sys, time
computes, rests = float(sys.argv[1]), float(sys.argv[2])
while True:
    end = time.monotonic() + computes
    while time.monotonic() < end:
        pass
    time.sleep(rests)
"""

# As the bare loop of benchmarks/decode.py, but it says when each token came, begins anew every `count` tokens, and ends
# after so many seconds or, with 0 of them, after `count` tokens.
_FIXED = (
    BARE.partition("api.llama_decode(context, api.llama_batch_get_one(tokens, n))")[0]
    + """
limit, keeps_on = float(sys.argv[5]), sys.argv[6] == "on"
memory = api.llama_get_memory(context)
times, began = [], time.monotonic()
while not times or keeps_on:
    api.llama_memory_clear(memory, True)
    api.llama_decode(context, api.llama_batch_get_one(tokens, n))
    one = (api.llama_token * 1)(api.llama_sampler_sample(chain, context, -1))
    times.append(time.monotonic())
    for _ in range(count - 1):
        api.llama_decode(context, api.llama_batch_get_one(one, 1))
        one[0] = api.llama_sampler_sample(chain, context, -1)
        times.append(time.monotonic())
        if times[-1] - began > limit:
            break
    if times[-1] - began > limit:
        break
print(json.dumps({"times": times, "threads": threads}))
"""
)

_LLAMA = (
    NO_AMX
    + """
import json, sys, time
from llama_cpp import Llama
path, text, count, threads, limit = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6])
llama = Llama(path, n_ctx=4096, n_threads=threads, n_threads_batch=threads, verbose=False)
times, began = [], time.monotonic()
messages = [{"role": "user", "content": text}]
for chunk in llama.create_chat_completion(messages, max_tokens=count, temperature=0, stream=True):
    if chunk["choices"][0]["delta"].get("content"):
        times.append(time.monotonic())
    if time.monotonic() - began > limit:
        break
print(json.dumps({"times": times}))
"""
)

# The engine itself, with its controller, without host and client, so that each step can be written down.
_ENGINE = """
import json, sys, threading, time
from pathlib import Path
from localchat.engine.job import Finished, ModelSpec
from localchat.engine.scheduler import Engine
from localchat.engine.threads import ThreadController
from localchat.errors import LocalchatError
from localchat.protocol import ChatRequest, Message
path, text, count, threads, limit = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6])
steps, took = [], ThreadController.took
def written_down(self, tokens, seconds):
    if tokens == 1:
        steps.append((time.monotonic(), self.threads))
    took(self, tokens, seconds)
ThreadController.took = written_down
engine = Engine(threads, drafts=False)
began = time.monotonic()
while time.monotonic() - began < limit:
    done = threading.Event()
    request = ChatRequest(messages=[Message(role="user", content=text)], max_tokens=count, temperature=0)
    def sink(event):
        if isinstance(event, (Finished, LocalchatError)):
            done.set()
    engine.submit(ModelSpec("model", Path(path)), request, sink)
    done.wait(limit)
engine.close()
print(json.dumps({"times": [at for at, _ in steps], "threads": [count for _, count in steps]}))
"""


def child(code: str, env: dict[str, str], *arguments: str) -> dict[str, list[float]]:
    """What Python code prints at its end, run in a process and session of its own."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=env, check=True, capture_output=True, start_new_session=True
    )
    printed: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])
    return printed


def rate(times: list[float]) -> float:
    """Tokens a second, of the moments at which they came; the first says only when reading was done."""
    return (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else 0.0


@contextmanager
def other_program(computes: float, rests: float = 0.0) -> Iterator[None]:
    """Another program that computes on one core for so many seconds, and then rests, over and over."""
    process = subprocess.Popen([sys.executable, "-c", _OTHER, str(computes), str(rests)], start_new_session=True)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def streamed_times(address: str, tokens: int, limit_s: float) -> list[float]:
    """When the pieces of an answer of an OpenAI-compatible server came, for so many seconds at most."""
    place = urlsplit(address)
    connection = http.client.HTTPConnection(place.hostname or "", place.port)
    body = {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": tokens, "temperature": 0, "stream": True}
    began, times = time.monotonic(), []
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    for line in connection.getresponse():
        if line.startswith(b"data: {") and b'"content":' in line:
            times.append(time.monotonic())
        if time.monotonic() - began > limit_s:
            break
    connection.close()
    return times


def measure(load: str, model: Path, home: Path, options: argparse.Namespace) -> None:
    """One table: all contestants in turn under one load."""
    most = usable_cores()
    fewer = max(1, most - 1)
    (home / "settings.toml").write_text(f"threads = {most}\ndrafts = false\n")
    env, tokens, limit = environment(home), str(options.tokens), str(options.seconds)

    def through_host() -> float:
        words = ("ask", "-m", str(model), "--json", "--temperature", "0", "--max-tokens", tokens, PROMPT)
        done = subprocess.run(localchat(*words), env=env, check=True, stdout=subprocess.PIPE, start_new_session=True)
        speed: float = json.loads(done.stdout)["timings"]["tokens_per_second"]
        return speed

    def fixed(threads: int) -> Callable[[], float]:
        words = (str(model), RENDERED, tokens, str(threads), limit, "once")
        return lambda: rate(child(_FIXED, env, *words)["times"])

    with ExitStack() as stack:
        server = stack.enter_context(xllamacpp_server(model, context=4096, threads=most))
        if load != "idle":
            stack.enter_context(other_program(0.3, 0.7 if load == "flicker" else 0.0))
        results = interleaved(
            {
                "localchat": through_host,
                f"bare loop, {fewer}": fixed(fewer),
                f"bare loop, {most}": fixed(most),
                f"`llama_cpp.Llama`, {most}": lambda: rate(
                    child(_LLAMA, env, str(model), PROMPT, tokens, str(most), limit)["times"]
                ),
                f"`xllamacpp`'s server, {most}": lambda: rate(streamed_times(server, options.tokens, options.seconds)),
            },
            options.rounds,
        )
    subprocess.run(localchat("stop"), env=env, check=True, stdout=subprocess.DEVNULL)
    results["the better bare loop"] = [
        max(pair) for pair in zip(results[f"bare loop, {fewer}"], results[f"bare loop, {most}"], strict=True)
    ]
    says = {
        "idle": "nobody else computes",
        "busy": "another program has a core",
        "flicker": "another program takes a core for 300 ms every second",
    }
    title = f"{model.name}, {options.tokens} tokens, {says[load]} (the number is that of threads)"
    report(title, "tokens/s", results, [("localchat", name) for name in results if name != "localchat"])


def record(model: Path, env: dict[str, str]) -> None:
    """A real run of each: quiet, a core taken, quiet, a core taken now and then, quiet. Written to `DATA`."""
    most = usable_cores()
    taken = [(6.0, 16.0), *((at, at + 0.3) for at in range(22, 30))]
    length, lead = 34.0, 4.0  # a model is loaded within the lead
    runs = {}
    for name, code, text, last in (
        ("localchat", _ENGINE, PROMPT, ()),
        ("fixed", _FIXED, RENDERED, ("on",)),
    ):
        words = (str(model), text, "400", str(most), str(int(length + lead)), *last)
        process = subprocess.Popen(
            [sys.executable, "-c", code, *words], env=env, stdout=subprocess.PIPE, start_new_session=True
        )
        began = time.monotonic() + lead
        for begin, end in taken:
            time.sleep(max(0.0, began + begin - time.monotonic()))
            with other_program(1.0):
                time.sleep(max(0.0, began + end - time.monotonic()))
        printed = json.loads(process.communicate()[0].splitlines()[-1])
        runs[name] = {
            "times": [round(at - began, 3) for at in printed["times"]],
            "threads": printed["threads"],
        }
    DATA.write_text(
        json.dumps({"machine": machine(), "date": time.strftime("%Y-%m-%d"), "model": model.name, "length": length,
                    "most": most, "taken": taken, "runs": runs}) + "\n"
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("-r", "--rounds", type=int, default=5)
    parser.add_argument("-n", "--tokens", type=int, default=400)
    parser.add_argument("-s", "--seconds", type=int, default=45)
    parser.add_argument("-l", "--loads", default=",".join(LOADS))
    parser.add_argument("models", nargs="*")
    options = parser.parse_args()
    home, starter = home_with_starter()
    if options.models == ["draw"]:
        draw()
    elif options.models == ["chart"]:
        record(starter, environment(home))
        draw()
        print(f"written: {DATA} and {SVG}")
    else:
        for model in [Path(name).resolve() for name in options.models] or [starter]:
            for load in options.loads.split(","):
                measure(load, model, home, options)


if __name__ == "__main__":
    main()
