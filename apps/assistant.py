"""The assistant: questions about one or several photos, in memory only.

Each question goes to the model alone, beside the one photo it is about: neither what was read in a picture nor an
earlier answer ever becomes part of a prompt, so words printed in a picture can order nothing, and there is no hidden
instruction that could leak. What "it" and "the other one" mean is settled by ``apps.follow_up`` from what the page
sends along. Pasted text never meets the model (``apps.summary``). "Forget this photo" drops it with every answer about
it, "forget everything" the rest; a conversation is kept (``apps.history``) only when the person gives a passphrase.
Caps bound photos, turns, words and seconds.
"""

from __future__ import annotations

import datetime
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from apps import safety, summary
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
from apps.english import english
from apps.follow_up import Before, Followed, follow
from apps.history import MAX_PASSPHRASE, History, Turn
from apps.sessions import Held, Session, Sessions, Trouble, field_of
from mmslm.prompts import CAPTION_PROMPTS

if TYPE_CHECKING:
    import gradio as gr

log = logging.getLogger(__name__)

MAX_PHOTOS = 4
MAX_TURNS = 100
EVENTS = ("photo", "ask", "pick", "peek", "unlock", "halt", "drop", "unturn", "lock", "burn", "forget")


class Assistant:
    """The assistant's requests; ``page`` is what tells one open page from another.

    ``history``: where a conversation may be kept on request; None where keeping is not offered.
    """

    def __init__(self, narrator: Narrating, sessions: Sessions | None = None, history: History | None = None) -> None:
        self.narrator = narrator
        self.sessions = sessions or Sessions()
        self.history = history

    def photo(self, data: Mapping[str, Any], page: str | None) -> Iterator[Update]:
        """Puts the photo in ``data["image"]`` on the shelf under the page's own name for it, ``data["photo"]``."""
        request = request_id(data)
        session = self.sessions.of(page)

        def work() -> Iterator[Update]:
            name = field_of(data, "photo", 40)
            if session.stopping(request) or session.stopping(name):
                return
            # A photo that is sent again takes its own place.
            others = [one for one in session.photos if one.name != name]
            if len(others) >= MAX_PHOTOS:
                raise Trouble("assistant.full")
            held = hold(session, self.narrator, data.get("image"))
            held.name = name
            session.photos[:] = [*others, held]
            yield {"phase": "done", "photo": name, "advice": list(held.flaws)}

        return guarded(work(), request, {"kind": "photo"})

    def ask(self, data: Mapping[str, Any], page: str | None) -> Iterator[Update]:
        """Answers ``data["question"]``, or describes at ``data["level"]``, for each photo named in ``data["photos"]``.

        ``data["before"]``: the page's last turn, by which a follow-up is settled.
        """
        request = request_id(data)
        session = self.sessions.of(page)

        def work() -> Iterator[Update]:
            level = field_of(data, "level", 20)
            question = field_of(data, "question", MAX_QUESTION)
            if not question and level not in LEVELS:
                raise Trouble("error.no_question")
            asked = Followed(question, level)
            if question:
                found = follow(question, _before(data.get("before")), tuple(one.name for one in session.photos))
                if found is None or len(found.question) > MAX_QUESTION:
                    raise Trouble("assistant.unclear")
                if not english(found.question):
                    raise Trouble("error.english")
                asked = found
            held = _named(session, data.get("photos") if asked.photos is None else list(asked.photos))
            if len(session.turns) >= MAX_TURNS:
                raise Trouble("assistant.too_many")
            frame: Update = {"about": [one.name for one in held]}
            if (asked.question, asked.level) != (question, level):
                frame["asked"] = asked.question
                frame["key"] = asked.level
            question, level = asked.question, asked.level
            if not question and level not in LEVELS:
                raise Trouble("error.no_question")
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
                    yield {"phase": "writing", "parts": list(parts), **frame}
                if phase == "stopped":
                    break
            # Only what "forget this photo" needs to know is kept: which photos a turn was about.
            session.turns.append({"id": request, "photos": [one.name for one in held]})
            self._keep(session, {"id": request, "question": question, "level": level, "parts": parts})
            yield {"phase": phase, "parts": parts, "keeping": session.key is not None, **frame}

        return guarded(work(), request, {"kind": "ask"})

    def pick(self, data: Mapping[str, Any], page: str | None) -> Iterator[Update]:
        """What matters in the pasted ``data["text"]``, word for word; no model reads it."""
        request = request_id(data)
        session = self.sessions.of(page)

        def work() -> Iterator[Update]:
            text = field_of(data, "text", summary.MAX_TEXT)
            if not text:
                raise Trouble("summary.empty")
            found = asdict(summary.summarise(text))
            self._keep(session, {"id": request, "summary": found})
            yield {"phase": "done", "summary": found, "keeping": session.key is not None}

        return guarded(work(), request, {"kind": "pick"})

    def peek(self, data: Mapping[str, Any], page: str | None) -> Iterator[Update]:
        """Whether keeping a conversation is offered, where, and whether one is kept."""
        history = self.history
        yield {
            "phase": "history",
            "offered": history is not None,
            "kept": history is not None and history.exists(),
            "path": "" if history is None else str(history.path),
        }

    def unlock(self, data: Mapping[str, Any], page: str | None) -> Iterator[Update]:
        """Opens the kept history with ``data["passphrase"]``, or begins one; from then on this page's turns are kept."""
        request = request_id(data)
        session = self.sessions.of(page)

        def work() -> Iterator[Update]:
            if self.history is None:
                raise Trouble("history.not_offered")
            session.key, turns = self.history.unlock(field_of(data, "passphrase", MAX_PASSPHRASE))
            yield {"phase": "done", "turns": turns, "path": str(self.history.path)}

        return guarded(work(), request, {"kind": "unlock"})

    def lock(self, data: Mapping[str, Any], page: str | None) -> None:
        """Keeps no further turn of this page and lets go of the key; what is kept stays, sealed."""
        self.sessions.of(page).key = None

    def burn(self, data: Mapping[str, Any], page: str | None) -> None:
        """Deletes the kept history, with or without its passphrase."""
        self.sessions.of(page).key = None
        if self.history is not None:
            _safely(self.history.delete)

    def halt(self, data: Mapping[str, Any], page: str | None) -> None:
        """Ends a request, running or queued."""
        self.sessions.of(page).halt(request_id(data))

    def unturn(self, data: Mapping[str, Any], page: str | None) -> None:
        """Forgets one question with its answer, also in the kept history."""
        session = self.sessions.of(page)
        gone = field_of(data, "turn", 40)
        session.turns[:] = [turn for turn in session.turns if turn["id"] != gone]
        self._edit(session, lambda turns: [turn for turn in turns if turn.get("id") != gone])

    def drop(self, data: Mapping[str, Any], page: str | None) -> None:
        """Forgets one photo and what was made of it, also when it still waits in the queue."""
        session = self.sessions.of(page)
        name = field_of(data, "photo", 40)
        session.halt(name)
        for held in [held for held in session.photos if held.name == name]:
            session.photos.remove(held)
            held.clear()
        session.turns[:] = [turn for turn in session.turns if name not in turn["photos"]]
        self._edit(session, lambda turns: [rest for turn in turns if (rest := _without(turn, name))])

    def forget(self, data: Mapping[str, Any], page: str | None) -> None:
        """Forgets everything that this page gave; the kept history too, where this page has it open."""
        opened = self.sessions.of(page).key is not None
        self.sessions.forget(page, request_id(data))
        if opened and self.history is not None:
            _safely(self.history.delete)

    def _keep(self, session: Session, turn: Turn) -> None:
        """Adds a turn to the history of a page that asked for one, personal data blacked out."""
        today = datetime.date.today().isoformat()
        self._edit(session, lambda turns: [*turns, _redacted({**turn, "day": today})])

    def _edit(self, session: Session, edit: Callable[[list[Turn]], list[Turn]]) -> None:
        key, history = session.key, self.history
        if key is not None and history is not None and not session.gone:
            _safely(lambda: history.change(key, edit))

    def mount(self) -> gr.HTML:
        """The page's component, with its events wired; call it inside ``gr.Blocks``."""
        view = component("assistant", EVENTS)
        stream(view, self, ("photo", "ask"))
        stream(view, self, ("pick", "peek", "unlock"), line="text")
        quick(view, self, ("halt", "drop", "unturn", "lock", "burn", "forget"))
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


def _before(data: object) -> Before:
    """The page's last turn; what does not fit is taken for nothing."""
    if not isinstance(data, Mapping):
        return Before()
    names = data.get("photos")
    photos = tuple(name for name in names if isinstance(name, str)) if isinstance(names, list) else ()
    texts = [str(data.get(name) or "")[:limit] for name, limit in (("question", MAX_QUESTION), ("answer", 1000))]
    level = data.get("level")
    return Before(texts[0], level if level in LEVELS else "", texts[1], photos)


def _without(turn: Turn, photo: str) -> Turn | None:
    """A kept turn without what it says about one photo; None when nothing is left."""
    if "parts" not in turn:
        return turn
    parts = [part for part in turn["parts"] if part.get("photo") != photo]
    return {**turn, "parts": parts} if parts else None


def _redacted(value: Any) -> Any:
    if isinstance(value, str):
        return safety.redact(value)
    if isinstance(value, dict):
        # Names of turns and photos are random letters and digits: what looks like a number in them is none.
        return {k: v if k in ("id", "photo", "day") else _redacted(v) for k, v in value.items()}
    return [_redacted(item) for item in value] if isinstance(value, list | tuple) else value


def _safely(work: Callable[[], object]) -> None:
    """Work on the history that must not end a reply; what went wrong is logged by its type alone."""
    try:
        work()
    except (OSError, ValueError) as error:
        log.error("the history could not be changed: %s", type(error).__name__)
