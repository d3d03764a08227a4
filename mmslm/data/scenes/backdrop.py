"""The scenery of each place: walls, floors, sky and road. Scenery is never counted as a thing."""

from __future__ import annotations

from mmslm.data.scenes.palette import RGB, shade
from mmslm.data.scenes.pen import Pen
from mmslm.data.scenes.truth import Look, Scene

LOW, HIGH = -25.0, 125.0  # beyond the frame, so that tilt and zoom never show an edge


def paint(p: Pen, scene: Scene) -> None:
    """Paints the whole picture with the scene's place."""
    p.place((0.0, 0.0, 1.0, 1.0))
    look = scene.look
    horizon = look.horizon * 100
    _PAINTERS[scene.place](p, look, horizon)


def _wall(p: Pen, look: Look, horizon: float) -> None:
    wall = look.wall
    p.rect(LOW, LOW, HIGH, horizon, wall)
    darker = shade(wall, 93)
    if look.wall_texture == 1:
        for x in range(-20, 124, 12):
            p.rect(x, LOW, x + 5, horizon, darker)
    elif look.wall_texture == 2:
        for row, y in enumerate(range(-15, int(horizon) - 4, 10)):
            for x in range(-20 + 6 * (row % 2), 124, 12):
                p.rect(x, y, x + 2, y + 2, shade(wall, 88))
    elif look.wall_texture == 3:
        top = horizon - 20
        p.rect(LOW, top, HIGH, horizon, shade(wall, 150))
        p.rect(LOW, top - 1.6, HIGH, top, shade(wall, 80))
        for x in range(-18, 124, 17):
            p.rect(x, top + 4, x + 13, horizon - 5, darker)


def _skirting(p: Pen, look: Look, horizon: float) -> None:
    p.rect(LOW, horizon - 2.4, HIGH, horizon, shade(look.wall, 165))
    p.rect(LOW, horizon - 0.6, HIGH, horizon + 0.4, shade(look.floor, 62))


def _floor(p: Pen, look: Look, horizon: float, texture: int) -> None:
    floor = look.floor
    p.rect(LOW, horizon, HIGH, HIGH, floor)
    if texture == 0:  # planks that run towards the viewer
        for k in range(-9, 10):
            p.poly(
                ((50 + 7 * k, horizon), (50.7 + 7 * k, horizon), (51.8 + 16 * k, HIGH), (50 + 16 * k, HIGH)),
                shade(floor, 84),
            )
    elif texture == 1:  # checkered tiles
        rows = (0.0, 6.0, 14.0, 25.0, 40.0, 66.0)
        for r in range(5):
            y0, y1 = horizon + rows[r], horizon + rows[r + 1]
            s0, s1 = 1 + rows[r] / 40, 1 + rows[r + 1] / 40
            for k in range(-8, 9):
                if (k + r) % 2:
                    a0, a1, b0, b1 = 50 + 9 * k * s0, 50 + 9 * (k + 1) * s0, 50 + 9 * k * s1, 50 + 9 * (k + 1) * s1
                    p.poly(((a0, y0), (a1, y0), (b1, y1), (b0, y1)), shade(floor, 88))
    elif texture == 2:  # carpet
        for y in range(int(horizon) + 3, 124, 7):
            p.rect(LOW, y, HIGH, y + 2.2, shade(floor, 94))


def _living_room(p: Pen, look: Look, horizon: float) -> None:
    _wall(p, look, horizon)
    _floor(p, look, horizon, 0)
    _skirting(p, look, horizon)
    p.oval(8, horizon + 10, 92, horizon + 34, shade(look.wall, 74))
    p.oval(13, horizon + 12.5, 87, horizon + 31.5, shade(look.wall, 90))


def _bedroom(p: Pen, look: Look, horizon: float) -> None:
    _wall(p, look, horizon)
    _floor(p, look, horizon, 2)
    _skirting(p, look, horizon)
    cloth = shade(look.wall, 78)
    for sign in (-1, 1):
        for k in range(4):
            x = 50 + sign * (44 + 4 * k)
            p.poly(((x, LOW), (x + sign * 4, LOW), (x + sign * 5, horizon), (x + sign * 1, horizon)),
                   cloth if k % 2 else shade(cloth, 112))  # fmt: skip
    p.rect(LOW, 1.5, HIGH, 3.5, shade(cloth, 65))


def _office(p: Pen, look: Look, horizon: float) -> None:
    _wall(p, look, horizon)
    p.rect(LOW, LOW, HIGH, 8, (236, 238, 238))
    for x in (6, 40, 74):
        p.poly(((x, 1), (x + 20, 1), (x + 18, 5.5), (x + 2, 5.5)), (255, 255, 246))
    p.rect(LOW, 8, HIGH, 9.2, shade(look.wall, 78))
    panel = shade(look.wall, 84)
    p.rect(LOW, horizon - 14, HIGH, horizon, panel)
    for x in range(-20, 124, 24):
        p.rect(x, horizon - 14, x + 1.2, horizon, shade(panel, 80))
    p.rect(LOW, horizon - 15.4, HIGH, horizon - 14, shade(panel, 70))
    grey: RGB = ((look.floor[0] + 300) // 4, (look.floor[1] + 315) // 4, (look.floor[2] + 345) // 4)
    _floor(p, Look(look.wall, grey, 0, 1, look.horizon), horizon, 1)


def _shop(p: Pen, look: Look, horizon: float) -> None:
    _wall(p, Look(look.wall, look.floor, 0, 0, look.horizon), horizon)
    goods: tuple[RGB, ...] = ((216, 150, 140), (226, 206, 150), (156, 190, 210), (166, 200, 166), (200, 176, 210))
    for row, y in enumerate((horizon - 24, horizon - 9)):
        p.rect(LOW, y - 9, HIGH, y, shade(look.wall, 84))
        for k in range(25):
            x = -22 + 6 * k
            tone = goods[(k * 3 + row * 2 + look.wall_texture) % 5]
            p.rect(x, y - (7, 5.4, 6.4)[(k + row) % 3], x + 4.4, y, tone)
        p.rect(LOW, y, HIGH, y + 1.6, shade(look.wall, 62))
    awning = shade(look.floor, 74)
    for k in range(19):
        x = -22 + 8 * k
        p.poly(((x, LOW), (x + 8, LOW), (x + 8, 6), (x + 4, 9), (x, 6)), awning if k % 2 else (246, 244, 238))
    _floor(p, look, horizon, 1)


def _sky(p: Pen, look: Look, horizon: float) -> None:
    tones: tuple[RGB, ...] = ((168, 208, 240), (190, 214, 232), (204, 216, 236), (176, 216, 226))
    tone = tones[look.wall_texture]
    p.rect(LOW, LOW, HIGH, horizon, tone)
    for k, lift in ((0.55, 120), (0.78, 142)):
        p.rect(LOW, horizon * k, HIGH, horizon, shade(tone, lift))
    for x, y, w in ((10, 9, 24), (58, 15, 30), (92, 6, 22)):
        x += look.floor_texture * 7
        p.oval(x, y, x + w, y + 7, shade(tone, 170))
        p.oval(x + w * 0.2, y - 4, x + w * 0.7, y + 5, shade(tone, 170))


def _street(p: Pen, look: Look, horizon: float) -> None:
    _sky(p, look, horizon)
    wall = look.wall
    tops = (20, 12, 24, 15, 27, 18, 22)
    for k in range(7):
        x = -22 + 21 * k
        tone = shade(wall, (88, 78, 94, 82)[(k + look.wall_texture) % 4])
        y = tops[(k + look.floor_texture * 2) % 7]
        p.rect(x, y, x + 21, horizon, tone)
        p.rect(x, y, x + 21, y + 2, shade(tone, 80))
        for row in range(int(y) + 7, int(horizon) - 2, 7):
            p.rect(x, row, x + 21, row + 0.8, shade(tone, 92))
    p.rect(LOW, horizon, HIGH, horizon + 14, (196, 192, 184))
    for x in range(-20, 124, 14):
        p.poly(((x, horizon), (x + 0.8, horizon), (x - 4, horizon + 14), (x - 5, horizon + 14)), (168, 164, 158))
    p.rect(LOW, horizon + 14, HIGH, horizon + 16.4, (142, 140, 138))
    p.rect(LOW, horizon + 16.4, HIGH, HIGH, (104, 106, 112))
    for x in range(-18, 124, 26):
        p.poly(((x + 2, 93), (x + 15, 93), (x + 14, 96), (x, 96)), (232, 230, 220))


def _park(p: Pen, look: Look, horizon: float) -> None:
    _sky(p, look, horizon)
    p.oval(-30, horizon - 14, 60, horizon + 20, (142, 186, 150))
    p.oval(36, horizon - 18, 134, horizon + 20, (124, 174, 136))
    p.rect(LOW, horizon, HIGH, HIGH, (150, 200, 108))
    x = 30 + 12 * look.floor_texture
    p.poly(((x, horizon), (x + 8, horizon), (x + 34, HIGH), (x - 22, HIGH)), (222, 204, 162))
    for k in range(26):
        gx, gy = (k * 37 + 11 * look.wall_texture) % 104 - 2, horizon + 4 + (k * 23) % 36
        p.poly(((gx, gy), (gx + 1, gy - 3), (gx + 2, gy)), (112, 170, 84))


def _kitchen(p: Pen, look: Look, horizon: float) -> None:
    wall = shade(look.wall, 140)
    p.rect(LOW, LOW, HIGH, horizon, wall)
    line = shade(look.wall, 84)
    for y in range(-20, int(horizon), 9):
        p.rect(LOW, y, HIGH, y + 0.9, line)
    for x in range(-20, 124, 9):
        p.rect(x, LOW, x + 0.9, horizon, line)
    front = shade(look.floor, 78)
    p.rect(LOW, LOW, HIGH, 11, front)
    p.rect(LOW, 11, HIGH, 12.6, shade(front, 66))
    for x in range(-14, 124, 22):
        p.rect(x, LOW, x + 1, 11, shade(front, 70))
        p.rect(x + 3, 6, x + 5, 9.5, (240, 238, 230))
    if look.wall_texture % 2:
        p.rect(LOW, horizon - 13, HIGH, horizon - 10, (226, 224, 218))
        p.rect(LOW, horizon - 10, HIGH, horizon, front)
    _floor(p, look, horizon, 1)


def _hallway(p: Pen, look: Look, horizon: float) -> None:
    wall = look.wall
    _wall(p, look, horizon)
    _floor(p, look, horizon, 0 if look.floor_texture % 2 else 2)
    _skirting(p, look, horizon)
    side = shade(wall, 82)
    for sign in (-1, 1):
        edge, far = 50 + sign * 37, 50 + sign * 75
        p.poly(((edge, 5), (far, LOW), (far, HIGH), (edge + sign * 16, 100), (edge, horizon)), side)
        p.poly(
            ((edge, horizon - 2.4), (edge, horizon), (edge + sign * 30, 124), (edge + sign * 30, 116)), shade(wall, 150)
        )
    p.poly(((LOW, LOW), (HIGH, LOW), (87, 5), (13, 5)), shade(wall, 160))
    runner = shade(wall, 62)
    p.poly(((38, horizon + 1), (62, horizon + 1), (84, HIGH), (16, HIGH)), runner)
    p.poly(((41, horizon + 1), (59, horizon + 1), (76, HIGH), (24, HIGH)), shade(runner, 124))


_PAINTERS = {
    "living room": _living_room,
    "bedroom": _bedroom,
    "office": _office,
    "shop": _shop,
    "street": _street,
    "park": _park,
    "kitchen": _kitchen,
    "hallway": _hallway,
}
