"""Finds how the engine computes fastest with one model: the threads, the micro-batch, flash attention.

One setting after the other is compared with what the engine does by itself, in turns; what gains less than `NOISE` is
not taken. At the end what was found is measured against the engine's own choice once more, and that decides.

A KV cache of 8 bits is measured, and taken only where a person asked for it: it rounds what the model remembers, and
no speed is worth an answer that is worse. Without flash attention the compute buffers grow with the window, so it is
only tried with micro-batches that keep them small.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from msgspec.structs import replace

from localchat.engine.stopwatch import Stopwatch
from localchat.engine.trial import Pace, Trial, now
from localchat.errors import DoesNotFit, EngineFailed
from localchat.trials import Tried, Tuned, Turn, turn_seconds
from localchat.tuning import MICRO_BATCH, Tuning, scores_bytes

NOISE = 1.03
"""A gain below this is none: two runs of the same differ by as much."""

MICRO_BATCHES = (64, 128, 256, 512, 1024)

_DEPTH = 2048
"""Tokens in the window at which KV caches and flash attention are compared: that is where they count."""
_LARGE_WINDOW, _ATTENTION_BYTES = 8192, 128 << 20
"""What may be written down of the attention in a window of so many tokens: no more than the engine keeps free."""
_CLOSE = 0.9  # of the best: what is slower than that in a first round is not tried again
_STAGES = 4
_READ_S, _ANSWER_S = 3.5, 1.2


@dataclass
class _Runs:
    """What one candidate did, round by round, in tokens/s."""

    prefill: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)

    deep: list[float] = field(default_factory=list)

    def turn(self, depth: int) -> Turn:
        deep = median(self.deep) if self.deep else None
        return Turn(median(self.prefill), median(self.decode), depth if deep else 0, deep)


class Tuner:
    """The best settings so far, and everything that was tried."""

    def __init__(self, trial: Trial) -> None:
        self._trial = trial
        self._tried: list[Tried] = []
        self._room = min(_DEPTH + 512, trial.model.n_ctx_train, trial.largest)
        self.best = Tuning(kv_type=None if trial.order.kv_type == "f16" else trial.order.kv_type)

    def find(self) -> Tuned:
        """Compare everything. Raises `DoesNotFit`, `EngineFailed`."""
        self._trial.plan(_STAGES)
        with self._trial.stopwatch(self._window(), self.best) as stopwatch:
            self._pace = Pace(stopwatch, self._room, self._trial.order.quick)
            self._has_flash_attention = stopwatch.context.tuning.flash_attention is not False
            self._threads(stopwatch)
        self._micro_batches()
        self._attention()
        before, after = self._verdict()
        return Tuned(
            tuning=self.best,
            before=before,
            after=after,
            tried=tuple(self._tried),
            others=self._trial.others,
            gpu_layers=self._trial.gpu_layers,
            measured=now(),
        )

    def _window(self) -> int:
        return max(256, self._room)

    def _threads(self, stopwatch: Stopwatch) -> None:
        """As many threads as answer fastest, and as many as read fastest."""
        counts, most = self._trial.thread_counts(), self._trial.order.threads
        if len(counts) == 1:
            return
        runs = {count: _Runs() for count in counts}
        for _ in self._trial.rounds(len(counts)):
            for count, run in runs.items():
                self._trial.step(f"{count} thread{'s'[: count != 1]}")
                stopwatch.context.use_threads(count, count)
                self._run(stopwatch, run, slowed=count / most)
        answering = _fastest({count: run.decode for count, run in runs.items()}, most)
        reading = _fastest({count: run.prefill for count, run in runs.items()}, most)
        self._tried += [
            Tried(
                setting="threads", value=str(count), prefill=median(run.prefill), decode=median(run.decode),
                is_default=count == most, taken=most != count in (answering, reading),
            )
            for count, run in runs.items()
        ]  # fmt: skip
        self.best = replace(
            self.best,
            decode_threads=None if answering == most else answering,
            prefill_threads=None if reading == most else reading,
        )

    def _micro_batches(self) -> None:
        """As many tokens at once as read fastest; those that are far behind in a first round drop out."""
        # A micro-batch that is larger than what is read is no other than one of that size.
        tokens = self._pace.read(_READ_S, most=1024)
        sizes = [one for one in MICRO_BATCHES if one <= max(tokens, MICRO_BATCH) and one <= self._window()]
        sizes = [one for one in sizes if one == MICRO_BATCH or one <= tokens]
        if self._trial.order.quick:
            sizes = [one for one in sizes if one in (128, MICRO_BATCH)]
        # In a window that is smaller, the usual one is no larger than that.
        if len(sizes) < 2 or MICRO_BATCH not in sizes:
            return
        runs: dict[int, list[float]] = {one: [] for one in sizes}
        for _ in self._trial.rounds(len(sizes)):
            best = max(median(rates) for rates in runs.values()) if all(runs.values()) else 0.0
            for size, rates in runs.items():
                self._trial.step(f"micro-batch {size}")
                if rates and size != MICRO_BATCH and median(rates) < best * _CLOSE:
                    continue
                with self._trial.stopwatch(self._window(), self._with_micro_batch(size)) as stopwatch:
                    rates.append(stopwatch.read(tokens))
        chosen = _fastest(runs, MICRO_BATCH)
        self._tried += [
            Tried(
                setting="micro-batch", value=str(size), prefill=median(rates), is_default=size == MICRO_BATCH,
                taken=MICRO_BATCH != size == chosen,
            )
            for size, rates in runs.items()
        ]  # fmt: skip
        self.best = self._with_micro_batch(chosen)

    def _with_micro_batch(self, size: int) -> Tuning:
        return replace(self.best, micro_batch=None if size == MICRO_BATCH else size)

    def _attention(self) -> None:
        """Flash attention and the kinds of KV cache, once some text is in the window."""
        kv_type = self.best.kv_type or "f16"
        candidates: dict[tuple[str, str], Tuning] = {("kv cache", kv_type): self.best}
        if kv_type == "f16":
            # The other one than the engine takes by itself here.
            if self._has_flash_attention:
                candidates["flash attention", "off"] = self._without_flash_attention()
            else:
                candidates["flash attention", "on"] = replace(self.best, flash_attention=True)
            candidates["kv cache", "q8_0"] = replace(self.best, kv_type="q8_0")
        else:
            candidates["kv cache", "f16"] = replace(self.best, kv_type=None)
        runs = {one: _Runs() for one in candidates}
        depth = 0
        for _ in self._trial.rounds(len(candidates)):
            for one, tuning in candidates.items():
                self._trial.step(" ".join(one))
                try:
                    with self._trial.stopwatch(self._window(), tuning) as stopwatch:
                        depth = self._depth(stopwatch)
                        self._run(stopwatch, runs[one], depth=depth)
                except (EngineFailed, DoesNotFit):
                    # Not every model can have every kind; that it can have this one was seen.
                    if tuning == self.best:
                        raise
        mine = _turn(runs["kv cache", kv_type].turn(0))
        for one, run in runs.items():
            if not run.decode:
                continue
            turn = run.turn(0)
            is_better = one[0] == "flash attention" and _turn(turn) * NOISE < mine
            if is_better:
                self.best = candidates[one]
            self._tried.append(
                Tried(
                    setting=one[0], value=one[1], prefill=turn.prefill, decode=turn.decode, depth=depth,
                    is_default=one[1] == "f16", taken=is_better or one[1] == kv_type != "f16",
                )
            )  # fmt: skip

    def _without_flash_attention(self) -> Tuning:
        """Every head's look at the whole window is written down then, for each token of a micro-batch."""
        heads, size = self._trial.model.heads, self.best.micro_batch or MICRO_BATCH
        window = min(self._trial.model.n_ctx_train, _LARGE_WINDOW)
        while size > MICRO_BATCHES[0] and scores_bytes(heads, window, size) > _ATTENTION_BYTES:
            size //= 2
        return replace(self._with_micro_batch(size), flash_attention=False)

    def _depth(self, stopwatch: Stopwatch) -> int:
        """Tokens that are put into the window before what is compared; none where they would all have to be read."""
        depths = [one for one in (256, 512, 1024, _DEPTH) if one + 256 < self._room]
        return max(depths, default=0) if stopwatch.stands_quickly else 0

    def _run(self, stopwatch: Stopwatch, run: _Runs, *, depth: int = 0, slowed: float = 1.0) -> None:
        """Read and answer once, with `depth` tokens in the window."""
        seconds = _READ_S / 2 if depth else _READ_S
        stopwatch.stand_at(depth) if depth else stopwatch.clear()
        run.prefill.append(stopwatch.read(self._pace.read(seconds, slowed, most=256 if depth else 512)))
        run.decode.append(stopwatch.answer(self._pace.answer(_ANSWER_S, slowed), 3 * _ANSWER_S))

    def _verdict(self) -> tuple[Turn, Turn]:
        """The engine's own choice against what was found, in turns; what gains nothing together is not kept.

        The KV cache is the person's choice on both sides.
        """
        own, found = Tuning(kv_type=self.best.kv_type), self.best
        runs = {own: _Runs(), found: _Runs()}
        depth = 0
        # One round tells no gain from noise.
        for _ in self._trial.rounds(len(runs), least=2):
            for tuning, run in runs.items():
                self._trial.step("before and after" if len(runs) > 1 else "as it is")
                with self._trial.stopwatch(self._window(), tuning) as stopwatch:
                    self._run(stopwatch, run)
                    if depth := self._depth(stopwatch):
                        stopwatch.stand_at(depth)
                        run.deep.append(stopwatch.answer(self._pace.answer(_ANSWER_S / 2), 3 * _ANSWER_S))
        before, after = runs[own].turn(depth), runs[found].turn(depth)
        if found != own and _turn(after) * NOISE > _turn(before):
            self.best, after = own, before
            self._tried = [
                replace(one, taken=one.taken and one.setting == "kv cache" and one.value == own.kv_type)
                for one in self._tried
            ]
        return before, after


def tune(trial: Trial) -> Tuned:
    """Find the best settings for the trial's model. Raises `DoesNotFit`, `EngineFailed`."""
    return Tuner(trial).find()


def _fastest(runs: dict[int, list[float]], default: int) -> int:
    """The candidate with the highest rates; `default` unless it is beaten by more than noise, round for round."""
    best = max(runs, key=lambda one: median(runs[one]))
    return best if _gain(runs[best], runs[default]) >= NOISE else default


def _gain(rates: Sequence[float], others: Sequence[float]) -> float:
    """By how much one candidate was faster than another: the median of the ratios within rounds."""
    return median(left / right for left, right in zip(rates, others, strict=False))


def _turn(turn: Turn) -> float:
    """Seconds of a usual turn: half of the answers come early in a chat, half of them late."""
    late = turn.decode_at_depth or turn.decode
    return (turn_seconds(turn.prefill, turn.decode) + turn_seconds(turn.prefill, late)) / 2
