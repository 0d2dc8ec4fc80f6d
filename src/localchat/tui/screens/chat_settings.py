"""The settings of one chat as a form: system prompt, sampling, limits, and presets to fill it from."""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Input, Static, TextArea

from localchat.chats.records import ChatSettings
from localchat.errors import UsageError
from localchat.protocol import Sampling
from localchat.settings import Preset, plainly
from localchat.tui import presets
from localchat.tui.widgets.form import Area, ChoiceField, ValueField
from localchat.tui.widgets.line_input import LineInput

_NO_PRESET = ""
_THINKING: dict[str, bool | None] = {presets.MODELS_OWN: None, "on": True, "off": False}
_OVERFLOW = {"ask me": "error", "slide": "slide"}
_NARROW = 76

_WORDS = {
    "temperature": "0: always the likeliest token; higher: more varied",
    "top_p": "only the likeliest that make up this share; 1: all",
    "top_k": "only so many of the likeliest; 0: all",
    "min_p": "at least this share of the likeliest; 0: off",
    "repeat_penalty": "above 1: repeats itself less",
    "seed": "the same seed gives the same answer",
    "typical_p": "the typical ones that make up this share; 1: all",
    "repeat_last_n": "tokens that the penalty looks back; 0: off",
    "frequency_penalty": "for each time a token was there; 0: off",
    "presence_penalty": "for a token that was there at all; 0: off",
    "max_tokens": "the longest answer, thinking included",
    "context": "the window in tokens",
    "gpu_layers": "layers of the model on the GPU",
}
"""What each value means. Those of sampling come first, in the order in which people reach for them."""
_EMPTY = {"seed": "random", "max_tokens": "no limit", "context": "grows", "gpu_layers": "all that fit"}


class ChatSettingsScreen(ModalScreen[ChatSettings | None]):
    """Gives the settings as they shall be from the next message on, or None. Every value is checked as it is typed."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+s,f4", "take", "Take these settings", show=False, priority=True),
        Binding("f2", "name_preset", "Save as a preset", show=False, priority=True),
        Binding("escape,ctrl+c", "leave", "Leave", show=False, priority=True),
        Binding("down", "app.focus_next", "Next", show=False),
        Binding("up", "app.focus_previous", "Before", show=False),
    ]

    DEFAULT_CSS = """
    ChatSettingsScreen {
        align: center middle;
        background: $background 60%;
        & > Vertical {
            width: 100%;
            max-width: 92;
            height: 100%;
            max-height: 31;
            background: $surface;
            border: round $border;
            padding: 0 0 0 2;
        }
        & VerticalScroll { height: 1fr; padding: 0 1 0 0; scrollbar-size-vertical: 1; }
        & .label { height: 1; color: $muted; }
        & .gap { margin: 1 0 0 0; }
        & .said { height: auto; color: $faint; margin: 1 1 0 0; }
        & .said.-wrong { color: $error; }
        &.-narrow .word { display: none; }
        &.-narrow .-wrong .word { display: block; }
        & .preset-name { height: 1; margin: 1 1 0 0; display: none; }
    }
    """

    def __init__(self, settings: ChatSettings) -> None:
        super().__init__()
        self._settings = settings
        self._presets: dict[str, Preset] = {}
        self._preset = ChoiceField("preset", [], _NO_PRESET)
        self._system = Area(settings.system or "", "none: what the model's makers had in mind")
        values = {**msgspec.structs.asdict(settings), **msgspec.structs.asdict(settings.sampling)}
        self._values = {
            name: ValueField(name, _as_text(values[name]), word, _EMPTY.get(name, presets.MODELS_OWN), _checker(name))
            for name, word in _WORDS.items()
        }
        self._stop = Area("\n".join(map(_escaped, settings.stop)), "none; one text a line, \\n is a line end")
        thinking = next(word for word, value in _THINKING.items() if value is settings.thinking)
        self._thinking = ChoiceField("thinking", [*_THINKING], thinking)
        overflow = next(word for word, value in _OVERFLOW.items() if value == settings.overflow)
        self._overflow = ChoiceField("when full", [*_OVERFLOW], overflow)
        self._said = Static(classes="said", markup=False)
        self._new_name = LineInput("", "name of the preset; Enter saves it", classes="preset-name")

    def compose(self) -> ComposeResult:
        """Preset, system prompt, values, stop strings, and what the keys do."""
        with Vertical():
            with VerticalScroll(can_focus=False):
                yield self._preset
                yield Static("system prompt", classes="label gap", markup=False)
                yield self._system
                yield Static("how it answers", classes="label gap", markup=False)
                yield from self._values.values()
                yield self._thinking
                yield self._overflow
                yield Static("it stops before", classes="label gap", markup=False)
                yield self._stop
            yield self._new_name
            yield self._said

    def on_mount(self) -> None:
        """Write the system prompt at once: that is what most come for."""
        self._load_presets()
        self._system.focus()
        self._system.move_cursor(self._system.document.end)

    def on_resize(self) -> None:
        """Leave out what there is no room for."""
        self.set_class(self.size.width < _NARROW, "-narrow")

    # Presets.

    def _load_presets(self) -> None:
        try:
            self._presets = presets.presets()
            self._say()
        except UsageError as error:
            self._presets = dict(presets.BUILT_IN)
            self._say(error.message)
        self._preset.options = [*self._presets]
        self._preset.refresh()
        self._match_preset()

    def on_choice_field_changed(self, event: ChoiceField.Changed) -> None:
        """Fill the form from a preset. What it leaves out is the model's own; the seed and its system prompt stay."""
        event.stop()
        preset = self._presets.get(event.chosen)
        if event.field is not self._preset or not preset:
            return
        for name in Sampling.__struct_fields__:
            value = getattr(preset, name)
            if name != "seed" or value is not None:
                self._values[name].text = _as_text(value)
        if preset.system is not None:
            self._system.text = preset.system

    def on_input_changed(self, event: Input.Changed) -> None:
        """What was changed by hand may be another preset, or none."""
        event.stop()
        self._match_preset()

    def on_text_area_changed(self, event: TextArea.Changed) -> None:
        """The same for the system prompt."""
        event.stop()
        self._match_preset()

    def _match_preset(self) -> None:
        """Show which preset the form is as it stands; the one that was chosen wins among equals."""
        names = [self._preset.chosen, *self._presets]
        self._preset.chosen = next((name for name in names if self._is(self._presets.get(name))), _NO_PRESET)

    def _is(self, preset: Preset | None) -> bool:
        if preset is None or (preset.system is not None and preset.system != self._system.text):
            return False
        fields = [name for name in Sampling.__struct_fields__ if name != "seed" or preset.seed is not None]
        return all(self._values[name].text == _as_text(getattr(preset, name)) for name in fields)

    def action_name_preset(self) -> None:
        """Ask for the name under which these values are saved."""
        if self._is_right():
            self._new_name.styles.display = "block"
            self._new_name.focus()

    def _keep_preset(self) -> None:
        name = self._new_name.value.strip()
        sampling = msgspec.structs.asdict(self._sampling())
        try:
            presets.keep(name, Preset(system=self._system.text.strip() or None, **sampling))
        except UsageError as error:
            self._say(error.message)
            return
        self._new_name.styles.display = "none"
        self._load_presets()
        self._preset.chosen = name
        self._match_preset()
        self._preset.focus()

    # The result.

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Enter in a line takes everything; in the preset's name it saves that."""
        event.stop()
        if event.input is self._new_name:
            self._keep_preset()
        else:
            self.action_take()

    def action_take(self) -> None:
        """Give the settings back, or go to what is wrong with them; in the preset's name, save that."""
        if self._new_name.has_focus:
            self._keep_preset()
            return
        if not self._is_right():
            return
        others = {
            name: field.text or None for name, field in self._values.items() if name not in Sampling.__struct_fields__
        }
        limits = msgspec.convert(others, ChatSettings, strict=False)
        stop = [line.replace("\\n", "\n").replace("\\t", "\t") for line in self._stop.text.split("\n") if line]
        self.dismiss(
            msgspec.structs.replace(
                self._settings,
                system=self._system.text.strip() or None,
                sampling=self._sampling(),
                stop=stop,
                thinking=_THINKING[self._thinking.chosen],
                overflow=_OVERFLOW[self._overflow.chosen],
                **{name: getattr(limits, name) for name in others},
            )
        )

    def _sampling(self) -> Sampling:
        texts = {name: self._values[name].text or None for name in Sampling.__struct_fields__}
        return msgspec.convert(texts, Sampling, strict=False)

    def _is_right(self) -> bool:
        wrong = next((field for field in self._values.values() if field.problem), None)
        if wrong:
            wrong.focus()
        return wrong is None

    def action_leave(self) -> None:
        """Change nothing; from the preset's name, back to the form."""
        if self._new_name.has_focus:
            self._new_name.styles.display = "none"
            self._say()
            self._preset.focus()
        else:
            self.dismiss(None)

    def _say(self, problem: str = "") -> None:
        self._said.set_class(bool(problem), "-wrong")
        self._said.update(Content(problem or "Ctrl S takes these   F2 saves a preset   Tab goes on   Esc leaves"))


def _checker(name: str) -> Any:
    kind: type[msgspec.Struct] = Sampling if name in Sampling.__struct_fields__ else ChatSettings

    def check(text: str) -> str:
        try:
            msgspec.convert({name: text}, kind, strict=False)
        except msgspec.ValidationError as error:
            # What is typed is always text: that it is some is no news.
            return plainly(str(error).partition(" - at ")[0]).removesuffix(", not text")
        return ""

    return check


def _as_text(value: object) -> str:
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _escaped(text: str) -> str:
    return text.replace("\n", "\\n").replace("\t", "\\t")
