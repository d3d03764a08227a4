"""Photos with captions: the embedded scenes, COCO-style folders, and what turns them into batches.

Only light modules are imported here (Pillow and numpy); whatever needs torch lives in ``mmslm.data.collate``.
"""

from mmslm.data.photo import Photo, Question, open_image

__all__ = ["Photo", "Question", "open_image"]
