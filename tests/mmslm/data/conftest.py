"""Photos that several tests look at, made once."""

from __future__ import annotations

import pytest

from mmslm.data.scenes import ScenePhoto, household, public_photo


@pytest.fixture(scope="session")
def public_photos() -> list[ScenePhoto]:
    return [public_photo(index) for index in range(1500)]


@pytest.fixture(scope="session")
def private_photos() -> list[ScenePhoto]:
    return [household(index).photo(j) for index in range(150) for j in range(10)]
