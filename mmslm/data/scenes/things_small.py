"""How things on a table, and the things that only homes have, are drawn. Each draws into 0..100 x 0..100."""

from __future__ import annotations

from mmslm.data.scenes.palette import RGB, Shades, shade
from mmslm.data.scenes.pen import Pen
from mmslm.data.scenes.things_rooms import DARK, GLASS, METAL, PAPER, WOOD, printed

STEAM: RGB = (250, 250, 252)
GLOW: RGB = (255, 96, 40)


def book(p: Pen, c: Shades, v: int, text: str | None) -> None:
    p.poly(((8, 0), (96, 0), (100, 8), (100, 100), (12, 100), (4, 94)), PAPER, edge=True)
    p.poly(((0, 4), (8, 0), (88, 0), (88, 92), (8, 92), (0, 96)), c.base, edge=True)
    p.rect(0, 4, 12, 94, c.dark)
    p.rect(24, 18, 76, 40, c.light)
    p.rect(24, 50, 62, 56, c.ink)


def cup(p: Pen, c: Shades, v: int, text: str | None) -> None:
    p.ring(58, 20, 98, 78, 12, c.dark)
    p.poly(((2, 8), (76, 8), (70, 94), (60, 100), (18, 100), (8, 94)), c.base, edge=True)
    p.oval(2, 0, 76, 20, c.light, edge=True)
    p.oval(10, 4, 68, 16, (104, 64, 40))
    p.poly(((12, 28), (22, 30), (24, 84), (17, 84)), c.light)


def bottle(p: Pen, c: Shades, v: int, text: str | None) -> None:
    p.poly(
        ((34, 8), (66, 8), (66, 28), (98, 44), (98, 96), (92, 100), (8, 100), (2, 96), (2, 44), (34, 28)),
        c.base,
        edge=True,
    )
    p.rect(28, 0, 72, 10, DARK if c.name != "black" else METAL, edge=True)
    p.rect(4, 56, 96, 82, PAPER if c.name != "white" else (120, 180, 230))
    p.rect(14, 46, 26, 54, c.light)


def glasses(p: Pen, c: Shades, v: int, text: str | None) -> None:
    p.oval(0, 6, 44, 100, c.base, edge=True)
    p.oval(56, 6, 100, 100, c.base, edge=True)
    p.oval(8, 22, 36, 84, GLASS)
    p.oval(64, 22, 92, 84, GLASS)
    p.rect(40, 34, 60, 52, c.base)
    p.line(((2, 40), (14, 0)), 14, c.base)
    p.line(((98, 40), (86, 0)), 14, c.base)


def laptop(p: Pen, c: Shades, v: int, text: str | None) -> None:
    p.round_rect(12, 0, 88, 72, 3, c.base, edge=True)
    p.rect(17, 7, 83, 66, (206, 228, 246))
    printed(p, (19, 20, 81, 54), text, (24, 40, 90))
    p.poly(((12, 72), (88, 72), (100, 94), (0, 94)), c.light, edge=True)
    p.poly(((20, 76), (80, 76), (86, 85), (14, 85)), c.dark)
    p.rect(0, 93, 100, 100, c.dark)


def phone(p: Pen, c: Shades, v: int, text: str | None) -> None:
    p.round_rect(0, 0, 100, 100, 16, c.base, edge=True)
    p.rect(10, 10, 90, 86, (96, 190, 226))
    for k, tone in enumerate(((250, 214, 90), (240, 110, 96), (120, 200, 120), (250, 250, 250))):
        x, y = 20 + 34 * (k % 2), 44 + 20 * (k // 2)
        p.rect(x, y, x + 24, y + 13, tone)
    p.rect(24, 20, 76, 30, PAPER)
    p.oval(42, 89, 58, 97, c.light)


def keys(p: Pen, c: Shades, v: int, text: str | None) -> None:
    p.ring(28, 2, 72, 42, 7, METAL)
    for x, y, dx in ((24, 42, -10), (62, 42, 16)):
        p.line(((x + 8, y + 10), (x + 8 + dx, 96)), 12, c.base)
        p.line(((x + 8 + dx * 0.9, 90), (x + 24 + dx * 0.9, 88)), 9, c.base)
        p.line(((x + 8 + dx * 0.7, 76), (x + 22 + dx * 0.7, 74)), 9, c.base)
        p.oval(x - 8, y - 12, x + 24, y + 20, c.base, edge=True)
        p.oval(x + 3, y - 4, x + 13, y + 6, c.dark)


def letter(p: Pen, c: Shades, v: int, text: str | None) -> None:
    p.rect(0, 0, 100, 100, c.base, edge=True)
    p.line(((0, 0), (50, 58), (100, 0)), 5, shade(c.dark, 80))
    p.line(((0, 100), (36, 44)), 3, c.dark)
    p.line(((100, 100), (64, 44)), 3, c.dark)
    p.oval(41, 44, 59, 72, (200, 44, 48))


def hat(p: Pen, c: Shades, v: int, text: str | None) -> None:
    p.poly(((24, 76), (28, 16), (40, 2), (60, 2), (72, 16), (76, 76)), c.base, edge=True)
    p.oval(0, 62, 100, 100, c.base, edge=True)
    p.poly(((25, 54), (75, 54), (77, 76), (23, 76)), PAPER if c.name not in ("white", "yellow") else DARK)
    p.poly(((34, 14), (42, 8), (40, 50), (32, 50)), c.light)


def apple(p: Pen, c: Shades, v: int, text: str | None) -> None:
    p.line(((50, 28), (56, 4)), 8, (96, 62, 36))
    p.poly(((56, 18), (70, 4), (88, 8), (76, 22)), (76, 160, 62))
    p.poly(((50, 26), (64, 20), (84, 22), (98, 42), (96, 68), (80, 94), (62, 100), (50, 95), (38, 100), (20, 94),
            (4, 68), (2, 42), (16, 22), (36, 20)), c.base, edge=True)  # fmt: skip
    p.oval(16, 34, 34, 56, c.light)


def banana(p: Pen, c: Shades, v: int, text: str | None) -> None:
    p.poly(((2, 8), (12, 2), (24, 40), (48, 60), (76, 54), (94, 26), (100, 32), (92, 72), (68, 98), (38, 96), (14, 70),
            (6, 36)), c.base, edge=True)  # fmt: skip
    p.line(((12, 34), (26, 66), (50, 80), (76, 74), (92, 50)), 5, c.dark)
    p.poly(((0, 4), (10, 0), (14, 12), (4, 14)), (96, 62, 36))
    p.poly(((92, 26), (98, 22), (102, 32), (97, 36)), (96, 62, 36))


def stairs(p: Pen, c: Shades, v: int, text: str | None) -> None:
    steps = 6
    for k in range(steps - 1, -1, -1):  # from the far top down to the viewer
        inset, y = 4.4 * k, 100.0 - 15 * (k + 1)
        deep = 4.4 * (k + 1)
        p.rect(inset, y + 4, 100 - inset, y + 15, c.base, edge=True)
        p.poly(((deep, y - 1), (100 - deep, y - 1), (100 - inset, y + 5), (inset, y + 5)), c.light, edge=True)
    for a, b in ((3, 26), (97, 74)):
        for t in (0.0, 0.5, 1.0):
            x, y = a + (b - a) * t, 84 - 76 * t
            p.line(((x, y - 2), (x, y - 22 + 8 * t)), 3.5, DARK)
        p.line(((a, 62), (b, -6)), 5.5, WOOD)


def fridge(p: Pen, c: Shades, v: int, text: str | None) -> None:
    p.round_rect(0, 0, 100, 98, 6, c.base, edge=True)
    p.rect(0, 33, 100, 36, c.dark)
    p.rect(88, 4, 97, 94, c.dark)
    p.rect(10, 14, 17, 28, METAL, edge=True)
    p.rect(10, 42, 17, 66, METAL, edge=True)
    p.rect(44, 48, 70, 60, (250, 226, 110))
    p.rect(6, 97, 24, 100, DARK)
    p.rect(76, 97, 94, 100, DARK)


def stove(p: Pen, c: Shades, v: int, text: str | None) -> None:
    p.poly(((8, 14), (92, 14), (100, 30), (0, 30)), (64, 66, 72), edge=True)
    hot = text == "HOT"
    for x in (22, 62):
        p.oval(x - 4, 16, x + 22, 26, GLOW if hot else (30, 30, 34))
        p.oval(x + 2, 18, x + 16, 24, (255, 190, 80) if hot else (54, 54, 60))
    if hot:
        for x in (31, 71):
            p.poly(((x - 9, 17), (x - 5, 2), (x, 9), (x + 4, -2), (x + 9, 17)), GLOW)
            p.poly(((x - 4, 17), (x, 8), (x + 4, 17)), (255, 222, 90))
    p.rect(0, 30, 100, 100, c.base, edge=True)
    for x in (12, 34, 58, 80):
        p.oval(x, 34, x + 9, 43, DARK)
    p.rect(12, 52, 88, 90, (40, 40, 46), edge=True)
    p.rect(18, 58, 82, 84, (236, 132, 52) if hot else (84, 92, 104))
    p.rect(14, 46, 86, 51, METAL)


def wheelchair(p: Pen, c: Shades, v: int, text: str | None) -> None:
    p.line(((14, 4), (26, 8), (32, 56), (70, 58), (78, 88), (92, 88)), 6, (70, 72, 78))
    p.poly(((22, 12), (34, 10), (40, 54), (28, 56)), c.base, edge=True)
    p.rect(30, 48, 72, 60, c.base, edge=True)
    p.line(((32, 34), (66, 34), (66, 52)), 6, DARK)
    p.ring(4, 44, 62, 98, 6, (34, 34, 38))
    p.ring(12, 52, 54, 90, 2, METAL)
    for a, b in (((33, 46), (33, 96)), ((6, 71), (60, 71)), ((14, 53), (52, 89)), ((52, 53), (14, 89))):
        p.line((a, b), 1.5, METAL)
    p.oval(27, 65, 39, 77, c.base)
    p.ring(70, 80, 90, 99, 5, (34, 34, 38))


def cane(p: Pen, c: Shades, v: int, text: str | None) -> None:
    p.line(((14, 22), (16, 10), (32, 3), (52, 6), (62, 18), (62, 94)), 8, shade(c.base, 62))
    p.line(((14, 22), (16, 10), (32, 3), (52, 6), (62, 18), (62, 94)), 6, c.base)
    p.rect(50, 92, 74, 100, DARK)
    p.rect(50, 30, 74, 34, METAL)


def kettle(p: Pen, c: Shades, v: int, text: str | None) -> None:
    if text == "HOT":
        for x, y in ((100, 0), (110, -14), (98, -26)):
            p.oval(x - 12, y - 6, x + 12, y + 18, STEAM, edge=True)
        p.rect(4, 97, 86, 104, GLOW, edge=True)  # the hot plate
    p.poly(((74, 56), (88, 26), (102, 18), (104, 28), (94, 40), (84, 76)), c.base, edge=True)
    p.ring(16, -2, 72, 60, 9, DARK)
    p.poly(((20, 36), (34, 26), (56, 26), (70, 36), (84, 84), (78, 100), (12, 100), (6, 84)), c.base, edge=True)
    p.oval(34, 18, 56, 34, c.dark, edge=True)
    p.poly(((22, 48), (30, 46), (24, 88), (14, 88)), c.light)


def toaster(p: Pen, c: Shades, v: int, text: str | None) -> None:
    for x in (18, 54):
        p.round_rect(x, 0, x + 28, 50, 8, (222, 166, 96), edge=True)
        p.round_rect(x + 4, 5, x + 24, 50, 6, (244, 208, 150))
    p.round_rect(2, 28, 94, 92, 14, c.base, edge=True)
    p.rect(12, 34, 84, 40, c.dark)
    p.rect(94, 44, 104, 54, DARK)
    p.oval(70, 62, 84, 80, METAL)
    p.rect(14, 52, 22, 82, c.light)
    p.rect(10, 90, 24, 100, DARK)
    p.rect(72, 90, 86, 100, DARK)


def frying_pan(p: Pen, c: Shades, v: int, text: str | None) -> None:
    p.poly(((56, 34), (98, 14), (102, 34), (60, 56)), DARK, edge=True)
    p.oval(0, 8, 68, 92, c.base, edge=True)
    p.oval(7, 14, 61, 78, (74, 76, 82))
    if v % 2:
        p.oval(18, 28, 50, 66, PAPER)
        p.oval(28, 38, 42, 56, (250, 196, 50))
    else:
        p.oval(14, 22, 54, 58, (96, 98, 104))


def knife(p: Pen, c: Shades, v: int, text: str | None) -> None:
    p.poly(((0, 58), (14, 24), (62, 18), (62, 82), (20, 82)), (214, 220, 228), edge=True)
    p.poly(((6, 66), (62, 62), (62, 82), (20, 82)), (246, 248, 250))
    p.rect(60, 12, 67, 88, METAL, edge=True)
    p.round_rect(66, 22, 100, 80, 5, c.base, edge=True)
    p.oval(73, 42, 79, 60, METAL)
    p.oval(87, 42, 93, 60, METAL)


def medicine(p: Pen, c: Shades, v: int, text: str | None) -> None:
    p.round_rect(6, 24, 94, 100, 12, c.base, edge=True)
    p.rect(10, 0, 90, 24, PAPER if c.name != "white" else (60, 120, 210), edge=True)
    for x in (22, 38, 54, 70):
        p.rect(x, 4, x + 6, 20, (206, 208, 212) if c.name != "white" else (36, 84, 160))
    p.rect(6, 36, 94, 88, (255, 255, 255), edge=True)
    p.rect(42, 38, 58, 60, (216, 40, 44))
    p.rect(31, 45, 69, 53, (216, 40, 44))
    printed(p, (10, 64, 90, 86), text, (24, 24, 32))


SMALL_THINGS = {
    "book": book, "cup": cup, "bottle": bottle, "glasses": glasses, "laptop": laptop, "phone": phone, "keys": keys,
    "letter": letter, "hat": hat, "apple": apple, "banana": banana, "stairs": stairs, "fridge": fridge, "stove": stove,
    "wheelchair": wheelchair, "cane": cane, "kettle": kettle, "toaster": toaster, "frying pan": frying_pan,
    "knife": knife, "medicine bottle": medicine,
}  # fmt: skip
