"""What `localchat models` expects against what happens: memory of a loaded model, decode and prefill speed.

`python benchmarks/fit.py [ROUNDS] [busy] [MODEL.gguf …]`; without models, the starter. In each round the machine is
measured first and then every model is loaded, read to and asked by the engine's own classes in a process of its own.
With `busy`, for a machine that others use too: one thread, and its processor time instead of the wall clock.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import msgspec
from common import child_json, environment, home_with_starter, machine

from localchat.machine import Machine
from localchat.models import fit, gguf, shape

CONTEXT, PROMPT, ANSWER = 2048, 512, 24

REALITY = """
import json, random, sys, time
from pathlib import Path
from localchat.engine import llama
from localchat.engine.context import MICRO_BATCH, Context
from localchat.engine.model import Model
from localchat.machine import compute_threads
path, n_ctx, prompt, answer = sys.argv[1], *map(int, sys.argv[2:])
model = Model(Path(path))
context = Context(model, n_ctx, compute_threads())
api = llama.api()
chain = api.llama_sampler_chain_init(api.llama_sampler_chain_default_params())
api.llama_sampler_chain_add(chain, api.llama_sampler_init_greedy())
tokens = random.Random(1).choices(range(model.n_vocab // 2), k=prompt)
prefill = []
for _ in range(3):  # the first brings the weights in
    context.forget(0)
    began = time.perf_counter()
    for start in range(0, prompt, MICRO_BATCH):
        context.begin()
        last = context.add(tokens[start : start + MICRO_BATCH], start, 0, output=True)
        context.decode()
    token = api.llama_sampler_sample(chain, context.handle, last)
    prefill.append(prompt / (time.perf_counter() - began))
steps = []
for position in range(prompt, prompt + answer):
    began = time.perf_counter()
    context.begin()
    last = context.add([token], position, 0, output=True)
    context.decode()
    token = api.llama_sampler_sample(chain, context.handle, last)
    steps.append(time.perf_counter() - began)
memory = sum(context.buffers.get(kind, 0) for kind in ("KV", "RS", "compute", "output"))
steps.sort()
print(json.dumps({"prefill": max(prefill[1:]), "decode": 1 / steps[len(steps) // 4], "memory": memory}))
"""

PROCESSOR_TIME = "import time; time.perf_counter = time.process_time\n"
MEASURE = "from localchat.engine import measure; raise SystemExit(measure.main())"


def measured(prelude: str, env: dict[str, str]) -> Machine:
    """What the machine can do at this moment."""
    command = [sys.executable, "-c", prelude + MEASURE]
    done = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return msgspec.convert(json.loads(done.stdout.splitlines()[-1])["machine"], Machine, strict=False)


def main(rounds: int, busy: bool, models: list[Path]) -> None:
    home, starter = home_with_starter()
    (home / "settings.toml").write_text("threads = 1\n" if busy else "")
    env, prelude = environment(home), PROCESSOR_TIME if busy else ""
    models = models or [starter]
    headers = {model: gguf.read_header(model) for model in models}
    found: dict[Path, list[dict[str, float]]] = {model: [] for model in models}
    seconds: list[float] = []
    for number in range(rounds):
        began = time.perf_counter()
        figures = measured(prelude, env)
        seconds.append(time.perf_counter() - began)
        for model, header in headers.items():
            of_model = shape.of_header(header)
            speed = fit.speed(of_model, header.weights, figures, context=PROMPT)
            memory = fit.memory(of_model, 0, CONTEXT)
            real = child_json(prelude + REALITY, env, str(model), str(CONTEXT), str(PROMPT), str(ANSWER))
            expected = {"decode": speed.decode or 0, "prefill": speed.prefill or 0, "memory": memory.total}
            found[model].append({**real, **{f"expected {key}": value for key, value in expected.items()}})
            print(f"round {number + 1}/{rounds} {model.name}: {found[model][-1]}", file=sys.stderr)
    print("\n### What is expected against what happens\n")
    print(f"{machine()}, {figures.threads} threads, {time.strftime('%Y-%m-%d')}, {rounds} rounds; ", end="")
    print("processor time of one thread; " if busy else "", end="")
    print(f"measuring took {statistics.median(seconds):.1f} s (median)\n")
    print("| model | | expected | real | expected / real (min to max) |\n|---|---|---|---|---|")
    for model, results in found.items():
        for key, unit, scale in (("decode", "tok/s", 1.0), ("prefill", "tok/s", 1.0), ("memory", "MiB", 1 << 20)):
            pairs = [(one[f"expected {key}"] / scale, one[key] / scale) for one in results]
            ratios = [expected / real for expected, real in pairs]
            expected, real = (statistics.median(values) for values in zip(*pairs, strict=True))
            span = f"**{statistics.median(ratios):.2f}** ({min(ratios):.2f} to {max(ratios):.2f})"
            print(f"| {model.name} | {key}, {unit} | {expected:.1f} | {real:.1f} | {span} |")


if __name__ == "__main__":
    arguments = sys.argv[1:]
    count = int(arguments.pop(0)) if arguments and arguments[0].isdigit() else 5
    busy = "busy" in arguments
    main(count, busy, [Path(argument) for argument in arguments if argument != "busy"])
