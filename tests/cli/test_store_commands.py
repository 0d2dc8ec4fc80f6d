"""The commands that look after model files, each as a person runs it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import run_cli, start_cli, stop_host, wait_for
from tests.models.conftest import make_gguf
from tests.models.foreign_homes import hub_cache, ollama, put
from tests.terminal import Terminal
from tests.tiny_models import CHATML, LETTERS, write_model


class Machine:
    """A home, a person's folders beside it, and the command."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "localchat"
        self.person = folder / "person"
        self.person.mkdir()
        self.env = {"HOME": str(self.person)}
        for name in ("HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME", "XDG_DATA_HOME", "OLLAMA_MODELS", "LLAMA_CACHE"):
            self.env[name] = ""

    def run(self, *arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
        return run_cli(*map(str, arguments), home=self.home, env=self.env, **options)

    def said(self, *arguments: object, code: int = 0) -> tuple[str, str]:
        """What was written to stdout and to stderr by a run that ends with `code`."""
        done = self.run(*arguments)
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr and "unexpected" not in done.stderr
        return done.stdout, done.stderr

    def terminal(self, *arguments: str, columns: int = 80) -> Terminal:
        return Terminal(*arguments, home=self.home, env=self.env, columns=columns)

    def model(self, seed: int = 1, place: str = "a/b/x-Q8_0.gguf") -> Path:
        """A model that was put into the models folder by hand, and is verified."""
        path = self.home / "models" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        make_gguf(path, seed=seed)
        self.said("verify")
        return path


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """A home of its own; an engine that was started there is ended."""
    made = Machine(tmp_path)
    yield made
    if (made.home / "host.log").exists():
        stop_host(made.home)


def test_import_a_file(machine: Machine) -> None:
    file = machine.person / "My Model.gguf"
    make_gguf(file)
    out, err = machine.said("import", file)
    path = machine.home / "models/local/My-Model/My-Model-Q8_0.gguf"
    assert out == f"local/My-Model is here (25 kB), linked: it takes no extra room.\n  {path}\n"
    assert err == "" and path.samefile(file)
    assert machine.said("import", file)[0].startswith("local/My-Model is here already; nothing was done.\n")
    out, err = machine.said("import", machine.person, code=2)
    assert out == "" and "My Model.gguf" in err
    assert "no file" in machine.said("import", "absent.gguf", code=3)[1]
    assert "not a model" in machine.said("import", put(machine.person / "x.gguf", b"x" * 99), code=8)[1]
    assert "refused the repo" in machine.said("import", file, "--name", "../x", code=2)[1]
    assert "--scan" in machine.said("import", code=2)[1]
    assert "belong to --scan" in machine.said("import", file, "--yes", code=2)[1]


def test_scan_lists_and_takes_in_what_is_chosen(machine: Machine, tmp_path: Path) -> None:
    assert machine.said("import", "--scan") == ("No models of other programs were found.\n", "")
    first = hub_cache(machine.person / ".cache/huggingface/hub", "a/hub", "h-Q8_0.gguf", make_gguf(tmp_path / "s"))
    ollama(machine.person / ".ollama/models", "library/llama3.2/3b", make_gguf(tmp_path / "s", seed=2))
    out, err = machine.said("import", "--scan")
    assert [line.split()[:4] for line in out.splitlines()[1:]] == [
        ["1", "hub", "cache", "a/hub"],
        ["2", "ollama", "llama3.2:3b", "Q8_0"],
    ]
    assert "nothing was taken in" in err and not list(machine.home.rglob("*.gguf"))
    listed = json.loads(machine.said("import", "--scan", "--json")[0])
    assert [(row["name"], row["installed"]) for row in listed] == [("a/hub", None), ("llama3.2:3b", None)]
    terminal = machine.terminal("import", "--scan")
    terminal.read_until("or nothing: ")
    terminal.press(b"7\n")
    terminal.read_until("no new model 7")
    terminal.press(b"llama3.2:3b\n")
    assert terminal.end() == 0
    assert "ollama/llama3.2 is here" in terminal.screen()
    assert not (machine.home / "models/a").exists()
    terminal = machine.terminal("import", "--scan")
    terminal.read_until("or nothing: ")
    terminal.press(b"\n")
    assert terminal.end() == 0
    assert not (machine.home / "models/a").exists()
    assert "a/hub is here" in machine.said("import", "--scan", "--yes")[0]
    assert first.resolve().stat().st_nlink == 2 and first.is_symlink()
    out, _ = machine.said("import", "--scan")
    assert [line.split()[-1] for line in out.splitlines()[1:]] == ["here", "here"]


def test_export_and_import_on_another_machine(machine: Machine, tmp_path: Path) -> None:
    machine.model(place="someone/thing/x-Q8_0.gguf")
    stick = tmp_path / "stick"
    out, err = machine.said("export", "someone/thing", stick)
    copy = stick / "someone/thing/x-Q8_0.gguf"
    assert out == f"someone/thing is copied and verified (1 file, 25 kB).\n  {copy}\n" and err == ""
    assert "there already" in machine.said("export", "someone/thing", stick)[0]
    (tmp_path / "other").mkdir()
    other = Machine(tmp_path / "other")
    assert "someone/thing is here" in other.said("import", copy)[0]
    copy.write_bytes(copy.read_bytes()[:-1] + b"x")
    assert "--force" in machine.said("export", "someone/thing", stick, code=2)[1]
    (tmp_path / "third").mkdir()
    assert "the record beside it" in Machine(tmp_path / "third").said("import", copy, code=8)[1]
    machine.said("export", "someone/thing", stick, "--force")
    machine.said("export", "nothing/such", stick, code=3)


def test_rm_asks_on_a_terminal_and_needs_yes_elsewhere(machine: Machine) -> None:
    path = machine.model()
    out, err = machine.said("rm", "a/b", code=2)
    assert out == "" and "--yes" in err and path.exists()
    for answer in (b"n\n", b"\n", b"what\n"):
        terminal = machine.terminal("rm", "a/b")
        terminal.read_until("Remove it? [y/N] ")
        assert str(path) in terminal.output.decode().replace("\r\n", "")
        terminal.press(answer)
        assert terminal.end() == 0 and path.exists()
    terminal = machine.terminal("rm", "a/b")
    terminal.read_until("Remove it? [y/N] ")
    assert terminal.end(pressing=b"\x03") == 130 and path.exists()
    terminal = machine.terminal("rm", "a/b")
    terminal.read_until("Remove it? [y/N] ")
    terminal.press(b"y\n")
    assert terminal.end() == 0
    assert "a/b is removed (1 file, 28 kB freed)." in terminal.screen() or "freed)." in terminal.screen()
    assert list((machine.home / "models").iterdir()) == []
    assert "no model" in machine.said("rm", "a/b", "--yes", code=3)[1]


def test_rm_says_what_it_frees_and_never_guesses(machine: Machine) -> None:
    file = machine.person / "mine-Q8_0.gguf"
    content = make_gguf(file, seed=4)
    machine.said("import", file)
    machine.model(seed=2, place="a/b/x-Q4_K_M.gguf")
    machine.model(seed=3, place="a/b/x-Q8_0.gguf")
    assert "a/b:q4_k_m" in machine.said("rm", "--yes", "a/b", code=2)[1]
    out, _ = machine.said("rm", "--yes", "local/mine", "a/b:q8_0")
    assert "no room is freed; 25 kB are linked elsewhere too" in out and "a/b:q8_0 is removed" in out
    assert file.read_bytes() == content
    assert [path.name for path in (machine.home / "models").rglob("*.gguf")] == ["x-Q4_K_M.gguf"]


def test_rm_tells_when_the_engine_holds_it(machine: Machine) -> None:
    path = machine.home / "models/a/b/speaks-F32.gguf"
    path.parent.mkdir(parents=True)
    write_model(path, speaks=LETTERS)
    machine.said("verify")
    assert machine.run("ask", "-m", "a/b", "--max-tokens", "2", "hi").returncode == 0
    out, _ = machine.said("rm", "--yes", "a/b")
    assert "localchat stop" in out and not path.exists()
    assert "no model" in machine.run("ask", "-m", "a/b", "--max-tokens", "2", "hi").stderr


def test_a_model_removed_by_hand(machine: Machine) -> None:
    path = machine.model()
    path.unlink()
    assert "no model" in machine.said("show", "a/b", code=3)[1]
    assert "no model" in machine.said("rm", "a/b", "--yes", code=3)[1]
    assert "no model" in machine.run("ask", "-m", "a/b", "hi").stderr
    out, err = machine.said("verify")
    assert out == "No model is installed.\n" and "localchat prune" in err
    out, err = machine.said("prune", "--dry-run")
    assert "record without a file" in out and "a/b/x-Q8_0.gguf.json" in out and "nothing was removed" in err
    assert "--yes" in machine.said("prune")[1]
    machine.said("prune", "--yes")
    assert list((machine.home / "models").iterdir()) == []
    assert machine.said("prune") == ("There is nothing to remove.\n", "")


@pytest.mark.parametrize("fault", ["longer", "other bytes", "other bytes, same time", "wrong record"])
def test_a_record_that_disagrees_with_its_file(machine: Machine, fault: str) -> None:
    path = machine.model()
    status, content = path.stat(), path.read_bytes()
    if fault == "wrong record":
        record = json.loads(Path(f"{path}.json").read_text())
        Path(f"{path}.json").write_text(json.dumps({**record, "sha256": "0" * 64}))
    else:
        path.write_bytes(content + b"x" if fault == "longer" else content[:-1] + b"x")
        if "same time" in fault:
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    out, err = machine.said("verify", "a/b", code=8)
    assert "a/b: DAMAGED" in out and "localchat rm a/b" in err
    (row,) = json.loads(machine.said("verify", "--json", code=8)[0])
    assert row["state"] == "damaged" and row["problem"]
    assert machine.run("ask", "-m", "a/b", "hi").returncode == 8
    assert "verified" in machine.said("show", "a/b")[0]
    machine.said("rm", "a/b", "--yes")
    machine.model()
    assert machine.said("verify", "a/b")[0] == "a/b: ok (x-Q8_0.gguf, 25 kB)\n"


def test_removing_while_another_process_looks_for_it(machine: Machine) -> None:
    """Whoever asks meanwhile gets the model, or the sentence that it is not there; never anything else."""
    content = make_gguf(machine.person / "x.gguf")
    script = f"""
from localchat.errors import NoSuchModel
from localchat.models import records, store
there = gone = 0
print("ready", flush=True)
while min(there, gone) < 100:
    records._remembered.clear()
    try:
        assert store.resolve("a/b").sha256 == {hashlib.sha256(content).hexdigest()!r}
        there += 1
    except NoSuchModel:
        gone += 1
    store.installed()
"""
    environment = {**os.environ, **machine.env, "LOCALCHAT_HOME": str(machine.home)}
    looking = subprocess.Popen([sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, text=True)
    assert looking.stdout and looking.stdout.readline() == "ready\n"
    remover = f"""
from pathlib import Path
from localchat.models import store
from localchat.models.upkeep import housekeeping
from localchat.models.upkeep import importing
while True:
    importing.import_file(Path({str(machine.person / "x.gguf")!r}), repo="a/b")
    housekeeping.remove_model(housekeeping.removal(store.find("a/b")))
"""
    removing = subprocess.Popen([sys.executable, "-c", remover], env=environment, stderr=subprocess.PIPE, text=True)
    try:
        looking.communicate(timeout=60)
        assert looking.returncode == 0
        assert removing.poll() is None, removing.stderr and removing.stderr.read()
    finally:
        removing.kill()
        removing.communicate()
        looking.kill()


def test_prune_leaves_a_running_fetch_alone(machine: Machine) -> None:
    folder = machine.home / "models/a/b"
    put(folder / "x.gguf.partial", b"x" * 100_000)
    put(folder / "x.gguf.partial.json", b"{}")
    put(folder / "y.gguf.damaged", b"y" * 1000)
    put(folder / "mine.txt", b"mine")
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"from pathlib import Path; from localchat.locks import FileLock\n"
            f"FileLock(Path({str(folder / '.x.gguf.lock')!r}), remove=True).acquire()\n"
            "print('held', flush=True); input()",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout and holder.stdout.readline() == "held\n"
        out, err = machine.said("prune", "--yes")
        assert "y.gguf.damaged" in out and "x.gguf" not in out and "being fetched right now" in err
        assert sorted(path.name for path in folder.iterdir()) == [
            ".x.gguf.lock",
            "mine.txt",
            "x.gguf.partial",
            "x.gguf.partial.json",
        ]
    finally:
        holder.kill()
        holder.communicate()
    assert "partly here" in machine.said("rm", "a/b", "--yes", code=3)[1]
    terminal = machine.terminal("prune")
    terminal.read_until("Remove these 3? [y/N] ")
    terminal.press(b"y\n")
    assert terminal.end() == 0 and "kB freed." in terminal.screen()
    assert [path.name for path in folder.iterdir()] == ["mine.txt"]


def test_show_a_model_that_is_here(machine: Machine) -> None:
    path = machine.home / "models/a/b/tiny-F32.gguf"
    path.parent.mkdir(parents=True)
    write_model(path, template="{{ \x1b[31mevil }}")
    out, err = machine.said("show", "a/b")
    assert "installed, to be verified when first used" in out and "not stated" in out
    machine.said("verify")
    out, err = machine.said("show", "a/b")
    lines = dict(line.split(":", 1) for line in out.splitlines())
    assert lines["name"].strip() == "a/b" and lines["sha256"].strip() == hashlib.sha256(path.read_bytes()).hexdigest()
    assert lines["trained context"].strip() == "2,048 tokens" and lines["architecture"].strip() == "llama"
    assert "NOT A KNOWN ONE" in lines["chat template"] and "--template" in err
    out, _ = machine.said("show", "a/b", "--template")
    assert out == "{{ ␛[31mevil }}\n"
    told = json.loads(machine.said("show", "a/b", "--json")[0])
    assert told["template"] == "{{ \x1b[31mevil }}" and told["template_known"] == "" and told["installed"]
    write_model(path, template=None)
    assert "there is no chat template" in machine.said("show", "a/b", "--template", code=1)[1]
    path.write_bytes(b"GGUF")
    out, err = machine.said("show", "a/b")
    assert "DAMAGED" in out and "too short" in err


def test_show_knows_templates(machine: Machine) -> None:
    from localchat.models.upkeep.known_templates import fingerprint, known_as

    table = Path(sys.modules["localchat.models.upkeep.known_templates"].__file__ or "").with_name("known_templates.txt")
    rows = [line.split(" ", 1) for line in table.read_text().splitlines() if not line.startswith("#")]
    assert len(rows) == 70 and all(len(sha256) == 64 and name for sha256, name in rows)
    assert known_as(CHATML) == ""
    assert fingerprint("a  \r\nb\n\n") == fingerprint("a\nb") != fingerprint("a\n b")


def test_a_known_template_is_named(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from localchat.models.upkeep import details, known_templates

    model = write_model(tmp_path / "tiny.gguf", template=CHATML)
    assert details.details(str(model)).template_known == ""
    monkeypatch.setattr(known_templates, "_table", lambda: {known_templates.fingerprint(CHATML + "\n"): "Some-Model"})
    assert details.details(str(model)).template_known == "Some-Model"


def test_show_a_known_template(machine: Machine, starter: Path) -> None:
    out, err = machine.said("show", starter)
    assert "a file outside the models folder" in out and "Q4_1" in out and "Apache-2.0" in out
    shutil.copytree(starter.parents[2], machine.home / "models", copy_function=os.link)
    out, err = machine.said("show", "smollm2-135m")
    assert "the catalogue vouches for this file" in out and err == ""


def test_show_what_is_only_in_the_catalogue(machine: Machine) -> None:
    out, err = machine.said("show", "smollm2-135m")
    assert "not here: can be fetched" in out and "pinned by the catalogue" in out and "98.4 MB" in out and err == ""
    told = json.loads(machine.said("show", "smollm2-135m", "--json")[0])
    assert not told["installed"] and told["size"] == 98_362_432 and told["template"] is None
    assert "is not here" in machine.said("show", "smollm2-135m", "--template", code=1)[1]
    assert "did you mean" in machine.said("show", "smolm2-135m", code=3)[1]


def test_du_counts_each_file_once(machine: Machine, tmp_path: Path) -> None:
    assert "free on this disk" in machine.said("du")[0]
    file = machine.person / "mine-Q8_0.gguf"
    make_gguf(file, seed=4)
    machine.said("import", file)
    machine.model(seed=2)
    put(machine.home / "models/a/b/z.gguf.partial", b"z" * 1_000_000)
    put(machine.home / "host.log", b"x" * 50_000)
    told = json.loads(machine.said("du", "--json")[0])
    lines = {line["name"]: line for line in told["lines"]}
    assert lines["local/mine"]["shared"] and not lines["a/b"]["shared"]
    assert lines["unfinished downloads"]["size"] >= 1_000_000 and lines["host.log"]["size"] >= 50_000
    assert told["total"] == sum(line["size"] for line in told["lines"]) and told["free"] > 0
    again = machine.home / "models/c/d/again-Q8_0.gguf"
    again.parent.mkdir(parents=True)
    os.link(machine.home / "models/a/b/x-Q8_0.gguf", again)
    after = json.loads(machine.said("du", "--json")[0])
    assert after["total"] == told["total"] - lines["a/b"]["size"] + max(
        line["size"] for line in after["lines"] if line["name"] in ("a/b", "c/d")
    )
    out, err = machine.said("du")
    assert "the same file again, not counted" in out and err == ""
    assert max(map(len, out.replace(str(machine.home), "").splitlines())) <= 80


def test_on_a_disk_that_cannot_be_written(machine: Machine) -> None:
    machine.model()
    put(machine.home / "models/a/b/z.gguf.partial", b"z" * 1000)
    put(machine.home / "models/a/b/.z.gguf.lock", b"")
    script = (
        f"mount --bind {machine.home} {machine.home} && mount -o remount,bind,ro {machine.home} && "
        f"touch {machine.home}/probe 2>/dev/null && exit 99; "
        + " && ".join(
            f"{sys.executable} -m localchat {what}" for what in ("show a/b", "verify", "du", "prune --dry-run")
        )
    )
    done = subprocess.run(
        ["unshare", "--mount", "--map-root-user", "--user", "sh", "-c", script],
        env={**os.environ, **machine.env, "LOCALCHAT_HOME": str(machine.home)},
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )
    if "mount" in done.stderr or "unshare" in done.stderr:
        pytest.skip("this system lets nobody mount anything")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "a/b: ok" in done.stdout and "free on this disk" in done.stdout and "z.gguf.partial" in done.stdout


def test_interrupting_an_import_leaves_nothing(machine: Machine) -> None:
    file = machine.person / "big-Q8_0.gguf"
    make_gguf(file, tensor_rows=1 << 18, seed=3)
    running = start_cli("import", str(file), "--copy", home=machine.home, env=machine.env)
    temporary = machine.home / "models/local/big/.big-Q8_0.gguf.import"
    killed = threading.Timer(20, running.kill)
    killed.start()
    try:
        wait_for(lambda: temporary.exists() or running.poll() is not None)
        running.send_signal(2)
        _, err = running.communicate(timeout=20)
    finally:
        killed.cancel()
    assert b"Traceback" not in err
    assert running.returncode in (0, 130)
    left = {path.name for path in (machine.home / "models").rglob("*") if path.is_file()}
    assert left in (set(), {"big-Q8_0.gguf", "big-Q8_0.gguf.json"}) and (running.returncode == 0) == bool(left)
