"""Going on with a chat of 1,500 tokens after the engine was restarted: how long until the first token of the answer.

All read the same messages with the same threads, and the model is loaded before the clock starts. What is new is a
short question, which all must read; "the same question" asks the last one once more, so that nothing is new.
"localchat, reading again" has its prefix cache switched off. `python benchmarks/restart.py [ROUNDS] [MODEL.gguf …]`
takes the starter and a model of 1.5 B parameters with random weights where none is named.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from itertools import count
from pathlib import Path

from common import NO_AMX, child_json, environment, home_with_starter, interleaved, localchat, machine, report
from peers import first_token_s, xllamacpp_server
from r1_shape import r1_shape

THREADS, CONTEXT, ANSWER = 2, 4096, 8
QUESTION = "What stands in the ship's log on day 7?"

# The client's own part of localchat, as its faces use it: a model that is loaded, then a question.
OURS = """
import json, sys, time
from localchat.client.local import LocalEngine
from localchat.protocol import ChatRequest, Extras
import msgspec
model, messages, answer = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
engine = LocalEngine()
began = time.perf_counter()
engine.load(model)
loaded = time.perf_counter()
request = msgspec.convert({"messages": messages, "model": model, "temperature": 0, "max_tokens": answer,
                           "stream": True, "localchat": {}}, ChatRequest)
first, text, report, usage = 0.0, "", None, None
with engine.chat(request) as stream:
    for chunk in stream:
        for choice in chunk.choices:
            if choice.delta.content:
                first = first or time.perf_counter()
                text += choice.delta.content
        report, usage = chunk.localchat or report, chunk.usage or usage
print(json.dumps({"load": loaded - began, "first": first - loaded, "text": text, "prompt": usage.prompt_tokens,
                  "cached": report.cached_tokens, "from": report.restored_from}))
"""

LLAMA = (
    NO_AMX
    + """
import json, sys, time
from llama_cpp import Llama
model, messages, context, threads = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
llama = Llama(model, n_ctx=context, n_threads=threads, n_threads_batch=threads, verbose=False)
began = time.perf_counter()
for chunk in llama.create_chat_completion(messages, max_tokens=4, temperature=0, stream=True):
    if chunk["choices"][0]["delta"].get("content"):
        break
print(json.dumps({"first": time.perf_counter() - began}))
"""
)


def story(tokens: int) -> str:
    """A text of about so many tokens, different on each line."""
    winds = ("north", "south", "east", "west")
    lines = [
        f"Day {day}: wind from the {winds[day * 7 % 4]}, {day * 13 % 40} miles made, {day * 5 % 9} barrels of water."
        for day in range(1, tokens // 23)
    ]
    return "The log of a ship.\n" + "\n".join(lines) + "\n\n"


def main(rounds: int, models: list[Path]) -> None:
    home, starter = home_with_starter()
    without = home.with_name(home.name + "-no-cache")
    without.mkdir(exist_ok=True)
    (home / "settings.toml").write_text(f"threads = {THREADS}\n")
    (without / "settings.toml").write_text(f'threads = {THREADS}\nprefix_cache = "0"\n')
    for model in models or [starter, r1_shape(starter)]:
        compare(rounds, model, environment(home), environment(without))


def compare(rounds: int, model: Path, env: dict[str, str], env_without: dict[str, str]) -> None:
    first = [{"role": "user", "content": story(1500) + QUESTION}]
    seen: list[dict[str, float]] = []

    def stop(of: dict[str, str]) -> None:
        subprocess.run(localchat("stop"), env=of, check=True, stdout=subprocess.DEVNULL)

    def ask(messages: object, of: dict[str, str]) -> dict[str, float]:
        return child_json(OURS, of, str(model), json.dumps(messages), str(ANSWER))

    stop(env)
    stop(env_without)
    said = ask(first, env)["text"]
    days = count(8)

    def going_on() -> list[dict[str, object]]:
        """The chat with a question that nobody has asked before."""
        asked = f"And on day {next(days)}?"
        return [*first, {"role": "assistant", "content": said}, {"role": "user", "content": asked}]

    def restored() -> float:
        stop(env)
        seen.append(ask(going_on(), env))
        stop(env)
        return seen[-1]["first"]

    def the_same() -> float:
        stop(env)
        first_s = ask(first, env)["first"]
        stop(env)
        return first_s

    def read_again() -> float:
        figures = ask(going_on(), env_without)
        stop(env_without)
        return figures["first"]

    def llama() -> float:
        return child_json(LLAMA, env, str(model), json.dumps(going_on()), str(CONTEXT), str(THREADS))["first"]

    def server() -> float:
        with xllamacpp_server(model, context=CONTEXT, threads=THREADS) as address:
            return first_token_s(address, {"messages": going_on(), "max_tokens": 4, "temperature": 0})

    results = interleaved(
        {
            "localchat": restored,
            "localchat, the same question": the_same,
            "localchat, reading again": read_again,
            "`llama_cpp.Llama`": llama,
            "`xllamacpp`'s server": server,
        },
        rounds,
    )
    others = [name for name in results if not name.startswith("localchat") or name.endswith("reading again")]
    ratios = [(name, ours) for ours in ("localchat", "localchat, the same question") for name in others]
    report(f"The first token after a restart, {model.name}", "s", results, ratios)
    last = seen[-1]
    load = statistics.median(one["load"] for one in seen)
    print(f"- {last['prompt']:,} prompt tokens, {last['cached']:,} of them from the {last['from']}")
    print(f"- starting the host and loading the model, before the clock: {load:.2f} s ({machine()})")


if __name__ == "__main__":
    main(
        int(sys.argv[1]) if len(sys.argv) > 1 and sys.argv[1].isdecimal() else 5,
        [Path(word) for word in sys.argv[1:] if word.endswith(".gguf")],
    )
