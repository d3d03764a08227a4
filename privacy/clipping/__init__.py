"""Clipping: bounding what one example, or one user's update, can add to a sum.

    vector.py    one flat vector to norm C (a user's update)

Import from the module that holds what you need; this package imports nothing by itself.
"""
