"""Tries a model on this machine: what `localchat bench` measures, and what `localchat tune` compares.

`python -m localchat.engine.trial ORDER` (a `trials.Order` in JSON) prints JSON lines: `{"share", "doing"}` as it goes
on, `{"notice"}` where something is left out, then `{"bench"}` or `{"tuned"}`, or else `{"error", "code"}`. It is run
in a process of its own (`client.trials`), because native code may abort.

What is compared takes turns, round by round, and medians are kept: a machine does other things too. Every duration is
bounded by reading and answering less on a slow machine, so that a trial takes about a minute whatever the model.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import msgspec

from localchat.engine import ceiling
from localchat.engine.devices import devices
from localchat.engine.load import others_since, read_sample
from localchat.engine.model import Model
from localchat.engine.offload import DeviceFull, Offload
from localchat.engine.stopwatch import Stopwatch
from localchat.errors import DoesNotFit, LocalchatError
from localchat.paths import private_folder
from localchat.safe_text import safe_line
from localchat.trials import AtDepth, AtThreads, Bench, Order, Restored, SideBySide
from localchat.tuning import Tuning

DEPTHS = (1024, 4096)
"""Tokens in the window at which a bench looks again."""
TOGETHER = (1, 2, 4, 8, 16)

_READ, _ANSWER = 512, 64
_ROUNDS, _QUICK_ROUNDS = 3, 2
# Seconds that one measurement may take: with the engine's own number of threads, and with any other.
_MAIN_S, _OTHER_S = 4.5, 2.0
_ANSWER_S, _DEPTH_S, _BATCH_S = 1.5, 1.0, 0.8
_QUICK = 0.25  # of all these
_SLOWER = 3.0
"""How much longer than expected a measurement may take: a machine can become busy at any moment."""
_ENOUGH_S, _QUICK_ENOUGH_S = 50.0, 12.0
"""Seconds for a bench, after which no further round begins; a comparison of a tune has half as many."""
_WAIT_FOR_DEPTH_S = 8.0
"""What reading up to a depth may take, for a model whose memory cannot be filled otherwise."""
_SPARE = 64  # tokens
_KEEPING = ("read", "save", "restore", "write", "load")


class Pace:
    """How much of the model there is time for: tokens that can be read or said in so many seconds."""

    def __init__(self, stopwatch: Stopwatch, room: int, quick: bool) -> None:
        stopwatch.clear()
        first = min(64, stopwatch.context.batch_size, max(1, room // 4))
        self._prefill = stopwatch.read(first)
        self._decode = stopwatch.answer(4)
        self._room = room
        self._share = _QUICK if quick else 1.0

    def read(self, seconds: float, slowed: float = 1.0, most: int = _READ) -> int:
        """Tokens to read in so many seconds, as a power of two; `slowed`: the share of the threads that compute."""
        return self._tokens(self._prefill * slowed * seconds, 16, min(most, self._room // 2))

    def answer(self, seconds: float, slowed: float = 1.0, most: int = _ANSWER) -> int:
        """Tokens to say in so many seconds."""
        return self._tokens(self._decode * slowed * seconds, 4, min(most, self._room // 4))

    def reads_in(self, tokens: int) -> float:
        """About how many seconds it takes to read so many tokens."""
        return tokens / self._prefill

    def _tokens(self, possible: float, least: int, most: int) -> int:
        count = least
        while count * 2 <= possible * self._share and count * 2 <= most:
            count *= 2
        return max(1, min(count, most))


class Trial:
    """One run of the measuring process: the model, and what is said on the way."""

    def __init__(self, order: Order, tell: Callable[[dict[str, object]], None]) -> None:
        self.order = order
        self.tell = tell
        self.largest = 1 << 30
        """The largest window, in tokens, that the person's ceiling allows."""
        self._stage, self._stages, self._done, self._steps = 0, 1, 0, 1
        self.model = self._load()
        self._loaded = read_sample()

    def _load(self) -> Model:
        self.tell({"share": 0.0, "doing": "loading the model"})
        layers = self.order.gpu_layers
        offload = Offload(layers, tuple(devices())) if layers else Offload()
        while True:
            try:
                if most := self.order.max_ram:
                    path = Path(self.order.path)
                    self.largest = ceiling.plan(path, path.name, self.order.tuning, offload, most, 0).largest
                return Model(Path(self.order.path), None, offload)
            except DeviceFull as error:
                offload = offload.fewer(_READ, str(error))

    @property
    def gpu_layers(self) -> int:
        """Layers that lie on GPUs."""
        return self.model.offload.layers

    @property
    def others(self) -> float:
        """The share of the processors' time that other programs have had since the model was loaded."""
        return others_since(self._loaded)

    def plan(self, stages: int) -> None:
        """So many calls of `rounds` are to come."""
        self._stage, self._stages = -1, stages

    def rounds(self, steps: int, least: int = 1) -> Iterator[int]:
        """Numbers from 1, as far as time allows and `least` in any case.

        In each round everything that is compared takes its turn, in so many `steps`.
        """
        rounds, enough = (_QUICK_ROUNDS, _QUICK_ENOUGH_S) if self.order.quick else (_ROUNDS, _ENOUGH_S)
        self._stage += 1
        self._done, self._steps = 0, max(1, steps * rounds)
        began = time.monotonic()
        for number in range(1, rounds + 1):
            yield number
            spent = time.monotonic() - began
            if number >= least and spent + spent / number > enough / min(2, self._stages):
                return

    def step(self, doing: str) -> None:
        """One of them begins."""
        self.tell({"share": (self._stage + self._done / self._steps) / self._stages, "doing": doing})
        self._done = min(self._done + 1, self._steps)

    @contextmanager
    def stopwatch(self, n_ctx: int, tuning: Tuning) -> Iterator[Stopwatch]:
        """The model in a window of its own, warm. Raises as `Context` does, and `DoesNotFit` for a full GPU."""
        if n_ctx > self.largest:
            raise DoesNotFit(f"a window of {n_ctx} tokens is more than max_ram allows: raise it")
        try:
            made = Stopwatch(self.model, n_ctx, self.order.threads, tuning)
        except DeviceFull as error:
            raise DoesNotFit(
                f"the GPU has no room for a window of {n_ctx} tokens ({error}): close other programs, or set "
                "gpu_layers to fewer in settings.toml"
            ) from error
        try:
            made.warm_up()
            yield made
        finally:
            made.close()

    def thread_counts(self) -> list[int]:
        """The numbers of threads that are worth comparing: doublings, and as many as the engine takes by itself."""
        most = self.order.threads
        doublings = {1 << power for power in range(most.bit_length()) if 1 << power <= most}
        if self.order.quick:
            doublings = {max(1, most // 2)}
        chosen = {self.order.tuning.decode_threads or most, self.order.tuning.prefill_threads or most}
        return sorted(doublings | {most} | chosen)


def bench(trial: Trial) -> Bench:
    """Measure everything about one model. Raises `DoesNotFit`, `EngineFailed`."""
    tuning, most = trial.order.tuning, trial.order.threads
    used, used_prefill = tuning.decode_threads or most, tuning.prefill_threads or most
    trained = trial.model.n_ctx_train
    for depth in (*reversed([one for one in DEPTHS if one + _SPARE < trained]), _READ):
        n_ctx = min(depth + _READ + 2 * _SPARE, max(256, trained))
        if depth == _READ:
            n_ctx = min(n_ctx, trial.largest)
        try:
            with trial.stopwatch(n_ctx, tuning) as stopwatch:
                return _bench(trial, stopwatch, min(n_ctx, trained), used, used_prefill)
        except DoesNotFit:
            if depth == _READ:
                raise
            trial.tell({"notice": f"there is no memory for a window of {n_ctx:,} tokens: a smaller one is measured"})
    raise AssertionError


def _bench(trial: Trial, stopwatch: Stopwatch, room: int, used: int, used_prefill: int) -> Bench:
    counts, context, cache = trial.thread_counts(), stopwatch.context, Path(trial.order.cache)
    pace = Pace(stopwatch, room, trial.order.quick)
    reads = {count: pace.read(_OTHER_S, count / used_prefill) for count in counts}
    reads[used_prefill] = pace.read(_MAIN_S)
    says = {count: pace.answer(_ANSWER_S, count / used) for count in counts}
    depths = [one for one in DEPTHS if one + _SPARE < room and (one == DEPTHS[0] or not trial.order.quick)]
    if not stopwatch.stands_quickly:
        too_long = [one for one in depths if pace.reads_in(one) > _WAIT_FOR_DEPTH_S]
        depths = [one for one in depths if one not in too_long]
        for one in too_long:
            trial.tell(
                {"notice": f"{one:,} tokens in the window are left out: this model reads them all first, for long"}
            )
    together = [one for one in TOGETHER if one <= min(context.sequences, context.outputs)]

    prefill: dict[int, list[float]] = {count: [] for count in counts}
    decode: dict[int, list[float]] = {count: [] for count in counts}
    at_depth: dict[int, list[tuple[float, float]]] = {depth: [] for depth in depths}
    side_by_side: dict[int, list[float]] = {one: [] for one in together}
    kept: list[tuple[float, ...]] = []
    can_keep = True
    trial.plan(1)
    share = _QUICK if trial.order.quick else 1.0
    size = rounds = 1
    for number in trial.rounds(len(counts) + len(depths) + len(together)):
        rounds = number
        for count in counts:
            trial.step(f"{count} thread{'s'[: count != 1]}")
            context.use_threads(count, count)
            stopwatch.clear()
            prefill[count].append(stopwatch.read(reads[count]))
            saved, state = stopwatch.save() if count == used_prefill else (0.0, None)
            decode[count].append(stopwatch.answer(says[count], _SLOWER * _ANSWER_S))
            if state:
                size = len(state)
                seconds = reads[count] / prefill[count][-1]
                restored = stopwatch.restore(state)
                if can_keep:
                    try:
                        kept.append((seconds, saved, restored, *stopwatch.through_file(state, cache)))
                    except OSError as error:
                        can_keep = False
                        why = f"nothing can be kept in {safe_line(str(cache))} ({error.strerror or error})"
                        trial.tell({"notice": f"restoring is left out: {why}"})
            del state
        context.use_threads(used, used_prefill)
        for depth in depths:
            trial.step(f"{depth:,} tokens in the window")
            stopwatch.stand_at(depth)
            said = stopwatch.answer(pace.answer(_DEPTH_S, most=32), _SLOWER * _DEPTH_S)
            stopwatch.stand_at(depth)
            at_depth[depth].append((stopwatch.read(pace.read(_DEPTH_S, most=128)), said))
        for count in together:
            trial.step(f"{count} answer{'s'[: count != 1]} together")
            stopwatch.clear()
            stopwatch.answer_together(count, 1)
            tokens = min(24, context.n_ctx // count - 1)
            side_by_side[count].append(stopwatch.answer_together(count, tokens, _BATCH_S * share))
    return Bench(
        threads=tuple(AtThreads(median(prefill[one]), median(decode[one]), one) for one in counts),
        used_threads=used,
        used_prefill_threads=used_prefill,
        depths=tuple(_at_depth(one, at_depth[one]) for one in depths),
        batches=tuple(SideBySide(one, median(side_by_side[one])) for one in together),
        restored=Restored(
            tokens=reads[used_prefill],
            bytes=size,
            **dict(zip(_KEEPING, map(median, zip(*kept, strict=True)), strict=True)),
        )
        if kept
        else None,
        read_tokens=reads[used_prefill],
        answer_tokens=says[used],
        rounds=rounds,
        others=trial.others,
        tuning=trial.order.tuning,
        gpu_layers=trial.gpu_layers,
        measured=now(),
    )


def _at_depth(tokens: int, rates: list[tuple[float, float]]) -> AtDepth:
    return AtDepth(median(read for read, _ in rates), median(said for _, said in rates), tokens)


def now() -> str:
    """The time, as it is kept."""
    return time.strftime("%Y-%m-%dT%H:%M:%S")


def main(arguments: list[str]) -> int:
    """Do what the order says and print it; where that is impossible, the error."""

    def tell(line: dict[str, object]) -> None:
        print(msgspec.json.encode(line).decode(), flush=True)

    try:
        order = msgspec.json.decode(arguments[0], type=Order)
        private_folder(Path(order.cache))
        trial = Trial(order, tell)
        if order.what == "tune":
            from localchat.engine.tuner import tune

            tell({"tuned": tune(trial)})
        else:
            tell({"bench": bench(trial)})
    except LocalchatError as error:
        tell({"error": error.message, "code": error.code})
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
