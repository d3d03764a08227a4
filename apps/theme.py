"""The look: style sheet, scripts and the Gradio theme, all from files of this package; no font or file from elsewhere.

``head()`` puts the words of all languages and the pages' scripts inline, so the page asks for nothing more.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from apps.i18n import words

STATIC = Path(__file__).parent / "static"
SCRIPTS = ("line.js", "core.js", "captioner.js", "assistant.js", "dashboard.js")
SYSTEM_FONTS = ("ui-sans-serif", "system-ui", "Segoe UI", "Roboto", "Noto Sans", "Liberation Sans", "sans-serif")


def read(name: str) -> str:
    """A static file of this package as text."""
    return (STATIC / name).read_text(encoding="utf-8")


def css() -> str:
    """The style sheet."""
    return read("app.css")


def head() -> str:
    """What goes into the page's ``<head>``: the words and the scripts, inline."""
    # "</" would end the script element early, and U+2028 is a line end in old engines.
    data = json.dumps(words(), ensure_ascii=False, sort_keys=True).replace("</", "<\\/").replace("\u2028", " ")
    scripts = "\n".join(read(name) for name in SCRIPTS if (STATIC / name).is_file())
    return f'<meta name="referrer" content="no-referrer">\n<script>window.mmslmWords = {data};\n{scripts}\n</script>'


def markup(name: str, **parts: str) -> str:
    """A page's static HTML with each ``@part`` replaced (``@camera`` by the camera of every photo page). Gradio
    reads it as a template, so its special marks are refused.
    """
    text = read(name)
    for key, value in {"camera": read("camera.html"), **parts}.items():
        text = text.replace(f"@{key}", value)
    if re.search(r"`|\$\{|\{\{|\\", text):
        raise ValueError(
            f"{name} holds a back quote, a backslash, '${{' or double braces: Gradio would run them; remove them."
        )
    return text


def theme() -> Any:
    """A Gradio theme object without web fonts; the style sheet does the rest."""
    import gradio as gr

    fonts = [gr.themes.Font(name) for name in SYSTEM_FONTS]
    mono = [gr.themes.Font(name) for name in ("ui-monospace", "monospace")]
    return gr.themes.Base(font=fonts, font_mono=mono).set(
        body_background_fill="#f4f6f8",
        body_background_fill_dark="#0d141c",
        body_text_color="#14202e",
        body_text_color_dark="#ecf1f6",
        body_text_color_subdued="#475569",
        body_text_color_subdued_dark="#b3c0cd",
    )


def tokens(css_text: str | None = None) -> dict[str, dict[str, str]]:
    """The named colours of the two modes, ``{"light": {"ink": "#14202e", ...}, "dark": {...}}``: what tests measure."""
    text = css() if css_text is None else css_text
    light = re.search(r":root \{(.*?)\}", text, re.S)
    dark = re.search(r':root\[data-theme="dark"\] \{(.*?)\}', text, re.S)
    if not light or not dark:
        raise ValueError("app.css lacks the :root blocks that name its colours; restore them.")
    pair = re.compile(r"--([\w-]+): (#[0-9a-f]{6})")
    return {"light": dict(pair.findall(light.group(1))), "dark": dict(pair.findall(dark.group(1)))}
