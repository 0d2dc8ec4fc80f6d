"""`localchat pull` and `localchat models` as a person meets them: the real command against a hub on this machine."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import gguf
import pytest

from localchat import machine
from localchat.models import about, remote, repos, store
from tests.conftest import run_cli, start_cli, stop_host, wait_for
from tests.loopback_hub import LoopbackHub, running_hub
from tests.models.conftest import forget
from tests.tiny_models import LETTERS, write_model

REPO = "someone/Talk-GGUF"


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small model that says letters."""
    return write_model(tmp_path_factory.mktemp("talk") / "talk.gguf", speaks=LETTERS).read_bytes()


@pytest.fixture
def measured(home: Path) -> Path:
    """A home whose machine was measured already."""
    machine.save(machine.guess())
    return home


def write_parts(folder: Path, model: Path) -> list[Path]:
    """The same model in several files, as the reference writer splits one."""
    reader = gguf.GGUFReader(model)
    writer = gguf.GGUFWriter(folder / "talk.gguf", "llama", split_max_tensors=4)
    for field in reader.fields.values():
        if field.name in (gguf.Keys.General.ARCHITECTURE,) or field.name.startswith("GGUF."):
            continue
        kind = field.types[0]
        item = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kind, item)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(folder.glob("talk-*.gguf"))


def test_a_repo_by_name(measured: Path, hub: LoopbackHub, talk: bytes) -> None:
    file = hub.add(REPO, "talk-Q8_0.gguf", talk)
    hub.add(REPO, "README.md", b"hello")
    done = run_cli("pull", REPO, home=measured)
    assert (done.returncode, done.stdout) == (0, "")
    place = measured / "models" / REPO / "talk-Q8_0.gguf"
    assert place.read_bytes() == talk
    record = json.loads(place.with_name(place.name + ".json").read_text())
    assert record["sha256"] == file.sha256 and record["revision"] == file.commit
    assert f"from hub {REPO} to {place.parent}" in done.stderr and "license apache-2.0" in done.stderr
    assert f"localchat: {REPO} is here and verified" in done.stderr
    asked = run_cli("ask", "-m", REPO, "--max-tokens", "3", "hi", home=measured)
    assert asked.returncode == 0 and asked.stdout.strip().isalpha()
    before = len(hub.asked("GET"))
    again = run_cli("pull", f"{REPO}:q8_0", home=measured)
    assert again.returncode == 0 and "was here already and is verified" in again.stderr
    assert not [one for one in hub.asked("GET")[before:] if "/resolve/" in one.path and "range" not in one.headers]
    stop_host(measured)


def test_a_split_model_with_its_projector(measured: Path, hub: LoopbackHub, talk: bytes, tmp_path: Path) -> None:
    whole = tmp_path / "whole.gguf"
    whole.write_bytes(talk)
    parts = write_parts(tmp_path, whole)
    assert len(parts) > 2
    for part in parts:
        hub.add(REPO, f"Q8_0/{part.name.replace('talk', 'talk-Q8_0')}", part.read_bytes())
    hub.add(REPO, "mmproj-talk-F16.gguf", talk)
    done = run_cli("pull", f"{REPO}:Q8_0", home=measured)
    assert done.returncode == 0, done.stderr
    folder = measured / "models" / REPO
    assert len(list(folder.glob("talk-Q8_0-*.gguf"))) == len(parts) and (folder / "mmproj-talk-F16.gguf").is_file()
    asked = run_cli("ask", "-m", f"{REPO}:q8_0", "--max-tokens", "3", "hi", home=measured)
    assert asked.returncode == 0 and asked.stdout.strip().isalpha(), asked.stderr
    listed = json.loads(run_cli("models", "--json", home=measured).stdout)
    (mine,) = [row for row in listed if row["name"] == REPO]
    assert mine["installed"] and mine["verified"] and mine["size"] == sum(part.stat().st_size for part in parts)
    assert mine["fits"] == "yes" and mine["memory"] > mine["size"]
    stop_host(measured)


def test_an_incomplete_split_model_is_not_seen_as_one(
    measured: Path, hub: LoopbackHub, talk: bytes, tmp_path: Path
) -> None:
    whole = tmp_path / "whole.gguf"
    whole.write_bytes(talk)
    parts = write_parts(tmp_path, whole)
    for part in parts:
        hub.add(REPO, part.name, part.read_bytes())
    hub.bytes_per_second = 20_000
    running = start_cli("pull", REPO, home=measured)
    folder = measured / "models" / REPO
    wait_for(lambda: (folder / parts[-1].name).is_file(), 60)
    running.send_signal(signal.SIGKILL)
    running.wait()
    forget()
    assert store.installed() == []
    hub.bytes_per_second = None
    assert run_cli("pull", REPO, home=measured).returncode == 0
    forget()
    assert [model.name for model in store.installed()] == [REPO]


def test_the_plan_alone(measured: Path, hub: LoopbackHub, talk: bytes) -> None:
    hub.add(REPO, "talk-Q8_0.gguf", talk)
    done = run_cli("pull", "--dry-run", REPO, home=measured)
    assert done.returncode == 0 and done.stderr == "" and f"{REPO}:q8_0" in done.stdout and "it fits" in done.stdout
    assert not (measured / "models").exists()
    (plan,) = json.loads(run_cli("pull", "--dry-run", "--json", REPO, home=measured).stdout)
    assert plan["quantization"] == "Q8_0" and plan["size"] == len(talk) and plan["fits"] == "yes"
    assert plan["files"][0]["sources"] == [f"hub {REPO}"] and not plan["installed"]


def test_what_cannot_fit_is_refused_before_a_byte_of_it_moves(measured: Path, hub: LoopbackHub, talk: bytes) -> None:
    hub.add(REPO, "talk-Q8_0.gguf", talk)
    done = run_cli("pull", "--context", "2000000000", REPO, home=measured)
    # The window is never larger than the model was made for.
    assert done.returncode == 0, done.stderr
    big = "someone/Big-GGUF"
    hub.add(big, "big-Q4_K_M.gguf", talk)
    hub.sizes[big, "big-Q4_K_M.gguf"] = 10**13
    refused = run_cli("pull", big, home=measured)
    assert refused.returncode == 5 and "GB with a context of" in refused.stderr and "--force" in refused.stderr
    assert not (measured / "models" / big).exists()
    forced = run_cli("pull", "--force", big, home=measured)
    assert forced.returncode == 4 and "bytes" in forced.stderr  # it was tried, and the sizes did not agree


def test_a_gated_repo_says_how_to_get_in(measured: Path, hub: LoopbackHub, talk: bytes) -> None:
    hub.add(REPO, "talk-Q8_0.gguf", talk)
    hub.gated.add(REPO)
    hub.token = "right"
    done = run_cli("pull", REPO, home=measured)
    assert done.returncode == 4 and "licence accepted first" in done.stderr and "HF_TOKEN" in done.stderr
    wrong = run_cli("pull", REPO, home=measured, env={"HF_TOKEN": "wrong"})
    assert wrong.returncode == 4 and "refused the token" in wrong.stderr and "wrong" not in wrong.stderr.split()
    right = run_cli("pull", REPO, home=measured, env={"HF_TOKEN": "right"})
    assert right.returncode == 0, right.stderr


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("someone/Nothing", 3, "has no repo someone/Nothing"),
        (f"{REPO}:Q2_K", 3, "has no quantization Q2_K: it has Q8_0"),
        (f"{REPO}@v9", 3, "has no revision v9"),
        ("someone/Words", 3, "has no GGUF model"),
        ("smollm2-135x", 3, "did you mean smollm2-135m"),
        ("smollm2-135m:q9", 3, "choose from q4_1"),
        ("../../etc/passwd", 3, "there is no"),
        ("some one/Else", 2, "refused the repo"),
        ("http://example.org/x.gguf", 4, "only https"),
    ],
)
def test_names_that_lead_nowhere(
    measured: Path, hub: LoopbackHub, talk: bytes, name: str, code: int, said: str
) -> None:
    hub.add(REPO, "talk-Q8_0.gguf", talk)
    hub.add("someone/Words", "README.md", b"words")
    done = run_cli("pull", name, home=measured)
    assert (done.returncode, done.stdout) == (code, "") and said in done.stderr and done.stderr.count("\n") == 1


def test_a_web_address(measured: Path, talk: bytes) -> None:
    with running_hub() as server:
        file = server.add("any/where", "talk-Q8_0.gguf", talk)
        address = f"{server.url}/any/where/resolve/main/talk-Q8_0.gguf"
        wrong = run_cli("pull", "--sha256", "0" * 64, address, home=measured)
        assert wrong.returncode == 4 and "sha256" in wrong.stderr
        done = run_cli("pull", address, home=measured)
        assert done.returncode == 0, done.stderr
        (place,) = (measured / "models").glob("web/*/talk-Q8_0.gguf")
        assert place.read_bytes() == talk
        assert json.loads(Path(f"{place}.json").read_text())["sha256"] == file.sha256


def test_an_address_that_promises_no_hash(measured: Path, talk: bytes) -> None:
    with running_hub() as server:
        file = server.add("any/where", "talk-Q8_0.gguf", talk)
        server.plain = True
        done = run_cli("pull", f"{server.url}/any/where/resolve/main/talk-Q8_0.gguf", home=measured)
        assert done.returncode == 0, done.stderr
        (place,) = (measured / "models").glob("web/*/talk-Q8_0.gguf")
        assert json.loads(Path(f"{place}.json").read_text())["sha256"] == file.sha256


def test_offline_means_no_request_at_all(measured: Path, hub: LoopbackHub, talk: bytes) -> None:
    hub.add(REPO, "talk-Q8_0.gguf", talk)
    for arguments in (
        ("pull", "--offline", REPO),
        ("--offline", "pull", "smollm2-135m"),
        ("models", "--search", "x", "--offline"),
    ):
        done = run_cli(*arguments, home=measured)
        assert done.returncode == 4 and "stay offline" in done.stderr, arguments
    assert run_cli("models", "--offline", home=measured).returncode == 0
    assert hub.requests == []


def test_search_shows_what_would_fit(measured: Path, hub: LoopbackHub, talk: bytes) -> None:
    hub.add(REPO, "talk-Q8_0.gguf", talk)
    hub.add("other/Thing-GGUF", "thing-Q4_K_M.gguf", talk)
    hub.add("other/Words", "README.md", b"words")
    rows = json.loads(run_cli("models", "--search", "talk", "--json", home=measured).stdout)
    assert [(row["name"], row["quantization"], row["fits"]) for row in rows] == [(REPO, "Q8_0", "yes")]
    assert rows[0]["memory"] > len(talk) and not rows[0]["estimated"]
    shown = run_cli("models", "--search", "gguf", home=measured).stdout
    assert REPO in shown and "other/Thing-GGUF" in shown and "other/Words" not in shown
    assert "no GGUF model that matches" in run_cli("models", "--search", "zzz", home=measured).stdout


def test_a_hub_that_cannot_be_reached_is_one_sentence(measured: Path) -> None:
    for command in (("models", "--search", "x"), ("pull", REPO)):
        done = run_cli(*command, home=measured, env={"HF_ENDPOINT": "http://127.0.0.1:1"})
        assert (done.returncode, done.stdout) == (4, "") and "cannot be reached" in done.stderr
        assert done.stderr.count("\n") == 1, done.stderr


def test_of_several_names_a_wrong_one_is_found_first(measured: Path, hub: LoopbackHub, talk: bytes) -> None:
    hub.add(REPO, "talk-Q8_0.gguf", talk)
    done = run_cli("pull", REPO, "nonsense", home=measured)
    assert done.returncode == 3 and not list(measured.rglob("*.gguf*"))
    done = run_cli("pull", REPO, "--json", home=measured)
    assert json.loads(done.stdout)[0]["installed"]


def test_a_damaged_file_is_fetched_again(measured: Path, hub: LoopbackHub, talk: bytes) -> None:
    hub.add(REPO, "talk-Q8_0.gguf", talk)
    assert run_cli("pull", REPO, home=measured).returncode == 0
    assert "was here already" in run_cli("pull", REPO, home=measured).stderr
    (place,) = measured.rglob("talk-Q8_0.gguf")
    place.write_bytes(talk[:-1] + b"x")
    done = run_cli("pull", REPO, home=measured)
    assert done.returncode == 0 and "is damaged" in done.stderr and "was here already" not in done.stderr
    assert place.read_bytes() == talk


def test_the_header_of_a_remote_file_costs_a_part_of_it(home: Path, hub: LoopbackHub, starter: Path) -> None:
    content = starter.read_bytes()
    hub.add(REPO, "starter-Q4_1.gguf", content)
    found = remote.about(repo := repos.listing(REPO), repo.files[0])
    known = about.of_files([starter])[starter]
    assert found and found.shape == known.shape and found.architecture == "llama"
    (get,) = [request for request in hub.asked("GET") if "/resolve/" in request.path]
    start, end = get.headers["range"].removeprefix("bytes=").split("-")
    assert int(end) - int(start) < 300_000


def test_headers_are_read_once(home: Path, talk: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = home / "models" / REPO
    folder.mkdir(parents=True)
    (folder / "talk-Q8_0.gguf").write_bytes(talk)
    first = about.of_files([folder / "talk-Q8_0.gguf"])
    assert first
    monkeypatch.setattr("localchat.models.gguf.read_header", lambda path: pytest.fail("read again"))
    assert about.of_files([folder / "talk-Q8_0.gguf"]) == first
    (home / "headers.json").write_text("{broken")
    monkeypatch.undo()
    assert about.of_files([folder / "talk-Q8_0.gguf"]) == first


def test_the_catalogue_shows_one_row_a_model_or_all(measured: Path) -> None:
    rows = json.loads(run_cli("models", "--json", home=measured).stdout)
    names = [row["name"].partition(":")[0] for row in rows]
    assert len(names) == len(set(names)) and "smollm2-135m" in names
    every = json.loads(run_cli("models", "--all", "--json", home=measured).stdout)
    assert len(every) >= len(rows)
    recommended = [row for row in rows if row["recommended"]]
    assert len(recommended) <= 1
    text = run_cli("models", home=measured).stdout
    assert "FITS" in text and "tokens are free" not in text and "are free now" in text


def test_a_catalogue_entry_with_a_typo(measured: Path) -> None:
    (measured / "models.toml").write_text(
        '[[model]]\nname = "mine"\nfamily = "M"\nparameters = 1\nlicense = "MIT"\nabilities = ["chatt"]\n'
        'quantization = [{ name = "q8_0", file = "a.gguf", source = [{ kind = "hub", repo = "a/b" }] }]\n'
    )
    for command in (("models",), ("pull", "mine")):
        done = run_cli(*command, home=measured)
        assert done.returncode == 2
        assert "models.toml, line 6, key model[mine].abilities[1]" in done.stderr and "chatt" in done.stderr
