"""The fixed wordings with which a picture is asked for a description. Questions are asked verbatim."""

CAPTION_PROMPTS: dict[str, str] = {
    "short": "Describe the picture in a few words.",
    "detailed": "Describe the picture in detail.",
    "hazard": "Describe the picture, dangers first.",
    "text": "Read the text in the picture.",
}


def caption_prompt(style: str) -> str:
    """The wording for a caption style. Raises ValueError for an unknown style."""
    try:
        return CAPTION_PROMPTS[style]
    except KeyError:
        raise ValueError(f"There is no caption style {style!r}; choose one of {', '.join(CAPTION_PROMPTS)}.") from None


__all__ = ["CAPTION_PROMPTS", "caption_prompt"]
