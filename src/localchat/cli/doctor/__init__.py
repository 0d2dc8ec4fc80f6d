"""`localchat doctor`: look this machine over, and say of each thing whether it is as it should be."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from functools import partial
from threading import Thread

import click

from localchat.cli.doctor import engine, files, network, system
from localchat.cli.doctor.report import Check, Finding, examined, page, summary
from localchat.client.measured import ask_build
from localchat.errors import UsageError
from localchat.safe_text import json_text
from localchat.settings import is_offline

_NETWORK_S = 15.0


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--measure", is_flag=True, help="Measure the processor's speed anew (7 to 10 seconds).")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(measure: bool, as_json: bool) -> int:
    """Look this machine over: processor, memory, GPUs, files, sources.

    Each line is ok, a warning (it works, and could be better) or a problem. The exit code is 1 where there is a
    problem, else 0. The first time it measures how fast the processor is: 7 to 10 seconds. It asks the hub and pip's
    package index whether they answer, unless --offline is given.
    """
    findings = _findings(measure)
    has_problem = any(finding.state == "problem" for finding in findings)
    if as_json:
        print(json_text({"ok": not has_problem, "findings": findings}))
    else:
        print(f"{page(findings)}\n\n{summary(findings)}")
    return int(has_problem)


def _findings(measure: bool) -> list[Finding]:
    found = examined("load", system.load)
    far = [(what, _started(what, check)) for what, check in _network_checks()]
    found += examined("engine", _engine)
    for what, check in (
        ("cores", system.cores),
        ("memory", system.memory),
        ("speed", lambda: system.speed(measure)),
        ("software", system.software),
        ("terminal", system.terminal),
        ("places", files.places),
        ("settings", files.own_settings),
        ("catalogue", files.own_catalogue),
        ("models", files.models),
        ("process", files.engine),
    ):
        found += examined(what, check)
    for what, future in far:
        found += examined(what, partial(future.result, _NETWORK_S))
    # Whoever needs the settings fails with them: that is said once.
    faults = {finding.found for finding in found if finding.what == "settings" and finding.state == "problem"}
    return [finding for finding in found if finding.what == "settings" or finding.found not in faults]


def _engine() -> Iterator[Finding]:
    build = ask_build()
    yield from engine.processor(build)
    yield from engine.gpus(build)


def _network_checks() -> list[tuple[str, Check]]:
    try:
        offline = is_offline()
    except UsageError:
        offline = (
            True  # what the person wants cannot be read, so nothing is asked; the settings have a line of their own
        )
    if offline:
        return [("sources", lambda: [Finding("ok", "sources", "not asked: localchat is offline")])]
    return [("hub", network.hub_answers), ("index", network.index_answers)]


def _started(what: str, check: Check) -> Future[list[Finding]]:
    """Begin a check that waits for others; whoever ends the doctor does not wait for it."""
    future: Future[list[Finding]] = Future()
    Thread(target=lambda: future.set_result(examined(what, check)), daemon=True).start()
    return future
