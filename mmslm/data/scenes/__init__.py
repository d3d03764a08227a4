"""The embedded data set: a seeded renderer of everyday scenes for somebody who cannot see them, with exact truth."""

from mmslm.data.scenes.catalogue import KINDS, PLACES, PRIVATE_KINDS, PRIVATE_PLACES, PUBLIC_KINDS, PUBLIC_PLACES
from mmslm.data.scenes.grammar import STYLES
from mmslm.data.scenes.lexicon import SYNONYMS, mentioned_kinds, present_kinds
from mmslm.data.scenes.photos import Household, Imagined, ScenePhoto, household, imagine, public_photo, sentences
from mmslm.data.scenes.sheet import contact_sheet
from mmslm.data.scenes.truth import Item, Relation, Scene, Thing

__all__ = [
    "KINDS",
    "PLACES",
    "PRIVATE_KINDS",
    "PRIVATE_PLACES",
    "PUBLIC_KINDS",
    "PUBLIC_PLACES",
    "STYLES",
    "SYNONYMS",
    "Household",
    "Imagined",
    "Item",
    "Relation",
    "Scene",
    "ScenePhoto",
    "Thing",
    "contact_sheet",
    "household",
    "imagine",
    "mentioned_kinds",
    "present_kinds",
    "public_photo",
    "sentences",
]
