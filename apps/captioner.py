"""The captioner: a photo in, a description worth hearing out, one word at a time.

The page sends the photo inside the event itself, so it is never a file here; the server decodes it, encodes it once,
and keeps both in memory until the person says forget, closes the page, or goes away. Follow-up questions and "check
again" reuse what is kept. The whole state of a request is sent each time (``Update``); the page draws it and
announces it: once when work starts, once when it ends. Nothing the model writes is treated as markup.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from apps import purpose, quality, safety
from apps.english import english
from apps.follow_up import Before, follow
from apps.sessions import Held, Session, Sessions, Trouble, field_of, receive
from apps.theme import markup
from mmslm.prompts import CAPTION_PROMPTS

if TYPE_CHECKING:
    import gradio as gr
    from PIL import Image

log = logging.getLogger(__name__)

Update = dict[str, Any]
LEVELS = ("short", "detailed", "hazard", "text")
MAX_QUESTION = 200
MAX_TOKENS = {"short": 32, "detailed": 96, "hazard": 96, "text": 64, "ask": 48}
MAX_SECONDS = 20.0
EVENTS = ("describe", "ask", "again", "halt", "forget")


class Piece(Protocol):
    """What a narrator streams: a piece of text and how sure the model was of it (0..1)."""

    @property
    def text(self) -> str: ...

    @property
    def confidence(self) -> float: ...


class Narrating(Protocol):
    """The part of ``mmslm.generation.Narrator`` that the apps use."""

    def look(self, image: Image.Image) -> Any: ...

    def stream(self, encoded: Any, prompt: str, max_new_tokens: int = 48) -> Iterator[Piece]: ...

    def confidence_of(self, confidences: Sequence[float]) -> float: ...


def hold(session: Session, narrator: Narrating, data: object) -> Held:
    """Takes a photo from an event into memory: decoded, measured, encoded once. Raises Trouble."""
    picture = receive(data)
    held = Held(picture=picture, encoded=narrator.look(picture), flaws=quality.flaws(picture))
    return held


def narrate(
    narrator: Narrating,
    session: Session,
    held: Held,
    prompt: str,
    *,
    request: str,
    max_tokens: int,
    finish: Callable[[str], str] = safety.people,
) -> Iterator[Update]:
    """Streams one reply as updates, a word at a time; the last has phase "done" or "stopped", and its tier and notices.

    ``finish`` is applied to every text before anyone sees it. Ends by itself after ``MAX_SECONDS``.
    """
    started = time.monotonic()
    text, shown, values = "", "", []
    phase = "done"
    for piece in narrator.stream(held.encoded, prompt, max_new_tokens=max_tokens):
        if session.stopping(request):
            phase = "stopped"
            break
        if time.monotonic() - started > MAX_SECONDS:
            raise Trouble("error.slow")
        text += piece.text
        values.append(piece.confidence)
        # Only whole words are sent: up to the last space, and nothing that the next word may still change.
        whole = safety.settled(text[: text.rfind(" ") + 1])
        ready = finish(safety.plain(whole))
        ready = ready[:1].upper() + ready[1:]
        if ready and ready != shown:
            shown = ready
            yield {"phase": "writing", "text": shown}
    final = finish(safety.plain(safety.settled(text) if phase == "stopped" else text))
    final = final[:1].upper() + final[1:] if phase == "stopped" else safety.sentence(final)
    tier = (
        quality.tier(narrator.confidence_of(values), held.flaws, proven=quality.is_proven(narrator))
        if final
        else "unknown"
    )
    yield {"phase": phase, "text": final, "tier": tier, "notices": list(safety.notices(final))}


def guarded(updates: Iterator[Update], request: str, common: Mapping[str, Any]) -> Iterator[Update]:
    """The updates with the request's id and ``common`` in each; every error becomes one update of phase "error".

    What went wrong is logged by its type alone: a message could carry what the photo shows.
    """
    try:
        for update in updates:
            yield {"id": request, **common, **update}
    except Trouble as trouble:
        yield {
            "id": request,
            "phase": "error",
            "error": trouble.key,
            "sentence": str(trouble),
            "lost": trouble.key == "error.lost",
        }
    except (RuntimeError, ValueError, TypeError, LookupError, ArithmeticError, OSError, MemoryError) as error:
        log.error("a request failed with %s", type(error).__name__)
        yield {"id": request, "phase": "error", "error": "error.unknown"}


def request_id(data: object) -> str:
    """The page's id of a request: at most 40 characters."""
    value = data.get("id", "") if isinstance(data, Mapping) else ""
    return value[:40] if isinstance(value, str) else ""


class Captioner:
    """The captioner's four requests; ``page`` is what tells one open page from another."""

    def __init__(self, narrator: Narrating, sessions: Sessions | None = None) -> None:
        self.narrator = narrator
        self.sessions = sessions or Sessions()

    def describe(self, data: Mapping[str, Any], page: str | None) -> Iterator[Update]:
        """Describes the photo in ``data["image"]``, or the one held, at ``data["level"]``."""
        request = request_id(data)
        session = self.sessions.of(page)

        def work() -> Iterator[Update]:
            level = data.get("level")
            if level not in LEVELS:
                raise Trouble("error.unknown")
            if session.stopping(request):
                return
            if data.get("image"):
                session.photos[:] = [hold(session, self.narrator, data["image"])]
            if not session.photos:
                raise Trouble("error.lost")
            held = session.photos[-1]
            meant = purpose.understand(field_of(data, "purpose", purpose.MAX_PURPOSE))
            session.turns[:] = [{"level": level, "purpose": meant}]
            frame = {"held": True, "advice": list(held.flaws), "level": level, "purpose": meant}
            yield {"phase": "writing", "text": "", **frame}
            for update in self._tell(session, held, level, meant, request):
                held.text = update["text"]
                yield {**frame, **update}

        return guarded(work(), request, {"kind": "describe"})

    def _tell(self, session: Session, held: Held, level: str, meant: str, request: str) -> Iterator[Update]:
        """Everything that is asked for one level and purpose, one after the other, as updates of one growing text."""
        plan = purpose.plan(meant)
        levels = plan.levels(level)
        said: list[str] = []
        tier = "sure"
        for number, one in enumerate(levels):
            finish = (lambda text: safety.quoted(safety.people(text))) if one == "text" else safety.people
            for update in narrate(
                self.narrator,
                session,
                held,
                CAPTION_PROMPTS[one],
                request=request,
                max_tokens=MAX_TOKENS[one],
                finish=finish,
            ):
                ended = update["phase"] != "writing"
                # What came first is not said twice.
                text = " ".join(dict.fromkeys(part for part in (*said, update["text"]) if part))
                if not ended or (update["phase"] == "done" and number + 1 < len(levels)):
                    yield {"phase": "writing", "text": text}
                    continue
                tier = min(tier, update["tier"], key=quality.TIERS.index)
                if plan.brief:
                    text = safety.shorten(safety.redact(text))
                if session.turns:
                    session.turns[-1]["tier"] = tier
                yield {**update, "text": text, "tier": tier, "notices": _warned(text, level, meant)}
                if update["phase"] == "stopped":
                    return
            tier = min(tier, update["tier"], key=quality.TIERS.index)
            said.append(update["text"])

    def ask(self, data: Mapping[str, Any], page: str | None) -> Iterator[Update]:
        """Answers ``data["question"]`` about the photo that is held, without encoding it again; ``data["image"]`` brings
        it back where a server before this one held it.
        """
        request = request_id(data)
        session = self.sessions.of(page)

        def work() -> Iterator[Update]:
            question = field_of(data, "question", MAX_QUESTION)
            if not question:
                raise Trouble("error.no_question")
            if not english(question):
                raise Trouble("error.english")
            if data.get("image"):
                session.photos[:] = [hold(session, self.narrator, data["image"])]
                session.turns.clear()
            if not session.photos:
                raise Trouble("error.lost")
            held = session.photos[-1]
            # "What colour is it?" is about what the description named.
            found = follow(question, Before(answer=held.text), ())
            if found is None:
                raise Trouble("assistant.unclear")
            frame = {"held": True, **({} if found.question == question else {"asked": found.question})}
            looks = safety.asks_for_looks(question)
            for update in narrate(
                self.narrator,
                session,
                held,
                found.question,
                request=request,
                max_tokens=MAX_TOKENS["ask"],
                finish=str if looks else safety.people,
            ):
                # Asked for outright, looks are answered; but never as if they were certain.
                if looks and update.get("tier") == "sure":
                    update = {**update, "tier": "unsure"}
                yield {**frame, **update}

        return guarded(work(), request, {"kind": "ask"})

    def again(self, data: Mapping[str, Any], page: str | None) -> Iterator[Update]:
        """Looks at the held photo several times more and marks the words that not every look confirms."""
        request = request_id(data)
        session = self.sessions.of(page)

        def work() -> Iterator[Update]:
            if not session.photos or not session.turns or not session.photos[-1].text:
                raise Trouble("error.lost")
            held, turn = session.photos[-1], session.turns[-1]
            frame = {"advice": list(held.flaws), "purpose": turn["purpose"]}
            others: list[str] = []
            for picture in quality.looks(held.picture):
                seen = Held(picture=picture, encoded=self.narrator.look(picture), flaws=held.flaws)
                for update in self._tell(session, seen, turn["level"], turn["purpose"], request):
                    if update["phase"] == "stopped":
                        yield {"phase": "stopped", "text": held.text, **frame}
                        return
                others.append(update["text"])
            spans, agreement = quality.compare(held.text, others)
            # Looks that agree may agree on an error: they never make a doubtful description a sure one.
            tier = "sure" if agreement == "agree" and turn.get("tier") == "sure" else "unsure"
            if quality.SPOILING.intersection(held.flaws):
                tier = "unsure"
            yield {
                "phase": "done",
                "text": held.text,
                "spans": [[part, doubtful] for part, doubtful in spans],
                "agreement": agreement,
                "looks": len(others) + 1,
                "tier": tier,
                "notices": _warned(held.text, turn["level"], turn["purpose"]),
                **frame,
            }

        return guarded(work(), request, {"kind": "again"})

    def halt(self, data: Mapping[str, Any], page: str | None) -> None:
        """Ends a request, running or queued."""
        self.sessions.of(page).halt(request_id(data))

    def forget(self, data: Mapping[str, Any], page: str | None) -> None:
        """Drops the photo, what was made of it, and every word about it."""
        self.sessions.forget(page, request_id(data))

    def mount(self) -> gr.HTML:
        """The page's component, with its events wired; call it inside ``gr.Blocks``."""
        view = component("captioner", EVENTS)
        stream(view, self, ("describe", "ask", "again"))
        quick(view, self, ("halt", "forget"))
        return view


def _warned(text: str, level: str, meant: str) -> list[str]:
    """The warnings before a description: those of its purpose, then those of its words."""
    plan = purpose.plan(meant)
    found = tuple(dict.fromkeys((*plan.notices, *safety.notices(text))))[: max(2, len(plan.notices))]
    # "No danger seen" must never be heard as "there is no danger".
    return list(found) or (["unseen"] if "hazard" in plan.levels(level) else [])


def component(name: str, events: tuple[str, ...]) -> gr.HTML:
    """A page as one Gradio component: static markup drawn by ``static/{name}.js``, which triggers ``events``."""
    import gradio as gr

    # Gradio finds an event by its quoted name in this script.
    names = ", ".join(f'"{event}"' for event in events)
    return gr.HTML(
        value={},
        html_template=markup(f"{name}.html"),
        js_on_load=f"window.mmslm.{name}(element, trigger, props, watch, [{names}]);",
        apply_default_css=False,
        elem_id=f"view-{name}",
    )


def stream(view: gr.HTML, page: Any, names: tuple[str, ...], line: str = "model") -> None:
    """Wires events whose handlers yield updates; one at a time in each ``line``: those of the model share two cores."""
    import gradio as gr

    def wire(name: str) -> None:
        handler = getattr(page, name)

        def respond(event: gr.EventData, request: gr.Request) -> Iterator[Update]:
            yield from handler(event._data or {}, request.session_hash)

        # Gradio reads the hints at run time, where a local import is not to be found.
        respond.__annotations__ = {"event": gr.EventData, "request": gr.Request}

        getattr(view, name)(
            respond,
            inputs=None,
            outputs=view,
            show_progress="hidden",
            api_visibility="private",
            concurrency_limit=1,
            concurrency_id=line,
        )

    for name in names:
        wire(name)


def quick(view: gr.HTML, page: Any, names: tuple[str, ...]) -> None:
    """Wires events that must not wait for the model: they return nothing and jump the queue."""
    import gradio as gr

    def wire(name: str) -> None:
        handler = getattr(page, name)

        def respond(event: gr.EventData, request: gr.Request) -> None:
            handler(event._data or {}, request.session_hash)

        respond.__annotations__ = {"event": gr.EventData, "request": gr.Request}

        getattr(view, name)(
            respond, inputs=None, outputs=None, show_progress="hidden", api_visibility="private", queue=False
        )

    for name in names:
        wire(name)


def build(narrator: Narrating) -> gr.Blocks:
    """The captioner alone, as ``gr.Blocks``; ``apps.shell.launch`` serves it with the privacy switches on."""
    from apps.shell import frame

    return frame({"captioner": Captioner(narrator)})
