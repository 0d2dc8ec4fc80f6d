"""Anonymous memory after reading 2,000 tokens with a window of 4,096: the whole host against a bare `llama_cpp.Llama`.

Anonymous means without file-backed pages (the mapped weights), summed over the process and its children (Linux only).
`python benchmarks/memory.py [MODEL.gguf …]`; without arguments, the starter.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from common import NO_AMX, environment, home_with_starter, localchat, machine

WORDS = "word " * 1990

PEER = (
    NO_AMX
    + """
import json, sys
from llama_cpp import Llama
llama = Llama(sys.argv[1], n_ctx=4096, verbose=False)
llama.create_completion(sys.argv[2], max_tokens=1)
read = {line.split(":")[0]: int(line.split()[1]) for line in open("/proc/self/smaps_rollup").read().splitlines()[1:]}
print(json.dumps({"anonymous": read["Anonymous"] / 1024, "tokens": llama.n_tokens}))
"""
)


def anonymous(pid: int) -> float:
    """MiB of anonymous memory of a process and all that it started."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    total = next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:")) / 1024
    for thread in Path(f"/proc/{pid}/task").iterdir():
        for child in (thread / "children").read_text().split():
            total += anonymous(int(child))
    return total


def main(models: list[str]) -> None:
    home, starter = home_with_starter()
    env = environment(home)
    print(f"\n### Anonymous memory after reading 2,000 tokens, window 4,096\n\n{machine()}\n")
    print("| model | localchat host, MiB | llama_cpp.Llama, MiB | ratio |\n|---|---|---|---|")
    for model in models or [str(starter)]:
        subprocess.run(localchat("stop"), env=env, check=True, stdout=subprocess.DEVNULL)
        ask = localchat("ask", "-m", model, "-o", "context", "4096", "--max-tokens", "1", "--json", WORDS)
        tokens = json.loads(subprocess.run(ask, env=env, check=True, stdout=subprocess.PIPE).stdout)["usage"]
        status = json.loads(subprocess.run(localchat("status", "--json"), env=env, stdout=subprocess.PIPE).stdout)
        ours = anonymous(status["pid"])
        done = subprocess.run([sys.executable, "-c", PEER, model, WORDS], env=env, stdout=subprocess.PIPE, check=True)
        theirs = json.loads(done.stdout.splitlines()[-1])["anonymous"]
        name = f"{Path(model).name} ({tokens['prompt_tokens']} tokens)"
        print(f"| {name} | {ours:.0f} | {theirs:.0f} | {ours / theirs:.2f} |")
    subprocess.run(localchat("stop"), env=env, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main(sys.argv[1:])
