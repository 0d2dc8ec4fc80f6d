"""Decode speed through host and client, against a bare loop on llama.cpp's API and against `llama_cpp.Llama` streaming.

All with the same model, threads, prompt and number of tokens, greedy. `python benchmarks/decode.py [ROUNDS] [busy]`;
with `busy`, another program computes on one core all the while, and answers are shorter. llama.cpp's own choice of
attention suits short conversations, localchat's long ones (`engine.attention`): the bare loop runs with both.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from common import NO_AMX, child_json, environment, home_with_starter, interleaved, localchat, report

TOKENS, TOKENS_BUSY = 256, 32
PROMPT = "Write a long story about a dragon who learns to sail."
# What the starter's template makes of it, for the loop that has no templates: all read the same tokens.
RENDERED = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    f"<|im_start|>user\n{PROMPT}<|im_end|>\n<|im_start|>assistant\n"
)

BARE = (
    NO_AMX
    + """
import json, os, sys, time
sys.modules.pop("llama_cpp", None)
import importlib.util, types
spec = importlib.util.find_spec("llama_cpp")
package = types.ModuleType("llama_cpp"); package.__path__ = list(spec.submodule_search_locations)
sys.modules["llama_cpp"] = package
import llama_cpp.llama_cpp as api
path, text, count, threads = sys.argv[1], sys.argv[2].encode(), int(sys.argv[3]), int(sys.argv[4])
flash = int(os.environ.get("ATTENTION", "-1"))  # enum llama_flash_attn_type
quiet = api.llama_log_callback(lambda level, text, data: None)
api.llama_log_set(quiet, None)
api.llama_backend_init()
model = api.llama_model_load_from_file(path.encode(), api.llama_model_default_params())
vocab = api.llama_model_get_vocab(model)
params = api.llama_context_default_params()
params.n_ctx, params.n_threads, params.n_threads_batch, params.flash_attn_type = 4096, threads, threads, flash
context = api.llama_init_from_model(model, params)
tokens = (api.llama_token * 4096)()
n = api.llama_tokenize(vocab, text, len(text), tokens, 4096, True, True)
chain = api.llama_sampler_chain_init(api.llama_sampler_chain_default_params())
api.llama_sampler_chain_add(chain, api.llama_sampler_init_greedy())
api.llama_decode(context, api.llama_batch_get_one(tokens, n))
one = (api.llama_token * 1)(api.llama_sampler_sample(chain, context, -1))
began = time.perf_counter()
for _ in range(count - 1):
    api.llama_decode(context, api.llama_batch_get_one(one, 1))
    one[0] = api.llama_sampler_sample(chain, context, -1)
print(json.dumps({"rate": (count - 1) / (time.perf_counter() - began)}))
"""
)

PEER = (
    NO_AMX
    + """
import json, sys, time
from llama_cpp import Llama
path, text, count, threads = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
llama = Llama(path, n_ctx=4096, n_threads=threads, n_threads_batch=threads, verbose=False)
times = []
messages = [{"role": "user", "content": text}]
for _ in llama.create_chat_completion(messages, max_tokens=count, temperature=0, stream=True):
    times.append(time.perf_counter())
times = times[1:-1]  # the role comes first and the finish reason last; neither is a token
print(json.dumps({"rate": (len(times) - 1) / (times[-1] - times[0])}))
"""
)


def main(rounds: int, busy: bool) -> None:
    tokens = TOKENS_BUSY if busy else TOKENS
    home, model = home_with_starter()
    threads = 2
    (home / "settings.toml").write_text(f"threads = {threads}\ndrafts = false\n")
    env = environment(home)
    words = [str(model), PROMPT, str(tokens), str(threads)]
    rendered = [str(model), RENDERED, str(tokens), str(threads)]

    def through_host() -> float:
        command = localchat("ask", "--json", "--temperature", "0", "--max-tokens", str(tokens), PROMPT)
        done = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE)
        rate: float = json.loads(done.stdout)["timings"]["tokens_per_second"]
        return rate

    other = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if busy else None
    passive = environment(home, OMP_WAIT_POLICY="passive")
    ordinary = environment(home, ATTENTION="0")
    results = interleaved(
        {
            "localchat": through_host,
            "bare loop": lambda: child_json(BARE, env, *rendered)["rate"],
            "bare loop, ordinary attention": lambda: child_json(BARE, ordinary, *rendered)["rate"],
            "bare loop, threads that sleep": lambda: child_json(BARE, passive, *rendered)["rate"],
            "llama_cpp.Llama": lambda: child_json(PEER, env, *words)["rate"],
        },
        rounds,
    )
    if other:
        other.kill()
    subprocess.run(localchat("stop"), env=env, check=True, stdout=subprocess.DEVNULL)
    ratios = [("localchat", name) for name in results if name != "localchat"]
    load = ", one core busy with another program" if busy else ""
    report(f"Decode, {Path(model).name}, {threads} threads, {tokens} tokens{load}", "tokens/s", results, ratios)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 7, "busy" in sys.argv)
