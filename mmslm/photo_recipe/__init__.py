"""A captioner of real photos, from a folder in COCO captions form to a measured model: ``mmslm train CONFIG``.

settings.py   what a recipe says
views.py      the frozen tower's features, computed once
batches.py    captions as tokens, and which are typical
learning.py   the phases: public reading, training without privacy, private training
account.py    the private run's account and report
talking.py    drawing captions and choosing the one that agrees most with the others
floors.py     what can be said without learning
measure.py    scores with intervals
run.py        all of it, resumable
"""
