"""Evaluation: caption metrics, hallucination, answers, calibration and the sheet that shows it, with honest intervals.

Start at `mmslm.evaluation.evaluate.evaluate`; docs/evaluation.md says what each number means. Nothing is imported here,
so that a command that only counts tokens does not pay for drawing.
"""
