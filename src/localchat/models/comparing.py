"""A model in its quantizations, side by side: what each would do on this machine.

Speeds come from the machine's measured kernels, multiplied by what the model itself was faster or slower than promised
where it was tried here; a quantization that was tried has its own.
"""

from __future__ import annotations

import msgspec

from localchat import trials
from localchat.models import about, fit, store
from localchat.models.assess import Circumstances, assess, corrected, quality
from localchat.models.fit import Speed, Verdict, Weights
from localchat.models.shape import Shape
from localchat.models.store import ModelFile
from localchat.trials import Speeds

_USUAL = ("q4_0", "iq4_nl", "q4_1", "q4_k_m", "q5_k_m", "q6_k", "q8_0")
"""What is shown beside those that the catalogue has."""

_FASTER = 1.1
"""By how much another quantization must shorten a turn to be worth its download."""
_QUALITY_KEPT = 0.85
"""The share of its bits a weight that a faster quantization must keep, so that its answers are nearly the same."""


class Compared(msgspec.Struct, frozen=True, kw_only=True):
    """One quantization. `size` is bytes, speeds are tokens/s; `measured` with this very file rather than predicted.

    `pull` is the name that fetches it ("": the catalogue has none).
    """

    label: str
    size: int
    prefill: float | None
    decode: float | None
    measured: bool = False
    is_this: bool = False
    fits: Verdict | None = None
    pull: str = ""

    @property
    def turn(self) -> float | None:
        """Seconds of a usual turn: a question with some context, and an answer."""
        if not self.decode or not self.prefill:
            return None
        return trials.turn_seconds(self.prefill, self.decode)


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """A model that is tried: its file, and what its header says. `key` is what findings about it are kept under.

    `entry` is the catalogue's name for it; `predicted` is what the kernels promise, `moved` the bytes that one token of
    an answer reads. All that stands on the header is missing where that does not tell a model's shape.
    """

    file: ModelFile
    key: str
    entry: str = ""
    shape: Shape | None = None
    weights: Weights = {}
    parameters: int = 0
    trained: int = 0
    predicted: Speed = Speed(None, None)
    gpu_layers: int = 0


def subject(file: ModelFile, circumstances: Circumstances) -> Subject:
    """What must be known of a model to try it."""
    facts = about.of_files([file.path]).get(file.path)
    hit = store.known_as(file)
    key = trials.key_of(file.sha256, file.path, file.size)
    entry = hit[0].name if hit else ""
    if not facts or not facts.shape:
        return Subject(file=file, key=key, entry=entry)
    how = assess(
        circumstances,
        label=file.quantization,
        size=file.size,
        shape=facts.shape,
        trained=facts.context or None,
        weights=facts.weights,
    )
    return Subject(
        file=file,
        key=key,
        entry=entry,
        shape=facts.shape,
        weights=facts.weights,
        parameters=facts.parameters,
        trained=facts.context,
        predicted=how.best_speed,
        gpu_layers=how.gpu.layers if how.gpu else 0,
    )


def quantizations(one: Subject, circumstances: Circumstances) -> list[Compared]:
    """The model's own, those that the catalogue offers and the usual ones; the one that answers fastest comes first."""
    if not one.shape:
        return []
    kept = trials.of_model(one.key)
    ratio = _ratio(one, kept.speeds if kept else None) or trials.correction(one.entry)
    hit = store.known_as(one.file)
    offers = {each.name: each for each in hit[0].quantization} if hit else {}
    mine = (hit[1].name if hit else one.file.quantization.lower()) or "?"
    found = []
    for name in dict.fromkeys((mine, *offers, *_USUAL)):
        offer = offers.get(name)
        size = one.file.size if name == mine else (offer and offer.size) or fit.typical_size(name, one.parameters)
        # Predictions are compared with predictions that stand on the same: the usual mix of each label.
        how = assess(
            circumstances,
            label=name.upper(),
            size=size,
            shape=one.shape,
            trained=one.trained or None,
            weights=one.weights if name == mine else None,
            kept=kept if name == mine else trials.of_model(offer.sha256) if offer and offer.sha256 else None,
        )
        speed = how.best_speed if how.measured else corrected(how.best_speed, ratio)
        found.append(
            Compared(
                label=name.upper(),
                size=size,
                prefill=speed.prefill,
                decode=speed.decode,
                measured=how.measured,
                is_this=name == mine,
                fits=how.fits,
                pull=f"{one.entry}:{name}" if offer and name != mine else "",
            )
        )
    return sorted(found, key=lambda each: -(each.decode or 0))


def better(found: list[Compared]) -> Compared | None:
    """The quantization that can be pulled and would be clearly faster here at nearly the same quality; None: none."""
    mine = next((one for one in found if one.is_this), None)
    if not mine or not mine.turn:
        return None
    most, least = mine.turn / _FASTER, quality(mine.label) * _QUALITY_KEPT
    there = [one for one in found if one.pull and one.fits != "no" and quality(one.label) >= least]
    faster = [one for one in there if one.turn and one.turn < most]
    return min(faster, key=lambda one: one.turn or 0.0, default=None)


def _ratio(one: Subject, speeds: Speeds | None) -> Speeds | None:
    """What the model did, against what was predicted for it: as it is, however far off, or another quantization would
    seem faster only because its correction ended earlier.
    """
    if not speeds or not one.predicted.decode or not one.predicted.prefill:
        return None
    return Speeds(speeds.prefill / one.predicted.prefill, speeds.decode / one.predicted.decode)
