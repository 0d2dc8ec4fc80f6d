"""The template process: foreign templates reach nothing, cannot last or grow, and leave a working renderer (T8)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from localchat.engine import templates
from localchat.engine.template_process import MEMORY_LIMIT_BYTES
from localchat.engine.templates import RENDER_LIMIT_S, TemplateBroken, TemplateRefused, TemplateRenderer
from localchat.errors import LocalchatError
from tests.tiny_models import CHATML

SLACK_S = 60.0  # a busy machine: killing, starting anew and compiling are within it
SECRET = "aPpLeTrEe"
HELLO = {"role": "user", "content": "hello"}


@pytest.fixture(scope="module")
def renderer() -> Iterator[TemplateRenderer]:
    os.environ["LOCALCHAT_TEST_SECRET"] = SECRET
    renderer = TemplateRenderer()
    del os.environ["LOCALCHAT_TEST_SECRET"]
    yield renderer
    renderer.close()


def works(renderer: TemplateRenderer) -> bool:
    renderer.use(CHATML, "", "")
    text = renderer.render([HELLO], add_generation_prompt=True)
    return text == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"


_CALL = "('touch MARKER').read()"
_ROOTS = ["''", "()", "[]", "{}", "1", "messages", "messages[0]", "cycler", "joiner", "namespace", "lipsum", "range",
          "dict", "raise_exception", "strftime_now", "from_json", "self", "loop", "bos_token", "none"]  # fmt: skip
ESCAPES = [
    *(f"{{{{ {root}.__class__.__mro__[1].__subclasses__() }}}}" for root in _ROOTS),
    *(f"{{{{ {root}.__init__.__globals__ }}}}" for root in _ROOTS),
    *(f"{{{{ {root}.__globals__.__builtins__.open('MARKER', 'w') }}}}" for root in _ROOTS),
    *(f"{{{{ {root}['__class__']['__base__'] }}}}" for root in _ROOTS),
    *(f"{{{{ ({root}|attr('__class__'))|attr('__base__') }}}}" for root in _ROOTS),
    "{{ cycler.__init__.__globals__.os.popen" + _CALL + " }}",
    "{{ joiner.__init__.__globals__.os.popen" + _CALL + " }}",
    "{{ namespace.__init__.__globals__.os.popen" + _CALL + " }}",
    "{{ lipsum.__globals__['os'].popen" + _CALL + " }}",
    "{{ lipsum.__globals__.__builtins__.__import__('os').system('touch MARKER') }}",
    "{{ self.__init__.__globals__.__builtins__.eval(\"open('MARKER','w')\") }}",
    "{{ self._TemplateReference__context.cycler.__init__.__globals__.os.system('touch MARKER') }}",
    "{{ raise_exception.__globals__['sys'].modules['os'].system('touch MARKER') }}",
    "{{ raise_exception.__code__.co_consts }}",
    "{{ strftime_now.__self__.__class__.__base__.__subclasses__() }}",
    "{{ from_json.__globals__['codecs'].open('MARKER', 'w') }}",
    "{{ from_json.__defaults__ }}{{ from_json.__kwdefaults__ }}{{ from_json.__closure__ }}",
    "{{ '{0.__class__}'.format(messages) }}",
    "{{ '{0.__class__.__init__.__globals__}'.format(cycler) }}",
    "{{ '{m.__class__}'.format_map({'m': messages}) }}",
    "{{ ('{0.__class__' ~ '}').format(lipsum) }}",
    "{{ '{0.__globals__[os].environ}'.format(lipsum) }}",
    "{% set f = '{0.__class__}'.format %}{{ f(messages) }}",
    "{{ '%s' | format(lipsum.__globals__) }}",
    "{{ [lipsum] | map(attribute='__globals__') | list }}",
    "{{ [lipsum] | map('attr', '__globals__') | list }}",
    "{{ [''] | map(attribute='__class__.__mro__') | list }}",
    "{{ [lipsum] | selectattr('__globals__') | list }}",
    "{{ ([lipsum] | sort(attribute='__globals__') | first).__globals__ }}",
    "{{ ([lipsum] | groupby('__globals__'))[0].grouper.os.environ }}",
    "{{ [lipsum] | sum(attribute='__globals__', start={}) }}",
    "{{ (''|attr('\\x5f\\x5fclass\\x5f\\x5f'))|attr('\\x5f\\x5fmro\\x5f\\x5f') }}",
    "{{ ''[('_'*2)~'class'~('_'*2)] }}",
    "{{ ''['__CLASS__'|lower]['__MRO__'|lower] }}",
    "{% set g = lipsum['__glo' + 'bals__'] %}{{ g }}",
    "{% macro m() %}x{% endmacro %}{{ m.__init__.__globals__ }}",
    "{% macro m() %}{{ caller.__globals__ }}{% endmacro %}{% call m() %}{% endcall %}",
    "{% macro m() %}x{% endmacro %}{{ m._func.__globals__ }}",
    "{% for x in [1] %}{{ loop.__init__.__globals__ }}{% endfor %}",
    "{% for x in [1] recursive %}{{ loop._iterator.__class__ }}{% endfor %}",
    "{{ (messages | map('upper')).gi_frame.f_globals }}",
    "{% set g = messages | map('string') %}{{ g.gi_frame.f_back.f_builtins }}",
    "{{ (messages | select()).gi_code }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os.system('touch MARKER') }}",
    "{% extends '/etc/passwd' %}",
    "{% from '/etc/passwd' import x %}",
    "{{ open('MARKER', 'w') }}",
    "{{ __import__('os').system('touch MARKER') }}",
    "{{ eval('1') }}{{ exec('1') }}{{ globals() }}",
    "{{ os.environ }}{{ sys.modules }}{{ config }}{{ request.application.__globals__ }}",
    "{{ environment.globals }}{{ context.environment.from_string('x') }}{{ self.environment }}",
    "{{ messages.append({'role': 'system'}) }}{{ messages.clear() }}",
    "{{ messages[0].update({'content': 'other'}) }}",
    "{% set x = messages.pop() %}",
    "{{ dict.__subclasses__() }}{{ dict.mro() }}{{ range.mro() }}",
    "{{ namespace(a=1).__class__ }}{{ namespace().__dict__ }}{{ namespace()._Namespace__attrs }}",
    "{% set ns = namespace() %}{% set ns.__class__ = cycler %}{{ ns.__class__ }}",
    "{% do lipsum.__globals__ %}",
    "{% debug %}",
    "{{ ''.__doc__.__class__ }}{{ ''.encode().__class__ }}",
    "{{ x.__class__ }}{{ undefined_name.__init__.__globals__ }}",
    "{{ [].__reduce_ex__(2) }}{{ ''.__getattribute__('__class__') }}",
    "{{ messages.__iter__().__class__ }}{{ messages|first|items|first }}{{ messages.copy.__self__ }}",
]  # fmt: skip
_TELLING = (
    "<class",
    "<built-in",
    "<function",
    "<module",
    "<frame",
    "<code",
    "<generator",
    "subclasses",
    "root:x:",
    SECRET,
)
_TELLING += ("'__name__'", "_iterator object", "object at 0x")


def test_the_corpus_of_escapes_is_large() -> None:
    assert len(set(ESCAPES)) >= 150


@pytest.mark.parametrize("part", range(8))
def test_no_escape_reaches_python(renderer: TemplateRenderer, part: int, tmp_path: Path) -> None:
    marker = tmp_path / "escaped"
    for escape in ESCAPES[part::8]:
        began = time.monotonic()
        try:
            renderer.use(escape.replace("MARKER", str(marker)), "<s>", "</s>")
            text = renderer.render([HELLO])
        except (TemplateBroken, TemplateRefused) as error:
            text = ""
            assert SECRET not in error.message
        assert not marker.exists(), escape
        assert not any(sign in text for sign in _TELLING), (escape, text[:300])
        assert time.monotonic() - began < RENDER_LIMIT_S + SLACK_S
    assert works(renderer)


def test_a_template_cannot_change_what_the_next_render_gets(renderer: TemplateRenderer) -> None:
    renderer.use("{% set x = namespace(n=1) %}{% set x.n = 2 %}{{ bos_token }}{{ messages|length }}", "<s>", "")
    assert [renderer.render([HELLO]), renderer.render([HELLO, HELLO])] == ["<s>1", "<s>2"]


BOMBS = [
    "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(9) %}{% endfor %}{% endfor %}{% endfor %}",
    "{% for a in range(99999) %}{% for b in range(99999) %}xxxxxxxxxxxxxxxx{% endfor %}{% endfor %}",
    "{% for a in range(10**12) %}x{% endfor %}",
    "{{ 9**9**9 }}",
    "{{ 9**9**9 % messages|length }}",
    "{% set n = messages|length + 8 %}{{ n**n**n }}",
    "{{ 'a' * 10**10 }}",
    "{% set n = messages|length %}{{ 'a' * (n * 10**10) }}",
    "{% set n = messages|length %}{{ [0] * (n * 10**10) }}",
    "{% set n = messages|length %}{{ 'ab'|center(n * 10**9) }}",
    "{% set n = messages|length %}{{ 'ab'.ljust(n * 10**9) }}{{ 'ab'.rjust(n * 10**9) }}{{ 'ab'.zfill(n * 10**9) }}",
    "{% set n = messages|length %}{{ 'a\\nb'|indent(n * 10**9) }}",
    "{% set n = messages|length %}{{ '%*d' % (n * 10**9, 1) }}",
    "{% set n = messages|length %}{{ ('%' ~ n ~ '000000000d') % 1 }}",
    "{% set n = messages|length %}{{ ('{:>' ~ n ~ '000000000}').format(1) }}",
    "{% set n = messages|length %}{{ 'a\\tb'.expandtabs(n * 10**9) }}",
    "{% set n = messages|length %}{{ [1]|batch(n * 10**9, 'x')|list }}",
    "{% set n = messages|length %}{{ [1]|slice(n * 10**9)|list }}",
    "{% set n = messages|length %}{{ messages|tojson(indent=n * 10**9) }}",
    "{{ lipsum(n=10**7) }}",
    "{{ lipsum(n=1, min=10**8, max=10**8 + 1) }}",
    "{% set ns = namespace(s='aa') %}{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s|length }}",
    "{% set ns = namespace(s='ab') %}{% for i in range(99) %}{% set ns.s = ns.s.replace('a', ns.s) %}{% endfor %}",
    "{% set ns = namespace(n=7) %}{% for i in range(99999) %}{% set ns.n = ns.n * ns.n %}{% endfor %}",
    "{% set ns = namespace(l=[0]) %}{% for i in range(99) %}{% set ns.l = ns.l + ns.l %}{% endfor %}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}",
    "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "{% macro m() %}{{ caller() }}{% call m() %}{{ caller() }}{% endcall %}{% endmacro %}{% call m() %}x{% endcall %}",
    "{% for x in [[1]] recursive %}{{ loop([[1]]) }}{% endfor %}",
    "{% for x in range(50) recursive %}{{ loop(range(50)) }}{% endfor %}",
    "{% set n = messages|length %}{{ from_json('[' * (n * 10**6)) }}",
    "{% set n = messages|length %}{{ from_json('9' * (n * 10**8)) }}",
    "{% set n = messages|length %}{{ ('a,' * (n * 10**8)).split(',')|length }}",
    "{% set n = messages|length %}{{ strftime_now('%Y' * (n * 10**7)) }}",
    "{% set n = messages|length %}{{ ('a' * (n * 10**6))|wordwrap(1) }}",
    "{% set n = messages|length %}{{ ('<' * (n * 10**8))|e }}",
    "{% set n = messages|length %}{{ ('http://a.b ' * (n * 10**6))|urlize }}",
    "{% set n = messages|length %}{{ ('é' * (n * 30 * 10**6)) }}",
    "{{ " + "(" * 50_000 + "1" + ")" * 50_000 + " }}",
    "{{ " + "[" * 900 + "]" * 900 + " }}",
    "{{ " + "not " * 100_000 + "1 }}",
    "{% for i in [1] %}" * 60 + "{% endfor %}" * 60,
    "{% if 1 %}" * 5_000 + "{% endif %}" * 5_000,
    "{{ 1 }}" * 400_000,
    "{{ " + " + ".join(["1"] * 60_000) + " }}",
    "{{ 1" + "0" * 10_000 + " }}",
    "\0{{ 1 }}\0" + "{{ '" + "a" * 3_000_000 + "' }}",
]  # fmt: skip


class Watch:
    """The largest address space that the renderer's processes ever had, in bytes (Linux)."""

    def __init__(self, renderer: TemplateRenderer) -> None:
        self.peak = 0
        self._renderer = renderer
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._done.wait(0.01):
            try:
                status = Path(f"/proc/{self._renderer._process.pid}/status").read_text()
            except OSError:
                continue
            for line in status.splitlines():
                # Its resident peak: the address space before the limit was set holds the parent's for a moment.
                if line.startswith("VmHWM:"):
                    self.peak = max(self.peak, int(line.split()[1]) * 1024)


def short(bomb: str) -> str:
    return bomb[:60].replace("\0", "")


# Those that only end by the clock take two seconds each: a few of them are enough for every day.
_BY_THE_CLOCK = (
    "9**9**9 %",
    "range(99999) %}x",
    "lipsum(n=1,",
    "slice",
    "wordwrap",
    "urlize",
    "m(60)",
    "ns.n * ns.n",
    "}}{{ 1 }}",
)


@pytest.mark.parametrize(
    "bomb",
    [pytest.param(b, marks=pytest.mark.slow if any(x in b for x in _BY_THE_CLOCK) else (), id=short(b)) for b in BOMBS],
)
def test_no_bomb_lasts_or_grows(renderer: TemplateRenderer, bomb: str) -> None:
    with Watch(renderer) as watch:
        assert works(renderer)
        for step in (lambda: renderer.use(bomb, "", ""), lambda: renderer.render([HELLO])):
            began = time.monotonic()
            try:
                step()
            except LocalchatError as error:
                assert isinstance(error, (TemplateBroken, TemplateRefused))
                assert len(error.message) < 1000
                # Whoever waits ends it, long before it would end itself.
                assert bomb != BOMBS[0] or "takes too long" in error.message
            assert time.monotonic() - began < RENDER_LIMIT_S + SLACK_S
        assert works(renderer)
    assert watch.peak <= MEMORY_LIMIT_BYTES


def test_after_a_bomb_in_a_conversation_the_same_template_renders_the_next_one(renderer: TemplateRenderer) -> None:
    renderer.use("{% if messages|length > 1 %}{{ 9**(9**messages|length**9) }}{% endif %}ok", "", "")
    with pytest.raises(TemplateBroken):
        renderer.render([HELLO] * 9)
    assert renderer.render([HELLO]) == "ok"


def test_a_renderer_that_was_killed_is_replaced(renderer: TemplateRenderer) -> None:
    assert works(renderer)
    text = renderer.render([HELLO])
    renderer._process.kill()
    renderer._process.wait()
    # The same template, and nobody noticed.
    assert renderer.render([HELLO]) == text
    assert works(renderer)


def test_a_renderer_that_dies_before_it_is_ready_is_replaced() -> None:
    renderer = TemplateRenderer()
    try:
        renderer._process.kill()
        renderer._process.wait()
        assert works(renderer)
    finally:
        renderer.close()


def test_a_renderer_that_never_gets_ready_breaks_templates_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    script = templates._SCRIPT
    monkeypatch.setattr(templates, "_SCRIPT", script.with_name("not there"))
    renderer = TemplateRenderer()
    try:
        with pytest.raises(TemplateBroken):
            renderer.use(CHATML, "", "")
        monkeypatch.setattr(templates, "_SCRIPT", script)
        assert works(renderer)
    finally:
        renderer.close()


def test_an_endless_template_ends_with_its_process_when_nobody_waits_for_it() -> None:
    script = (
        "import sys; from localchat.engine import template_process as p; p._LAST_RESORT_S = 0.3; "
        "sys.stdin = iter(sys.argv[1:]); p.main()"
    )
    requests = [
        json.dumps({"template": BOMBS[0], "bos_token": "", "eos_token": ""}),
        json.dumps({"variables": {"messages": [HELLO]}, "began": None}),
    ]
    done = subprocess.run([sys.executable, "-c", script, *requests], capture_output=True, timeout=60)
    assert done.returncode == -signal.SIGALRM


def test_a_long_conversation_is_rendered(renderer: TemplateRenderer) -> None:
    renderer.use(CHATML, "", "")
    text = "é" * 1_000_000
    assert text in renderer.render([{"role": "user", "content": text}])


def test_a_render_before_any_template_is_refused_not_a_crash() -> None:
    renderer = TemplateRenderer()
    try:
        with pytest.raises(TemplateBroken):
            renderer.render([HELLO])
    finally:
        renderer.close()


def test_what_the_template_says_against_a_conversation_is_told_apart_from_what_breaks_it(
    renderer: TemplateRenderer,
) -> None:
    renderer.use("{{ raise_exception('no') if messages|length > 1 else 1 // 0 }}", "", "")
    with pytest.raises(TemplateRefused, match=r"^no$"):
        renderer.render([HELLO, HELLO])
    with pytest.raises(TemplateBroken, match="ZeroDivisionError"):
        renderer.render([HELLO])


def test_templates_have_what_transformers_gives_them(renderer: TemplateRenderer) -> None:
    renderer.use(
        "{%- for m in messages -%}{%- if loop.index > 1 -%}{%- break -%}{%- endif -%}{{ m|tojson }}{%- endfor -%}"
        "|{{ {'é': [1]}|tojson(indent=1) }}|{{ from_json('{\"a\": 1}').a }}|{{ strftime_now('%Y')|length }}"
        "|{{ eos_token }}",
        "<s>",
        "</s>",
    )
    text = renderer.render([{"role": "user", "content": "<é>"}, HELLO])
    assert text == '{"role": "user", "content": "<é>"}|{\n "é": [\n  1\n ]\n}|1|4|</s>'


def test_closing_twice_is_harmless() -> None:
    renderer = TemplateRenderer()
    renderer.close()
    renderer.close()
