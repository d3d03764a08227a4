"""How things on walls and floors of rooms are drawn. Each function draws into 0..100 x 0..100."""

from __future__ import annotations

from mmslm.data.scenes.palette import RGB, Shades, shade
from mmslm.data.scenes.pen import Pen

WOOD: RGB = (150, 98, 56)
METAL: RGB = (176, 182, 190)
DARK: RGB = (52, 52, 60)
PAPER: RGB = (250, 248, 240)
GLASS: RGB = (160, 208, 240)
LEAF: RGB = (58, 150, 70)
SKIN: tuple[RGB, ...] = ((246, 208, 174), (206, 152, 110), (134, 88, 58))


def printed(p: Pen, box: tuple[float, float, float, float], text: str | None, ink: RGB) -> None:
    """The word, or, where it would be too small to read, grey bars that stand for print."""
    x0, y0, x1, y1 = box
    if text:
        p.text(x0, y0, x1, y1, text, ink)
        return
    step = (y1 - y0) / 5
    for k in (1, 3):
        p.rect(x0 + 4, y0 + k * step, x1 - 4 - 6 * k, y0 + (k + 0.9) * step, ink)


def door(p: Pen, c: Shades, v: int, text: str | None) -> None:
    p.rect(0, 0, 100, 100, c.dark, edge=True)
    p.rect(9, 4, 91, 100, c.base)
    for y0, y1 in ((11, 46), (54, 90)):
        p.rect(20, y0, 47, y1, c.dark)
        p.rect(53, y0, 80, y1, c.dark)
        p.rect(23, y0 + 2, 47, y1, c.light)
        p.rect(56, y0 + 2, 80, y1, c.light)
    p.oval(78, 47, 90, 53, (246, 214, 90), edge=True)


def window(p: Pen, c: Shades, v: int, text: str | None) -> None:
    p.rect(0, 0, 100, 100, c.base, edge=True)
    p.rect(9, 9, 91, 91, GLASS)
    p.poly(((9, 62), (35, 44), (60, 60), (78, 50), (91, 58), (91, 91), (9, 91)), (138, 190, 132))
    p.poly(((14, 40), (40, 9), (56, 9), (14, 60)), (206, 232, 250))
    p.rect(46, 9, 54, 91, c.base)
    p.rect(9, 46, 91, 54, c.base)
    p.rect(-4, 92, 104, 102, c.dark, edge=True)


def clock(p: Pen, c: Shades, v: int, text: str | None) -> None:
    p.oval(0, 0, 100, 100, c.base, edge=True)
    p.oval(13, 13, 87, 87, PAPER)
    for a, b in ((50, 20), (80, 50), (50, 80), (20, 50)):
        p.oval(a - 4, b - 4, a + 4, b + 4, DARK)
    hand = ((66, 36), (70, 60), (40, 66), (30, 40))[v % 4]
    p.line(((50, 50), (50, 24)), 6, DARK)
    p.line(((50, 50), hand), 8, DARK)
    p.oval(45, 45, 55, 55, c.base)


def picture(p: Pen, c: Shades, v: int, text: str | None) -> None:
    p.rect(0, 0, 100, 100, c.base, edge=True)
    p.rect(10, 11, 90, 89, PAPER)
    sky = ((250, 206, 160), (170, 214, 240), (214, 200, 240))[v % 3]
    p.rect(16, 18, 84, 82, sky)
    p.oval(58, 24, 76, 46, (250, 236, 150))
    p.poly(((16, 82), (16, 64), (38, 36), (56, 62), (68, 50), (84, 70), (84, 82)), (96, 134, 120))


def shelf(p: Pen, c: Shades, v: int, text: str | None) -> None:
    p.rect(0, 0, 100, 100, c.base, edge=True)
    p.rect(6, 8, 94, 46, c.dark)
    p.rect(6, 56, 94, 93, c.dark)
    spines: tuple[RGB, ...] = (
        (200, 70, 60),
        (240, 200, 80),
        (70, 120, 190),
        (90, 160, 100),
        (230, 230, 222),
        (150, 90, 170),
    )
    x = 10
    for i in range(7):
        h = (30, 24, 33, 27)[(i + v) % 4]
        p.rect(x, 46 - h, x + 10, 46, spines[(i + v) % 6])
        p.rect(x + 2, 93 - h, x + 11, 93, spines[(i * 5 + v + 2) % 6])
        x += 12


def poster(p: Pen, c: Shades, v: int, text: str | None) -> None:
    p.rect(0, 0, 100, 100, c.base, edge=True)
    if v % 3 == 0:
        p.oval(24, 46, 76, 90, c.light)
    elif v % 3 == 1:
        p.poly(((12, 92), (50, 44), (88, 92)), c.light)
    else:
        for x in (14, 40, 66):
            p.rect(x, 50, x + 20, 92, c.light)
    p.rect(5, 8, 95, 40, PAPER)
    printed(p, (8, 11, 92, 37), text, (26, 26, 34))


def sign(p: Pen, c: Shades, v: int, text: str | None) -> None:
    p.round_rect(0, 0, 100, 100, 6, c.base, edge=True)
    p.round_rect(3, 8, 97, 92, 4, c.dark)
    p.round_rect(4, 11, 96, 89, 4, c.base)
    printed(p, (7, 18, 93, 82), text, c.ink)


def table(p: Pen, c: Shades, v: int, text: str | None) -> None:
    for x in (6, 86):
        p.rect(x, 26, x + 8, 100, c.dark, edge=True)
    for x in (18, 76):
        p.rect(x, 26, x + 6, 84, shade(c.dark, 80))
    p.poly(((10, 0), (90, 0), (100, 20), (0, 20)), c.light, edge=True)
    p.rect(0, 20, 100, 32, c.base, edge=True)


def chair(p: Pen, c: Shades, v: int, text: str | None) -> None:
    p.rect(14, 52, 24, 100, c.dark, edge=True)
    p.rect(76, 60, 86, 100, c.dark, edge=True)
    p.rect(34, 56, 42, 90, c.dark)
    p.rect(60, 60, 68, 90, c.dark)
    p.round_rect(10, 0, 34, 62, 8, c.base, edge=True)
    p.rect(16, 10, 27, 44, c.light)
    p.poly(((14, 50), (74, 50), (92, 62), (92, 72), (14, 72)), c.base, edge=True)
    p.poly(((18, 52), (72, 52), (86, 61), (20, 61)), c.light)


def sofa(p: Pen, c: Shades, v: int, text: str | None) -> None:
    p.rect(12, 88, 18, 100, DARK)
    p.rect(82, 88, 88, 100, DARK)
    p.round_rect(8, 0, 92, 64, 10, c.base, edge=True)
    p.rect(49, 6, 51, 50, c.dark)
    p.round_rect(14, 46, 50, 72, 4, c.light, edge=True)
    p.round_rect(50, 46, 86, 72, 4, c.light, edge=True)
    p.rect(10, 70, 90, 92, c.base, edge=True)
    p.round_rect(0, 30, 16, 92, 6, c.base, edge=True)
    p.round_rect(84, 30, 100, 92, 6, c.base, edge=True)


def lamp(p: Pen, c: Shades, v: int, text: str | None) -> None:
    p.oval(18, 92, 82, 100, DARK, edge=True)
    p.rect(45, 30, 55, 96, (96, 92, 96))
    p.oval(32, 26, 68, 40, (255, 246, 190))
    p.poly(((26, 0), (74, 0), (100, 34), (0, 34)), c.base, edge=True)
    p.poly(((34, 3), (50, 3), (42, 31), (14, 31)), c.light)


def bed(p: Pen, c: Shades, v: int, text: str | None) -> None:
    p.rect(0, 0, 8, 100, WOOD, edge=True)
    p.rect(93, 46, 100, 100, WOOD, edge=True)
    p.rect(6, 74, 96, 90, shade(WOOD, 80), edge=True)
    p.rect(7, 52, 94, 78, PAPER, edge=True)
    p.round_rect(10, 30, 36, 58, 6, PAPER, edge=True)
    p.poly(((32, 56), (42, 44), (94, 44), (94, 82), (32, 82)), c.base, edge=True)
    p.poly(((32, 56), (42, 44), (52, 44), (42, 56), (42, 82), (32, 82)), c.light)


def television(p: Pen, c: Shades, v: int, text: str | None) -> None:
    p.rect(10, 78, 90, 100, WOOD, edge=True)
    p.rect(49, 80, 51, 98, shade(WOOD, 70))
    p.rect(40, 66, 60, 78, DARK)
    p.round_rect(0, 0, 100, 70, 3, c.base, edge=True)
    p.rect(5, 7, 95, 62, (64, 120, 186))
    p.poly(((5, 62), (5, 46), (36, 30), (60, 50), (95, 36), (95, 62)), (90, 168, 110))
    p.oval(66, 12, 82, 30, (252, 226, 120))


def plant(p: Pen, c: Shades, v: int, text: str | None) -> None:
    for tip, _low in (
        ((8, 26), (38, 48)),
        ((92, 26), (62, 48)),
        ((26, 4), (44, 36)),
        ((74, 4), (56, 36)),
        ((50, 0), (50, 30)),
    ):
        mx, my = (tip[0] + 50) / 2, (tip[1] + 62) / 2
        p.poly(
            ((50, 64), (mx - 13, my - 2), tip, (mx + 13, my + 4)), LEAF if tip[0] % 4 else shade(LEAF, 75), edge=True
        )
    p.poly(((20, 62), (80, 62), (70, 100), (30, 100)), c.base, edge=True)
    p.rect(16, 58, 84, 70, c.light, edge=True)


def basket(p: Pen, c: Shades, v: int, text: str | None) -> None:
    p.ring(18, 2, 82, 84, 7, c.dark)
    p.poly(((4, 42), (96, 42), (84, 100), (16, 100)), c.base, edge=True)
    for k in range(3):
        y = 54 + 15 * k
        p.rect(9 + 3 * k, y, 91 - 3 * k, y + 5, c.dark)
    for x in (26, 48, 70):
        p.rect(x, 46, x + 4, 98, c.light)
    p.rect(0, 38, 100, 48, c.light, edge=True)


def box(p: Pen, c: Shades, v: int, text: str | None) -> None:
    p.poly(((0, 24), (16, 0), (100, 0), (84, 24)), c.light, edge=True)
    p.poly(((84, 24), (100, 0), (100, 78), (84, 100)), c.dark, edge=True)
    p.rect(0, 24, 84, 100, c.base, edge=True)
    if text:
        p.rect(5, 40, 79, 80, PAPER)
        p.text(8, 45, 76, 75, text, (26, 26, 34))
    else:
        p.rect(36, 24, 48, 100, c.light)
        p.poly(((36, 24), (52, 0), (64, 0), (48, 24)), shade(c.light, 115))


def bin_(p: Pen, c: Shades, v: int, text: str | None) -> None:
    p.poly(((10, 22), (90, 22), (80, 100), (20, 100)), c.base, edge=True)
    for x in (30, 48, 66):
        p.rect(x, 32, x + 5, 92, c.dark)
    p.round_rect(0, 8, 100, 24, 6, c.light, edge=True)
    p.rect(38, 0, 62, 9, c.dark, edge=True)


def ball(p: Pen, c: Shades, v: int, text: str | None) -> None:
    p.oval(0, 0, 100, 100, c.base, edge=True)
    p.poly(((6, 34), (50, 46), (94, 34), (97, 52), (50, 64), (3, 52)), PAPER)
    p.oval(24, 12, 44, 28, c.light)


def shoes(p: Pen, c: Shades, v: int, text: str | None) -> None:
    for x in (0, 50):
        p.poly(((x + 2, 10), (x + 20, 6), (x + 24, 36), (x + 46, 56), (x + 48, 84), (x + 1, 84)), c.base, edge=True)
        p.rect(x, 82, x + 49, 100, PAPER if c.name != "white" else DARK, edge=True)
        p.line(((x + 22, 40), (x + 32, 30)), 8, c.ink)
        p.line(((x + 29, 48), (x + 39, 40)), 8, c.ink)


def bag(p: Pen, c: Shades, v: int, text: str | None) -> None:
    p.ring(26, 2, 74, 66, 8, c.dark)
    p.poly(((10, 36), (90, 36), (100, 100), (0, 100)), c.base, edge=True)
    p.poly(((10, 36), (90, 36), (92, 56), (50, 70), (8, 56)), c.dark)
    p.oval(43, 60, 57, 72, (246, 214, 90), edge=True)


def backpack(p: Pen, c: Shades, v: int, text: str | None) -> None:
    p.ring(36, -4, 64, 26, 6, c.dark)
    p.round_rect(0, 52, 20, 92, 6, c.dark, edge=True)
    p.round_rect(80, 52, 100, 92, 6, c.dark, edge=True)
    p.poly(((12, 30), (26, 10), (50, 4), (74, 10), (88, 30), (90, 100), (10, 100)), c.base, edge=True)
    p.poly(((16, 34), (84, 34), (82, 46), (50, 52), (18, 46)), c.dark)
    p.round_rect(24, 60, 76, 92, 6, c.light, edge=True)
    p.rect(26, 68, 74, 72, c.dark)


def umbrella(p: Pen, c: Shades, v: int, text: str | None) -> None:
    p.line(((50, 4), (50, 88), (56, 96), (66, 92), (66, 84)), 5, DARK)
    p.poly(
        (
            (0, 52),
            (6, 30),
            (24, 12),
            (50, 5),
            (76, 12),
            (94, 30),
            (100, 52),
            (84, 44),
            (67, 52),
            (50, 44),
            (33, 52),
            (16, 44),
        ),
        c.base,
        edge=True,
    )
    p.poly(((33, 52), (38, 28), (50, 5), (62, 28), (67, 52), (50, 44)), c.light)


ROOM_THINGS = {
    "door": door, "window": window, "clock": clock, "picture": picture, "shelf": shelf, "poster": poster, "sign": sign,
    "table": table, "chair": chair, "sofa": sofa, "lamp": lamp, "bed": bed, "television": television, "plant": plant,
    "basket": basket, "box": box, "bin": bin_, "ball": ball, "shoes": shoes, "bag": bag, "backpack": backpack,
    "umbrella": umbrella,
}  # fmt: skip
