"""A configuration is refused with a sentence that says which key, what was given and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmslm.config import BaseRecipe, ConfigError, config_hash, load_config

GOOD = "optimisation: {steps: 3}\n"


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "run.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_a_good_file_is_read_and_defaults_are_filled(tmp_path: Path) -> None:
    recipe = load_config(write(tmp_path, GOOD), BaseRecipe)
    assert recipe.optimisation.steps == 3
    assert recipe.tier == "nano"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("optimisation: {steps: 3}\nsede: 1\n", "did you mean 'seed'"),
        ("optimisation: {steps: 3, batc: 1}\n", "did you mean 'batch'"),
        ("seed: 1\n", "key 'optimisation' is missing"),
        ("optimisation: {steps: many}\n", "optimisation.steps is 'many'"),
        ("optimisation: {steps: 0}\n", "greater than or equal to 1"),
        ("optimisation: {steps: 3}\noptimisation: {steps: 4}\n", "stands twice"),
        ("optimisation: [3\n", "line"),
        ("- 1\n- 2\n", "not a mapping"),
        ("a: &x [1]\nb: *x\n", "alias"),
        ("x: !!python/object/apply:os.getcwd []\n", "could not determine a constructor"),
        (b"\xff\xfe\x00", "UTF-8"),
    ],
)
def test_a_bad_file_is_refused_with_the_reason(tmp_path: Path, text: str | bytes, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_config(write(tmp_path, text), BaseRecipe)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no configuration at"):
        load_config(tmp_path / "none.yaml", BaseRecipe)
    with pytest.raises(ConfigError, match="is a folder"):
        load_config(tmp_path, BaseRecipe)


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, "optimisation: {steps: 0, batch: 0}\nsede: 1\n"), BaseRecipe)
    assert len(str(caught.value).splitlines()) == 4


def test_overrides_win_and_are_checked_like_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    assert load_config(path, BaseRecipe, {"optimisation.batch": 8}).optimisation.batch == 8
    with pytest.raises(ConfigError, match="unknown key"):
        load_config(path, BaseRecipe, {"optimisation.bach": 8})
    with pytest.raises(ConfigError, match="is a value"):
        load_config(path, BaseRecipe, {"seed": 1, "seed.x": 2})


def test_the_hash_follows_the_settings_not_the_text(tmp_path: Path) -> None:
    one = load_config(write(tmp_path, GOOD), BaseRecipe)
    two = load_config(write(tmp_path, "# words\nseed: 0\n" + GOOD), BaseRecipe)
    three = load_config(write(tmp_path, "seed: 1\n" + GOOD), BaseRecipe)
    assert config_hash(one) == config_hash(two) != config_hash(three)
