"""The assistant: questions about one or several photos, in memory only.

Each question goes to the model alone, beside the one photo it is about: neither what was read in a picture nor an
earlier answer ever becomes part of a prompt, so words printed in a picture can order nothing, and there is no hidden
instruction that could leak. "Forget this photo" drops it with every answer about it, "forget everything" the rest.
Caps bound photos, turns, words and seconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from apps import safety
from apps.captioner import (
    LEVELS,
    MAX_QUESTION,
    MAX_TOKENS,
    Narrating,
    Update,
    component,
    guarded,
    hold,
    narrate,
    quick,
    request_id,
    stream,
)
from apps.sessions import Held, Session, Sessions, Trouble, field_of
from mmslm.prompts import CAPTION_PROMPTS

if TYPE_CHECKING:
    import gradio as gr

MAX_PHOTOS = 4
MAX_TURNS = 100
EVENTS = ("photo", "ask", "halt", "drop", "forget")


class Assistant:
    """The assistant's requests; ``page`` is what tells one open page from another."""

    def __init__(self, narrator: Narrating, sessions: Sessions | None = None) -> None:
        self.narrator = narrator
        self.sessions = sessions or Sessions()

    def photo(self, data: Mapping[str, Any], page: str | None) -> Iterator[Update]:
        """Puts the photo in ``data["image"]`` on the shelf under the page's own name for it, ``data["photo"]``."""
        request = request_id(data)
        session = self.sessions.of(page)

        def work() -> Iterator[Update]:
            name = field_of(data, "photo", 40)
            if session.stopping(request) or session.stopping(name):
                return
            if len(session.photos) >= MAX_PHOTOS:
                raise Trouble("assistant.full")
            held = hold(session, self.narrator, data.get("image"))
            held.name = name
            session.photos.append(held)
            yield {"phase": "done", "photo": name, "advice": list(held.flaws)}

        return guarded(work(), request, {"kind": "photo"})

    def ask(self, data: Mapping[str, Any], page: str | None) -> Iterator[Update]:
        """Answers ``data["question"]``, or describes at ``data["level"]``, for each photo named in ``data["photos"]``."""
        request = request_id(data)
        session = self.sessions.of(page)

        def work() -> Iterator[Update]:
            level = field_of(data, "level", 20)
            question = field_of(data, "question", MAX_QUESTION)
            if not question and level not in LEVELS:
                raise Trouble("error.no_question")
            held = _named(session, data.get("photos"))
            if len(session.turns) >= MAX_TURNS:
                raise Trouble("assistant.too_many")
            looks = bool(question) and safety.asks_for_looks(question)
            parts: list[dict[str, Any]] = []
            phase = "done"
            for one in held:
                parts.append({"photo": one.name, "text": ""})
                for update in narrate(
                    self.narrator,
                    session,
                    one,
                    question or CAPTION_PROMPTS[level],
                    request=request,
                    max_tokens=MAX_TOKENS["ask" if question else level],
                    finish=str if looks else _read if level == "text" and not question else safety.people,
                ):
                    phase = update.pop("phase")
                    if looks and update.get("tier") == "sure":
                        update["tier"] = "unsure"
                    if level == "hazard" and not question and update.get("notices") == []:
                        update["notices"] = ["unseen"]
                    parts[-1] = {"photo": one.name, **update}
                    yield {"phase": "writing", "parts": list(parts)}
                if phase == "stopped":
                    break
            # Only what "forget this photo" needs to know is kept: which photos a turn was about.
            session.turns.append({"photos": [one.name for one in held]})
            yield {"phase": phase, "parts": parts}

        return guarded(work(), request, {"kind": "ask"})

    def halt(self, data: Mapping[str, Any], page: str | None) -> None:
        """Ends a request, running or queued."""
        self.sessions.of(page).halt(request_id(data))

    def drop(self, data: Mapping[str, Any], page: str | None) -> None:
        """Forgets one photo and what was made of it, also when it still waits in the queue."""
        session = self.sessions.of(page)
        name = field_of(data, "photo", 40)
        session.halt(name)
        for held in [held for held in session.photos if held.name == name]:
            session.photos.remove(held)
            held.clear()
        session.turns[:] = [turn for turn in session.turns if name not in turn["photos"]]

    def forget(self, data: Mapping[str, Any], page: str | None) -> None:
        """Forgets everything that this page gave."""
        self.sessions.forget(page, request_id(data))

    def mount(self) -> gr.HTML:
        """The page's component, with its events wired; call it inside ``gr.Blocks``."""
        view = component("assistant", EVENTS)
        stream(view, self, ("photo", "ask"))
        quick(view, self, ("halt", "drop", "forget"))
        return view


def _read(text: str) -> str:
    return safety.quoted(safety.people(text))


def _named(session: Session, names: object) -> list[Held]:
    """The shelf's photos with these names, in the shelf's order. Raises Trouble when there is none."""
    wanted = {name for name in names if isinstance(name, str)} if isinstance(names, list) else set()
    found = [held for held in session.photos if held.name in wanted]
    if not found:
        raise Trouble("error.lost")
    return found
