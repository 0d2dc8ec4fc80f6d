from __future__ import annotations

from pathlib import Path

import pytest

from localchat.errors import DoesNotFit, FetchError, NoSuchModel, UsageError
from localchat.machine import guess
from localchat.models import plan
from localchat.models.assess import Assessment, Circumstances, assess, choose, quality
from localchat.models.catalogue import catalogue
from localchat.models.fit import Memory, Speed
from localchat.models.repos import RemoteFile, Repo
from tests.loopback_hub import COMMIT, LoopbackHub

GB = 10**9


def circumstances(available: int = 8 * GB) -> Circumstances:
    return Circumstances(guess(), available, 4096)


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("owner/repo", ("owner/repo", "main", "", "")),
        ("owner/repo:Q4_K_M", ("owner/repo", "main", "Q4_K_M", "")),
        ("owner/repo@v1.0", ("owner/repo", "v1.0", "", "")),
        ("owner/repo@v1.0:q8_0", ("owner/repo", "v1.0", "q8_0", "")),
        ("owner/repo@refs/pr/1", ("owner/repo", "refs/pr/1", "", "")),
        ("owner/repo:q8_0@v1.0", ("owner/repo", "v1.0", "q8_0", "")),
        ("owner/repo/sub/file.gguf", ("owner/repo", "main", "", "sub/file.gguf")),
        ("hf.co/owner/repo:q4_0", ("owner/repo", "main", "q4_0", "")),
        ("https://huggingface.co/owner/repo", ("owner/repo", "main", "", "")),
        ("https://huggingface.co/owner/repo/tree/v2", ("owner/repo", "v2", "", "")),
        ("https://hf.co/owner/repo/blob/main/a%20b/f.gguf?x=1", ("owner/repo", "main", "", "a b/f.gguf")),
        ("https://huggingface.co/owner/repo/resolve/main/f.gguf", ("owner/repo", "main", "", "f.gguf")),
        ("https://elsewhere.example/owner/repo", ("", "main", "", "")),
        ("word", ("", "main", "", "")),
        ("./owner", ("", "main", "", "")),
        ("../file.gguf", ("", "main", "", "")),
        ("~/file.gguf", ("", "main", "", "")),
    ],
)
def test_what_of_a_hub_a_name_means(name: str, place: tuple[str, str, str, str]) -> None:
    assert plan._of_hub(name) == place


@pytest.mark.parametrize(
    "name", ["owner/re po", "owner/..", "o/r@../../etc", "con/repo", "o/r@a//b", "owner/repo\x1b[31m"]
)
def test_hostile_names_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="refused"):
        plan._of_hub(name)


def repo_with(*files: str | tuple[str, int], **fields: object) -> Repo:
    sized = [(file, 10**6) if isinstance(file, str) else file for file in files]
    return Repo("o/r", COMMIT, tuple(RemoteFile(path, size, "a" * 64) for path, size in sized), **fields)  # type: ignore[arg-type]


def test_offers_group_parts_and_leave_out_what_is_no_model() -> None:
    repo = repo_with(
        "m-Q4_K_M.gguf",
        "Q8_0/m-Q8_0-00002-of-00002.gguf",
        "Q8_0/m-Q8_0-00001-of-00002.gguf",
        "m-Q6_K-00001-of-00003.gguf",  # its siblings are missing
        "mmproj-m-F16.gguf",
        "m.imatrix.gguf",
        "BF16/m-00001-of-00001.gguf",
        "evil name.gguf",
        "../up.gguf",
    )
    found = {offer.label: [part.path for part in offer.parts] for offer in plan.offers(repo)}
    assert found == {
        "Q4_K_M": ["m-Q4_K_M.gguf"],
        "Q8_0": ["Q8_0/m-Q8_0-00001-of-00002.gguf", "Q8_0/m-Q8_0-00002-of-00002.gguf"],
        "BF16": ["BF16/m-00001-of-00001.gguf"],
    }


def test_the_quantization_that_is_asked_for(home: Path, hub: LoopbackHub) -> None:
    repo = repo_with("m-Q4_K_M.gguf", "m-Q8_0.gguf", license="mit")
    made = plan.of_repo(repo, circumstances(), label="q8_0")
    assert (made.name, made.label, made.size, made.license) == ("o/r:q8_0", "Q8_0", 10**6, "mit")
    assert [str(file.place) for file in made.files] == ["o/r/m-Q8_0.gguf"]
    with pytest.raises(NoSuchModel, match="no quantization Q2_K: it has Q4_K_M, Q8_0"):
        plan.of_repo(repo, circumstances(), label="Q2_K")
    with pytest.raises(NoSuchModel, match=r"no model x\.gguf: it has m-Q4_K_M\.gguf, m-Q8_0\.gguf"):
        plan.of_repo(repo, circumstances(), file="x.gguf")


def test_a_projector_comes_along(home: Path, hub: LoopbackHub) -> None:
    repo = repo_with("m-Q4_K_M.gguf", "mmproj-BF16.gguf", "mmproj-F16.gguf", "mmproj-F32.gguf")
    made = plan.of_repo(repo, circumstances())
    assert [str(file.place) for file in made.files] == ["o/r/m-Q4_K_M.gguf", "o/r/mmproj-F16.gguf"]


def test_several_models_in_one_repo_must_be_told_apart(home: Path, hub: LoopbackHub) -> None:
    repo = repo_with("small-Q8_0.gguf", "large-Q8_0.gguf")
    with pytest.raises(UsageError, match=r"several models \(small-Q8_0.gguf, large-Q8_0.gguf\): name one"):
        plan.of_repo(repo, circumstances())
    made = plan.of_repo(repo, circumstances(), file="large-Q8_0.gguf")
    assert str(made.files[0].place) == "o/r/large-Q8_0.gguf"


def test_a_repo_without_a_model(home: Path, hub: LoopbackHub) -> None:
    with pytest.raises(NoSuchModel, match="has no GGUF model: look for one"):
        plan.of_repo(repo_with("mmproj-F16.gguf"), circumstances())


def speeds(decode: float | None, prefill: float | None, fits: str = "yes") -> Assessment:
    return Assessment(Memory(1, 1, 1), fits, Speed(decode, prefill), 4096)  # type: ignore[arg-type]


def test_where_everything_is_fast_quality_decides() -> None:
    quick = speeds(50, 500)
    chosen = choose([(1, "Q4_K_M", quick), (2, "Q8_0", quick), (3, "F16", quick), (4, "Q6_K", quick)])
    assert chosen is not None and chosen[0] == 2


def test_where_speed_counts_the_fastest_of_four_bits_is_taken() -> None:
    chosen = choose([(1, "Q8_0", speeds(4, 40)), (2, "Q4_K_M", speeds(8, 30)), (3, "IQ4_NL", speeds(8, 120))])
    assert chosen is not None and chosen[0] == 3 and "fastest" in chosen[1]
    close = choose([(1, "Q4_K_M", speeds(8, 60)), (2, "Q4_0", speeds(8.2, 61))])
    assert close is not None and close[0] == 1  # no faster to speak of, and the better quality


def test_what_fits_goes_before_what_fits_tightly_or_not() -> None:
    chosen = choose([(1, "Q4_K_M", speeds(8, 60, "no")), (2, "Q3_K_M", speeds(8, 60, "yes"))])
    assert chosen is not None and chosen[0] == 2 and "fewer than four bits" in chosen[1]
    tight = choose([(1, "Q4_K_M", speeds(8, 60, "tight")), (2, "Q8_0", speeds(8, 60, "no"))])
    assert tight is not None and tight[0] == 1 and "tightly" in tight[1]
    assert choose([(1, "Q4_K_M", speeds(8, 60, "no"))]) is None


def test_every_quantization_that_the_catalogue_names_has_a_place_in_the_order() -> None:
    assert [one.label for _, one in catalogue().files() if not quality(one.label)] == []


def test_what_does_not_fit_is_refused_with_both_figures(home: Path) -> None:
    entry = catalogue().starter
    made = plan.of_entry(entry, None, circumstances(available=50 * 10**6))
    with pytest.raises(DoesNotFit, match=r"needs 0\.[2-9] GB with a context of 4,096 tokens and 0\.1 GB are free"):
        made.check_fit()
    plan.of_entry(entry, None, circumstances()).check_fit()


def test_an_unknown_size_is_estimated_and_says_so() -> None:
    how = assess(circumstances(), label="Q4_K_M", size=None, shape=None, parameters=4 * GB)
    assert how.estimated and how.memory and 2 * GB < how.memory.weights < 3 * GB and how.fits == "yes"
    nothing = assess(circumstances(), label="Q4_K_M", size=None, shape=None)
    assert nothing.memory is None and nothing.fits is None


def test_names_that_mean_nothing(home: Path) -> None:
    with pytest.raises(NoSuchModel, match="did you mean smollm2-135m"):
        plan.make("smollm2-135", circumstances())
    with pytest.raises(NoSuchModel, match=r'no quantization "q9": choose from q4_1'):
        plan.make("smollm2-135m:q9", circumstances())
    with pytest.raises(NoSuchModel, match=r'no file "file\.gguf"'):
        plan.make("file.gguf", circumstances())
    file = home / "file.gguf"
    file.touch()
    with pytest.raises(UsageError, match="localchat import"):
        plan.make(str(file), circumstances())


def test_two_models_of_one_quantization_go_by_their_files() -> None:
    several = repo_with("a-Q8_0.gguf", "b-Q8_0.gguf")
    assert plan.of_repo(several, circumstances(), file="b-Q8_0.gguf").name == "o/r/b-Q8_0.gguf"


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("http://example.org/a.gguf", FetchError),
        ("https://example.org/a.bin", UsageError),
        ("https://example.org/", UsageError),
        ("https://example.org/a-00001-of-00002.gguf", UsageError),
        ("ftp://example.org/a.gguf", FetchError),
    ],
)
def test_addresses_that_cannot_be_fetched(home: Path, url: str, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        plan.make(url, circumstances())


def test_offline_the_hub_is_not_asked(home: Path, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALCHAT_OFFLINE", "1")
    with pytest.raises(FetchError, match="stay offline"):
        plan.make("o/r", circumstances())
    assert hub.requests == []
