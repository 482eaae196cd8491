"""Recipes: what is accepted, and one clear sentence for what is not."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from dsno.recipes import load_recipe, shipped_recipes
from dsno.support.errors import InputError


def refusal(source: str, *overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        load_recipe(source, overrides)
    text = str(caught.value)
    assert "\n" not in text
    assert text.endswith((".", "?"))
    return text


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_shipped_recipe_loads_under_its_own_name(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.title


def test_the_default_recipe_ships() -> None:
    assert "digits" in shipped_recipes()


def test_a_recipe_file_is_loaded_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(shipped_recipes()["digits"].replace("name: digits", "name: mine"))
    expected = load_recipe("digits", ["name=mine"])
    assert load_recipe(str(path)) == expected


def test_a_resolved_recipe_written_as_yaml_loads_back(tmp_path: Path) -> None:
    recipe = load_recipe("digits", ["teacher.learning_rate=1e-05", "evaluate.curves=[]"])
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    assert load_recipe(str(path)) == recipe


def test_overrides_reach_nested_keys_lists_and_lists_of_sections() -> None:
    recipe = load_recipe(
        "digits",
        [
            "teacher.network.channels=[8, 24]",
            "teacher.network.norm_num_groups=4",
            "evaluate.curves=[{solver: heun, steps: [2, 4], spacing: karras}]",
            "student={sites: []}",
            "teacher.schedule.log_snr_max=15",
            "title=a = b",
            "train.steps=5",
            "train.steps=6",
        ],
    )
    assert recipe.teacher.network.channels == (8, 24)
    assert recipe.teacher.network.norm_num_groups == 4
    (curve,) = recipe.evaluate.curves
    assert (curve.solver, curve.steps, curve.spacing) == ("heun", (2, 4), "karras")
    assert recipe.student.sites == ()
    assert recipe.teacher.schedule == {"name": "cosine", "log_snr_max": 15}
    assert recipe.title == "a = b"
    assert recipe.train.steps == 6
    assert recipe.collect == load_recipe("digits").collect


@pytest.mark.parametrize(
    ("text", "value"), [("1e-3", 1e-3), ("2E+1", 20.0), (".5e1", 5.0), ("3", 3.0), ("1.0e-3", 1e-3)]
)
def test_numbers_are_numbers_however_they_are_written(text: str, value: float) -> None:
    assert load_recipe("digits", [f"teacher.learning_rate={text}"]).teacher.learning_rate == value


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("teacher.stepz=3", "'teacher.stepz': did you mean 'teacher.steps'"),
        ("teachr.steps=3", "'teachr': did you mean 'teacher'?"),
        ("teacher.network.channel=[8]", "did you mean 'teacher.network.channels'"),
        (
            "evaluate.curves=[{solver: ddim, steps: [1], spacng: uniform}]",
            "'evaluate.curves.0.spac",
        ),
        ("teacher={steps: 3, stepz: 4}", "'teacher"),
        ("zzz=1", "known are"),
        ("teacher.=3", "There is no recipe key 'teacher.'"),
        ("teacher.steps.deep=3", "`teacher.steps` is a value, not a section"),
        ("evaluate.curves.0.steps=[1]", "`evaluate.curves` is a value, not a section"),
    ],
)
def test_an_unknown_key_names_the_closest(override: str, says: str) -> None:
    assert says in refusal("digits", override)


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("teacher.steps=many", "teacher.steps"),
        ("teacher.steps=2.5", "teacher.steps"),
        ("teacher.steps=true", "teacher.steps"),
        ("teacher.steps='3'", "teacher.steps"),
        ("teacher.steps=0", "teacher.steps"),
        ("teacher.steps=", "teacher.steps"),
        ("teacher.conditional=1", "teacher.conditional"),
        ("teacher.learning_rate=-1e-3", "teacher.learning_rate"),
        ("teacher.learning_rate=.inf", "teacher.learning_rate"),
        ("teacher.learning_rate=.nan", "teacher.learning_rate"),
        ("teacher.ema_decay=1", "teacher.ema_decay"),
        ("teacher.network.channels=[]", "teacher.network.channels"),
        ("teacher.network.channels=[8, 0]", "teacher.network.channels.1"),
        ("teacher.network=8", "teacher.network"),
        ("collect.solver=rk4", "collect.solver"),
        ("collect.dtype=float64", "collect.dtype"),
        ("evaluate.features=[inceptoin]", "evaluate.features.0"),
        ("evaluate.samples=1", "evaluate.samples"),
        ("seed=-1", "seed"),
        ("name=../up", "name"),
        ("data.source=cifar10", "data.source"),
    ],
)
def test_a_wrong_value_names_its_key(override: str, key: str) -> None:
    text = refusal("digits", override)
    assert f"'{key}'" in text
    assert any(word in text for word in ("should", "valid", "lacks"))


def test_sections_that_do_not_fit_together_are_refused() -> None:
    assert "`student.slices` = 3 must divide" in refusal("digits", "student.slices=3")
    assert "`collect.steps` = 3 cannot reach" in refusal("digits", "collect.steps=3")


@pytest.mark.parametrize("override", ["teacher.steps", "=3", "--out"])
def test_an_override_that_is_none_is_refused(override: str) -> None:
    assert "key.sub=value" in refusal("digits", override)


@pytest.mark.parametrize(
    "value",
    ["[1", "2001-99-99", "!!int x", "!!timestamp x", "!!python/name:os.system", "&a [*a]", "@"],
)
def test_yaml_that_means_nothing_is_refused(value: str) -> None:
    assert refusal("digits", f"title={value}")


def test_a_misspelt_key_of_a_file_is_named_rather_than_what_it_leaves_missing(
    tmp_path: Path,
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(shipped_recipes()["digits"].replace("  count: ", "  cuont: "))
    text = refusal(str(path))
    assert text.startswith("There is no recipe key 'collect.cuont': did you mean 'count'")


def test_a_missing_section_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\ndata: {source: digits}\n")
    assert "lacks 'teacher'" in refusal(str(path))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"- a\n- b\n", "not a mapping"),
        (b"", "not a mapping"),
        (b"a: [", "not valid YAML"),
        (b"{1: 2}", "There is no recipe key '1'"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    assert says in refusal(str(path))


def test_a_missing_file_or_recipe_is_named(tmp_path: Path) -> None:
    assert "digits" in refusal("digit")
    assert "did you mean 'digits'?" in refusal("digitz")
    assert "No such file" in refusal(str(tmp_path / "none.yaml"))
    assert "it is not a regular file" in refusal(f"{tmp_path}/")


def test_yaml_never_runs_code(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    attack = f"!!python/object/apply:os.system ['touch {mark}']"
    path = tmp_path / "evil.yaml"
    path.write_text(f"name: {attack}\n")
    assert "not valid YAML" in refusal(str(path))
    assert "not valid YAML" in refusal("digits", f"title={attack}")
    assert not mark.exists()


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("student.sites=[default]", "`student.sites`"),
        ("student.shared=[]", "`student.shared`"),
        ("student.lifted_from=1", "`student.lifted_from`"),
        ("student.shared_levels=0", "`student.shared_levels`"),
    ],
)
def test_a_lift_is_named_or_said_in_detail_but_not_both(override: str, key: str) -> None:
    with pytest.raises(InputError, match=f"`student.lift` = middle cannot be combined with {key}"):
        load_recipe("digits", [override, "student.lift=middle"])
    load_recipe("digits", [override, "student.lift=null"])


def test_an_override_of_the_lift_replaces_the_recipes_other_way_of_saying_it(
    tmp_path: Path,
) -> None:
    core = load_recipe("digits", ["student.lifted_from=1", "student.shared_levels=1"]).student
    assert (core.lift, core.lifted_from, core.shared_levels) == (None, 1, 1)
    detailed = tmp_path / "detailed.yaml"
    values = yaml.safe_load(shipped_recipes()["digits"])
    del values["student"]["lift"]
    values["student"]["sites"] = ["mid_block"]
    detailed.write_text(yaml.safe_dump(values))
    named = load_recipe(str(detailed), ["student.lift=all"]).student
    assert (named.lift, named.sites) == ("all", None)
    kept = load_recipe(str(detailed), ["student.shared_levels=1"]).student
    assert (kept.sites, kept.shared_levels) == (("mid_block",), 1)
    assert load_recipe("digits", ["student.sites=null"]).student.lift == "readout"
