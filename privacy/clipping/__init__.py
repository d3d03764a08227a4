"""Clipping: bounding what one example, or one user's update, can add to a sum.

    vector.py         one flat vector to norm C (a user's update)
    kinds.py          flat, automatic and per-layer clipping, with their sensitivities
    engine.py         the one-backward engine: exact clipped sums of per-sample gradients
    recorder.py       its hooks on a model, and most of what is refused
    rules.py          which layers are covered, and how to cover one's own
    parts.py          norms and sums of gradients in factored form
    reference.py      Opacus' hooks engine behind the same interface
    opacus_pair.py    the one-backward engine for an Opacus loop

Import from the module that holds what you need; this package imports nothing by itself.
"""
