"""Our own 5 x 7 letters: drawn as boxes, so printed words are the same bytes on every platform.

No font file is read. Letters A-Z, digits and a colon; anything else is refused.
"""

from __future__ import annotations

from functools import lru_cache

ADVANCE, HEIGHT = 6, 7

_ROWS: dict[str, str] = {
    "A": "01110 10001 10001 11111 10001 10001 10001",
    "B": "11110 10001 10001 11110 10001 10001 11110",
    "C": "01111 10000 10000 10000 10000 10000 01111",
    "D": "11110 10001 10001 10001 10001 10001 11110",
    "E": "11111 10000 10000 11110 10000 10000 11111",
    "F": "11111 10000 10000 11110 10000 10000 10000",
    "G": "01111 10000 10000 10011 10001 10001 01111",
    "H": "10001 10001 10001 11111 10001 10001 10001",
    "I": "01110 00100 00100 00100 00100 00100 01110",
    "J": "00111 00010 00010 00010 00010 10010 01100",
    "K": "10001 10010 10100 11000 10100 10010 10001",
    "L": "10000 10000 10000 10000 10000 10000 11111",
    "M": "10001 11011 10101 10101 10001 10001 10001",
    "N": "10001 11001 10101 10101 10011 10001 10001",
    "O": "01110 10001 10001 10001 10001 10001 01110",
    "P": "11110 10001 10001 11110 10000 10000 10000",
    "Q": "01110 10001 10001 10001 10101 10010 01101",
    "R": "11110 10001 10001 11110 10100 10010 10001",
    "S": "01111 10000 10000 01110 00001 00001 11110",
    "T": "11111 00100 00100 00100 00100 00100 00100",
    "U": "10001 10001 10001 10001 10001 10001 01110",
    "V": "10001 10001 10001 10001 10001 01010 00100",
    "W": "10001 10001 10001 10101 10101 11011 10001",
    "X": "10001 10001 01010 00100 01010 10001 10001",
    "Y": "10001 10001 01010 00100 00100 00100 00100",
    "Z": "11111 00001 00010 00100 01000 10000 11111",
    "0": "01110 10001 10011 10101 11001 10001 01110",
    "1": "00100 01100 00100 00100 00100 00100 01110",
    "2": "01110 10001 00001 00110 01000 10000 11111",
    "3": "11110 00001 00001 01110 00001 00001 11110",
    "4": "00010 00110 01010 10010 11111 00010 00010",
    "5": "11111 10000 11110 00001 00001 10001 01110",
    "6": "00110 01000 10000 11110 10001 10001 01110",
    "7": "11111 00001 00010 00100 01000 01000 01000",
    "8": "01110 10001 10001 01110 10001 10001 01110",
    "9": "01110 10001 10001 01111 00001 00010 01100",
    ":": "00000 00100 00100 00000 00100 00100 00000",
}


@lru_cache(maxsize=256)
def strokes(text: str) -> tuple[tuple[int, tuple[tuple[int, int, int, int], ...]], ...]:
    """The boxes (left, top, right, bottom) of a text in font cells, as (width in cells, boxes) in one element.

    Raises ValueError for a character that the font does not have.
    """
    boxes: list[tuple[int, int, int, int]] = []
    for index, letter in enumerate(text):
        if letter not in _ROWS:
            raise ValueError(f"the sign font has no {letter!r}: it has A-Z, 0-9 and a colon, upper-case only.")
        rows = _ROWS[letter].split()
        left = index * ADVANCE
        taken: set[tuple[int, int]] = set()
        # Long vertical runs first, then what is left horizontally: few boxes per letter.
        for x in range(5):
            y = 0
            while y < HEIGHT:
                end = y
                while end < HEIGHT and rows[end][x] == "1":
                    end += 1
                if end - y >= 3:
                    boxes.append((left + x, y, left + x + 1, end))
                    taken.update((x, k) for k in range(y, end))
                y = max(end, y + 1)
        for y in range(HEIGHT):
            x = 0
            while x < 5:
                end = x
                while end < 5 and rows[y][end] == "1":
                    end += 1
                if end > x and not all((k, y) in taken for k in range(x, end)):
                    boxes.append((left + x, y, left + end, y + 1))
                x = max(end, x + 1)
    return ((max(len(text) * ADVANCE - 1, 1), tuple(boxes)),)
