"""Every kind of thing and place: names people use, usual colours, size, where it stands, and whether it is a danger.

``zone`` says where a kind goes: "wall", "floor", "small" (on a table top) or "sky". ``width`` and ``height`` are in
parts of the picture when the thing is large in a room or street; small things are drawn ``CLOSE`` times larger
when the camera looks at a table top.
"""

from __future__ import annotations

from dataclasses import dataclass

CLOSE = 2.25

ALL = ("red", "yellow", "green", "blue", "purple", "brown", "black", "white")
WARM = ("red", "yellow", "green", "blue", "purple")


@dataclass(frozen=True)
class Kind:
    """One kind of thing. ``forms`` are (one, many) pairs of the words for it, the first being its usual name."""

    name: str
    zone: str
    width: float
    height: float
    forms: tuple[tuple[str, str], ...]
    colours: tuple[str, ...] = ALL
    most: int = 1
    words: tuple[str, ...] = ()
    hazard: str = ""  # "", "always", "street" (in the street only) or "hot" (when it is hot)
    private: bool = False
    article: str = "a"  # "" for pairs such as keys and stairs


def _k(
    name: str,
    zone: str,
    width: float,
    height: float,
    *more: tuple[str, str],
    plural: str | None = None,
    colours: tuple[str, ...] = ALL,
    most: int = 1,
    words: tuple[str, ...] = (),
    hazard: str = "",
    private: bool = False,
    article: str = "a",
) -> Kind:
    forms = ((name, plural or name + "s"), *more)
    return Kind(name, zone, width, height, forms, colours, most, words, hazard, private, article)


NUMBERS = ("7", "12", "24", "42", "58")
SIGN_WORDS = ("OPEN", "SALE", "CAFE", "BANK", "EXIT", "TAXI", "HOTEL")
POSTER_WORDS = ("MUSIC", "VOTE", "FREE", "HELP", "SALE")
SCREEN_WORDS = ("HELLO", "MAIL", "NEWS")
BOX_WORDS = ("TOYS", "BOOKS", "TOOLS", "MILK")

_LIST: tuple[Kind, ...] = (
    # On walls.
    _k("door", "wall", 0.24, 0.56, plural="doors", colours=ALL),
    _k("window", "wall", 0.26, 0.27, colours=("white", "brown", "blue", "green"), most=3),
    _k("clock", "wall", 0.17, 0.17, ("wall clock", "wall clocks"), colours=("red", "blue", "black", "green", "yellow")),
    _k("picture", "wall", 0.22, 0.2, ("painting", "paintings"), colours=("brown", "black", "red", "yellow"), most=3),
    _k("shelf", "wall", 0.34, 0.24, ("bookshelf", "bookshelves"), plural="shelves",
       colours=("brown", "white", "black")),
    _k("poster", "wall", 0.25, 0.32, colours=WARM, words=POSTER_WORDS),
    _k("sign", "wall", 0.4, 0.15, ("shop sign", "shop signs"), colours=("red", "blue", "green", "black", "yellow"),
       words=SIGN_WORDS),
    # On the floor or the ground.
    _k("table", "floor", 0.46, 0.3, ("desk", "desks"),
       colours=("brown", "brown", "white", "white", "blue", "green")),
    _k("chair", "floor", 0.22, 0.4, ("seat", "seats"), most=3),
    _k("sofa", "floor", 0.52, 0.28, ("couch", "couches"),
       colours=("red", "yellow", "green", "blue", "purple", "brown")),
    _k("lamp", "floor", 0.17, 0.52, ("floor lamp", "floor lamps"), colours=WARM, most=2),
    _k("bed", "floor", 0.6, 0.3, colours=WARM),
    _k("television", "floor", 0.36, 0.34, ("tv", "tvs"), colours=("black", "white", "brown")),
    _k("plant", "floor", 0.2, 0.36, ("potted plant", "potted plants"),
       colours=("red", "white", "blue", "brown"), most=3),
    _k("basket", "floor", 0.22, 0.2, colours=("brown", "white", "yellow"), most=2),
    _k("box", "floor", 0.26, 0.24, ("parcel", "parcels"), plural="boxes", colours=("brown", "white", "yellow"), most=2,
       words=BOX_WORDS),
    _k("bin", "floor", 0.17, 0.26, ("trash can", "trash cans"), colours=("green", "blue", "black", "red")),
    _k("ball", "floor", 0.15, 0.15, colours=WARM, most=3),
    _k("shoes", "floor", 0.25, 0.13, ("pair of shoes", "pairs of shoes"), plural="shoes", article=""),
    _k("bag", "floor", 0.2, 0.26, ("handbag", "handbags"), most=2),
    _k("backpack", "floor", 0.2, 0.28, ("rucksack", "rucksacks"), colours=(*WARM, "black")),
    _k("umbrella", "floor", 0.3, 0.32, colours=(*WARM, "black"), article="an"),
    _k("person", "floor", 0.18, 0.58, plural="people", colours=(*WARM, "black", "white"), most=3),
    _k("dog", "floor", 0.3, 0.26, colours=("brown", "black", "white"), most=2),
    _k("cat", "floor", 0.23, 0.24, colours=("black", "white", "brown"), most=2),
    _k("car", "floor", 0.46, 0.24, colours=(*WARM, "black", "white"), most=2, hazard="street"),
    _k("bus", "floor", 0.6, 0.38, colours=("red", "yellow", "green", "blue", "white"), words=NUMBERS, hazard="street"),
    _k("bicycle", "floor", 0.4, 0.28, ("bike", "bikes"), colours=(*WARM, "black"), most=2),
    _k("traffic light", "floor", 0.13, 0.58, colours=("red", "yellow", "green"), most=2),
    _k("stop sign", "floor", 0.26, 0.6, colours=("red",), words=("STOP",)),
    _k("tree", "floor", 0.34, 0.62, colours=("green",), most=3),
    _k("bench", "floor", 0.4, 0.24, plural="benches", colours=("brown", "green", "blue", "red")),
    _k("mailbox", "floor", 0.17, 0.36, ("letter box", "letter boxes"), plural="mailboxes",
       colours=("red", "blue", "yellow")),
    # On a table.
    _k("book", "small", 0.15, 0.17, colours=(*WARM, "brown", "black"), most=3),
    _k("cup", "small", 0.13, 0.11, ("mug", "mugs"), most=3),
    _k("bottle", "small", 0.075, 0.21, colours=("green", "blue", "brown", "white", "red"), most=3),
    _k("glasses", "small", 0.19, 0.075, ("pair of glasses", "pairs of glasses"), plural="glasses",
       colours=("black", "red", "blue", "brown"), article=""),
    _k("laptop", "small", 0.24, 0.18, ("computer", "computers"), colours=("black", "white", "blue"),
       words=SCREEN_WORDS),
    _k("phone", "small", 0.085, 0.16, ("mobile phone", "mobile phones"),
       colours=("black", "white", "red", "blue", "yellow")),
    _k("keys", "small", 0.13, 0.13, ("bunch of keys", "bunches of keys"), plural="keys",
       colours=("yellow", "black", "red"), article=""),
    _k("letter", "small", 0.18, 0.12, ("envelope", "envelopes"), colours=("white", "yellow", "brown"), most=2),
    _k("hat", "small", 0.2, 0.11, colours=(*WARM, "brown", "black")),
    _k("apple", "small", 0.11, 0.12, colours=("red", "green", "yellow"), most=3, article="an"),
    _k("banana", "small", 0.17, 0.1, colours=("yellow",), most=2),
    _k("bird", "sky", 0.16, 0.13, colours=("blue", "red", "black", "yellow"), most=3),
    # Only in private pictures.
    _k("stairs", "floor", 0.44, 0.52, ("steps", "steps"), plural="stairs", colours=("brown", "white", "blue", "red"),
       hazard="always", private=True, article=""),
    _k("fridge", "floor", 0.25, 0.54, ("refrigerator", "refrigerators"), colours=("white", "red", "blue", "black"),
       private=True),
    _k("stove", "floor", 0.3, 0.36, ("cooker", "cookers"), colours=("white", "black", "red", "green"), hazard="hot",
       private=True),
    _k("wheelchair", "floor", 0.3, 0.4, colours=("black", "red", "blue", "green"), private=True),
    _k("cane", "floor", 0.14, 0.46, ("walking stick", "walking sticks"), colours=("brown", "black", "red", "white"),
       private=True),
    _k("kettle", "small", 0.17, 0.17, colours=(*WARM, "black", "white"), hazard="hot", private=True),
    _k("toaster", "small", 0.18, 0.14, colours=("white", "red", "blue", "black", "yellow"), private=True),
    _k("frying pan", "small", 0.25, 0.1, ("pan", "pans"), colours=("black", "red", "green", "blue"), private=True),
    _k("knife", "small", 0.25, 0.075, ("kitchen knife", "kitchen knives"), plural="knives",
       colours=("black", "brown", "red"), hazard="always", private=True),
    _k("medicine bottle", "small", 0.1, 0.15, ("pill bottle", "pill bottles"),
       colours=("white", "brown", "yellow"), most=2, words=("PILLS", "DAILY"), hazard="always", private=True),
)  # fmt: skip

KINDS: dict[str, Kind] = {kind.name: kind for kind in _LIST}
PUBLIC_KINDS: tuple[str, ...] = tuple(kind.name for kind in _LIST if not kind.private)
PRIVATE_KINDS: tuple[str, ...] = tuple(kind.name for kind in _LIST if kind.private)


@dataclass(frozen=True)
class Place:
    """A place: what may be in it, per zone, and how often the camera looks at a table top there."""

    name: str
    wall: tuple[str, ...]
    floor: tuple[str, ...]
    small: tuple[str, ...]
    sky: tuple[str, ...] = ()
    close: float = 0.45
    private: bool = False
    outdoor: bool = False
    forms: tuple[str, ...] = ()


_PLACES: tuple[Place, ...] = (
    Place(
        "living room",
        ("window", "picture", "clock", "shelf", "door", "poster"),
        ("sofa", "chair", "lamp", "table", "television", "plant", "dog", "cat", "person", "ball", "basket", "box"),
        ("book", "cup", "phone", "keys", "laptop", "letter", "bottle", "glasses", "apple", "banana"),
        forms=("living room", "lounge"),
    ),
    Place(
        "bedroom",
        ("window", "picture", "clock", "door", "poster", "shelf"),
        ("bed", "lamp", "chair", "shoes", "backpack", "cat", "basket", "person", "bag", "table", "box"),
        ("book", "phone", "hat", "letter", "glasses", "cup", "keys", "laptop"),
    ),
    Place(
        "office",
        ("window", "clock", "door", "poster", "shelf"),
        ("chair", "table", "bin", "plant", "person", "backpack", "box", "bag", "lamp", "umbrella"),
        ("laptop", "phone", "cup", "keys", "letter", "book", "glasses", "bottle"),
        close=0.5,
    ),
    Place(
        "shop",
        ("sign", "poster", "shelf", "clock", "door"),
        ("basket", "box", "person", "bag", "plant", "umbrella", "ball", "shoes", "chair", "lamp", "bin"),
        ("bottle", "apple", "banana", "hat", "book", "cup", "phone", "glasses"),
        forms=("shop", "store"),
    ),
    Place(
        "street",
        ("sign", "door"),
        ("car", "bus", "bicycle", "person", "dog", "traffic light", "stop sign", "tree", "bench", "bin", "mailbox"),
        (),
        ("bird",),
        close=0.0,
        outdoor=True,
    ),
    Place(
        "park",
        (),
        ("tree", "bench", "dog", "person", "bicycle", "ball", "bin", "umbrella", "backpack", "cat", "basket"),
        (),
        ("bird",),
        close=0.0,
        outdoor=True,
    ),
    Place(
        "kitchen",
        ("window", "clock", "shelf", "door"),
        ("fridge", "stove", "chair", "table", "person", "cat", "bin", "plant", "basket", "dog", "lamp"),
        (
            "kettle",
            "toaster",
            "knife",
            "frying pan",
            "cup",
            "bottle",
            "apple",
            "medicine bottle",
            "phone",
            "keys",
            "banana",
        ),
        close=0.55,
        private=True,
    ),
    Place(
        "hallway",
        ("door", "picture", "clock", "window"),
        ("stairs", "wheelchair", "cane", "shoes", "umbrella", "bag", "backpack", "plant", "dog", "person", "lamp"),
        ("keys", "letter", "hat", "glasses", "phone", "medicine bottle"),
        close=0.2,
        private=True,
        forms=("hallway", "corridor"),
    ),
)

PLACES: dict[str, Place] = {place.name: place for place in _PLACES}
PUBLIC_PLACES: tuple[str, ...] = tuple(place.name for place in _PLACES if not place.private)
PRIVATE_PLACES: tuple[str, ...] = tuple(place.name for place in _PLACES if place.private)
LIGHTS = ("bright", "dim", "warm")

# Rare where they can be, so asked for more often; the street needs traffic to have dangers at all.
FAVOUR: dict[str, float] = {
    "sofa": 2.4, "bed": 2.8, "television": 2.2, "car": 2.6, "bus": 2.2, "traffic light": 1.3, "stop sign": 1.3,
    "shoes": 1.6, "picture": 1.5, "sign": 1.6, "poster": 1.3, "window": 1.4, "door": 0.8, "bin": 0.8, "hat": 1.3,
    "apple": 1.4, "banana": 1.3, "mailbox": 1.2, "person": 1.2,
}  # fmt: skip

# What a household adds to its ordinary rooms, which public pictures never show.
PRIVATE_EXTRAS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "living room": (("wheelchair", "cane", "stairs"), ("medicine bottle",)),
    "bedroom": (("wheelchair", "cane"), ("medicine bottle",)),
    "street": (("wheelchair", "cane", "stairs"), ()),
    "park": (("wheelchair", "cane", "stairs"), ()),
    "office": (("wheelchair", "cane", "stairs"), ("kettle", "medicine bottle")),
    "shop": (("wheelchair", "cane", "stairs"), ("toaster", "kettle", "knife", "frying pan", "medicine bottle")),
}
