"""How living things, vehicles and street furniture are drawn. Each function draws into 0..100 x 0..100."""

from __future__ import annotations

from mmslm.data.scenes.palette import RGB, Shades, shade
from mmslm.data.scenes.pen import Pen
from mmslm.data.scenes.things_rooms import DARK, GLASS, LEAF, METAL, PAPER, SKIN, WOOD, printed

HAIR: tuple[RGB, ...] = ((60, 42, 32), (30, 28, 32), (170, 116, 60), (190, 188, 186))
TROUSERS: tuple[RGB, ...] = ((64, 74, 104), (84, 76, 72), (50, 54, 60))


def person(p: Pen, c: Shades, v: int, text: str | None) -> None:
    skin, hair, legs = SKIN[v % 3], HAIR[v // 3 % 4], TROUSERS[v // 12 % 3]
    p.rect(30, 60, 47, 96, legs, edge=True)
    p.rect(53, 60, 70, 96, legs, edge=True)
    p.round_rect(22, 94, 48, 100, 4, DARK)
    p.round_rect(52, 94, 78, 100, 4, DARK)
    p.poly(((20, 24), (6, 54), (18, 58), (32, 34)), c.base, edge=True)
    p.poly(((80, 24), (94, 54), (82, 58), (68, 34)), c.base, edge=True)
    p.oval(4, 53, 18, 61, skin)
    p.oval(82, 53, 96, 61, skin)
    p.round_rect(18, 21, 82, 64, 14, c.base, edge=True)
    p.rect(42, 17, 58, 25, skin)
    p.oval(27, 0, 73, 21, hair, edge=True)
    p.oval(31, 4, 69, 21, skin)
    p.rect(40, 11, 44, 13, DARK)
    p.rect(56, 11, 60, 13, DARK)
    p.rect(44, 17, 56, 18, (190, 90, 80))


def dog(p: Pen, c: Shades, v: int, text: str | None) -> None:
    p.poly(((4, 18), (12, 14), (20, 46), (12, 52)), c.base, edge=True)
    for x in (14, 26, 56, 68):
        p.rect(x, 66, x + 9, 100, c.dark if x in (26, 56) else c.base, edge=True)
    p.round_rect(10, 38, 78, 76, 10, c.base, edge=True)
    p.poly(((60, 48), (64, 12), (84, 10), (100, 32), (96, 44), (82, 46), (78, 62)), c.base, edge=True)
    p.poly(((62, 10), (74, 10), (72, 40), (60, 36)), c.dark, edge=True)
    p.oval(82, 18, 88, 25, c.ink if c.name != "brown" else DARK)
    p.oval(94, 28, 102, 38, DARK if c.name != "black" else (120, 110, 110))
    p.rect(60, 50, 80, 57, (206, 48, 50))


def cat(p: Pen, c: Shades, v: int, text: str | None) -> None:
    p.line(((74, 92), (96, 84), (96, 56), (84, 44)), 9, c.base)
    p.poly(((28, 40), (72, 40), (86, 80), (80, 100), (20, 100), (14, 80)), c.base, edge=True)
    p.poly(((18, 0), (40, 14), (60, 14), (82, 0), (84, 34), (70, 52), (30, 52), (16, 34)), c.base, edge=True)
    p.poly(((22, 8), (34, 16), (24, 22)), (232, 150, 150))
    p.poly(((78, 8), (66, 16), (76, 22)), (232, 150, 150))
    eye = (120, 190, 90) if c.name != "white" else (60, 110, 170)
    p.oval(30, 24, 42, 36, eye)
    p.oval(58, 24, 70, 36, eye)
    p.rect(35, 25, 37, 35, (16, 16, 18))
    p.rect(63, 25, 65, 35, (16, 16, 18))
    p.poly(((45, 38), (55, 38), (50, 44)), (232, 130, 130))
    p.oval(34, 62, 66, 98, c.light)
    p.oval(24, 90, 46, 100, c.light)
    p.oval(54, 90, 76, 100, c.light)


def bird(p: Pen, c: Shades, v: int, text: str | None) -> None:
    p.poly(((0, 40), (26, 48), (22, 66)), c.dark, edge=True)
    p.poly(
        ((18, 56), (34, 40), (60, 40), (74, 28), (90, 30), (92, 46), (78, 66), (50, 76), (28, 70)), c.base, edge=True
    )
    p.poly(((90, 34), (104, 40), (90, 45)), (246, 170, 40))
    p.poly(((32, 46), (30, 0), (50, 8), (64, 46)), c.light, edge=True)
    p.oval(78, 33, 86, 43, PAPER)
    p.oval(81, 35, 86, 41, (16, 16, 18))


def _wheel(p: Pen, x: float, y: float, rx: float, ry: float) -> None:
    p.oval(x - rx, y - ry, x + rx, y + ry, (30, 30, 34))
    p.oval(x - rx * 0.5, y - ry * 0.5, x + rx * 0.5, y + ry * 0.5, METAL)


def car(p: Pen, c: Shades, v: int, text: str | None) -> None:
    p.poly(((14, 46), (30, 6), (68, 6), (86, 46)), c.base, edge=True)
    p.poly(((22, 44), (34, 14), (48, 14), (48, 44)), GLASS)
    p.poly(((53, 44), (53, 14), (65, 14), (77, 44)), GLASS)
    p.poly(((0, 52), (10, 42), (84, 42), (98, 50), (100, 84), (0, 84)), c.base, edge=True)
    p.rect(2, 66, 98, 72, c.dark)
    p.rect(0, 52, 6, 62, (230, 60, 50))
    p.rect(93, 52, 99, 62, (255, 244, 180))
    p.rect(49, 50, 58, 54, c.dark)
    _wheel(p, 24, 82, 11, 18)
    _wheel(p, 77, 82, 11, 18)


def bus(p: Pen, c: Shades, v: int, text: str | None) -> None:
    p.round_rect(0, 0, 100, 88, 4, c.base, edge=True)
    p.rect(0, 68, 100, 76, c.dark)
    p.rect(26, 4, 74, 32, (24, 24, 30))
    printed(p, (30, 6, 70, 30), text, (255, 214, 70))
    for x in (5, 26, 47, 68):
        p.rect(x, 37, x + 17, 60, GLASS)
    p.rect(88, 36, 98, 84, shade(GLASS, 80))
    p.rect(92, 36, 94, 84, c.dark)
    p.rect(96, 76, 100, 82, (255, 244, 180))
    _wheel(p, 22, 88, 8, 12)
    _wheel(p, 72, 88, 8, 12)


def bicycle(p: Pen, c: Shades, v: int, text: str | None) -> None:
    for x in (0, 58):
        p.ring(x, 38, x + 42, 100, 6, (34, 34, 38))
        p.oval(x + 18, 65, x + 24, 73, METAL)
    frame = ((21, 69), (36, 30), (70, 30), (46, 72), (21, 69))
    p.line(frame, 7, c.base)
    p.line(((34, 22), (48, 72)), 7, c.base)
    p.line(((79, 69), (68, 16)), 7, c.base)
    p.line(((68, 16), (62, 10), (78, 8)), 6, DARK)
    p.poly(((25, 16), (44, 16), (42, 23), (27, 23)), DARK)
    p.oval(41, 65, 53, 79, c.dark)


def traffic_light(p: Pen, c: Shades, v: int, text: str | None) -> None:
    p.rect(42, 54, 58, 100, (96, 98, 104), edge=True)
    p.rect(24, 95, 76, 100, (96, 98, 104))
    p.round_rect(2, 0, 98, 58, 12, (44, 46, 52), edge=True)
    lit = {"red": (255, 60, 50), "yellow": (255, 214, 50), "green": (60, 226, 96)}
    for k, name in enumerate(("red", "yellow", "green")):
        y = 4 + 18 * k
        on = name == c.name
        if on:
            p.oval(10, y - 2, 90, y + 17, shade(lit[name], 60))
        p.oval(20, y, 80, y + 15, lit[name] if on else (74, 76, 80))


def stop_sign(p: Pen, c: Shades, v: int, text: str | None) -> None:
    p.rect(45, 44, 55, 100, METAL, edge=True)
    p.poly(((29, 0), (71, 0), (100, 13), (100, 31), (71, 44), (29, 44), (0, 31), (0, 13)), PAPER, edge=True)
    p.poly(((31, 2), (69, 2), (95, 14), (95, 30), (69, 42), (31, 42), (5, 30), (5, 14)), c.base)
    p.text(8, 13, 92, 31, text or "STOP", (255, 255, 255))


def tree(p: Pen, c: Shades, v: int, text: str | None) -> None:
    p.poly(((42, 52), (58, 52), (62, 100), (38, 100)), (116, 76, 46), edge=True)
    leaf = (LEAF, (76, 160, 62), (40, 130, 76))[v % 3]
    if v % 2:
        for y0, y1, w in ((0, 34, 30), (18, 54, 40), (38, 76, 50)):
            p.poly(((50, y0), (50 + w, y1), (50 - w, y1)), leaf, edge=True)
            p.poly(((50, y0), (50, y1), (50 - w, y1)), shade(leaf, 120))
    else:
        for x0, y0, x1, y1 in ((0, 22, 60, 62), (40, 22, 100, 62), (16, 0, 84, 50)):
            p.oval(x0, y0, x1, y1, leaf, edge=True)
        p.oval(14, 14, 90, 58, leaf)
        p.oval(26, 8, 58, 28, shade(leaf, 122))


def bench(p: Pen, c: Shades, v: int, text: str | None) -> None:
    for x in (10, 82):
        p.rect(x, 4, x + 8, 100, (70, 72, 78), edge=True)
    for y in (6, 24):
        p.rect(0, y, 100, y + 14, c.base, edge=True)
    p.poly(((4, 48), (96, 48), (100, 64), (0, 64)), c.light, edge=True)
    p.rect(0, 62, 100, 72, c.base, edge=True)


def mailbox(p: Pen, c: Shades, v: int, text: str | None) -> None:
    p.rect(40, 54, 60, 100, WOOD, edge=True)
    p.poly(((0, 58), (0, 22), (8, 8), (26, 0), (74, 0), (92, 8), (100, 22), (100, 58)), c.base, edge=True)
    p.rect(18, 20, 82, 28, (26, 26, 30))
    p.rect(26, 36, 74, 52, PAPER)
    p.poly(((26, 36), (50, 46), (74, 36)), (200, 200, 200))


STREET_THINGS = {
    "person": person, "dog": dog, "cat": cat, "bird": bird, "car": car, "bus": bus, "bicycle": bicycle,
    "traffic light": traffic_light, "stop sign": stop_sign, "tree": tree, "bench": bench, "mailbox": mailbox,
}  # fmt: skip
