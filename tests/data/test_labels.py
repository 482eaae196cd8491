"""Labels of every type: numbers, one-hot rows, texts, booleans, and those that are no classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dsno.data.labels import Labels, labels_of
from dsno.recipes.schema import Data
from dsno.support.errors import InputError


def classes(raw: Any, **options: Any) -> Labels | None:
    names = options.pop("names", None)
    return labels_of(raw, "the table", len(raw), Data(**options), names=names)


@pytest.mark.parametrize(
    ("raw", "values", "count", "names"),
    [
        (np.array([2, 0, 2], np.uint8), [2, 0, 2], 3, None),
        ([2, 0, 2], [2, 0, 2], 3, None),
        (np.array([[1], [0]]), [1, 0], 2, None),
        (np.array([1.0, 0.0], np.float32), [1, 0], 2, None),
        ([[1], [0]], [1, 0], 2, None),
        (np.array([[0, 0, 1], [1, 0, 0]], np.float32), [2, 0], 3, None),
        ([[0, 1, 0], [1, 0, 0]], [1, 0], 3, None),
        ([True, True, False], [1, 1, 0], 2, ("false", "true")),
        (np.array([True, True]), [1, 1], 2, ("false", "true")),
        (["dog", "ant", "dog", "ant"], [1, 0, 1, 0], 2, ("ant", "dog")),
        (np.array([b"dog", b"ant", b"ant", b"ant"]), [1, 0, 0, 0], 2, ("ant", "dog")),
        (["0", "1", "1", "0"], [0, 1, 1, 0], 2, ("0", "1")),
    ],
)
def test_labels_become_class_numbers(
    raw: Any, values: list[int], count: int, names: tuple[str, ...] | None
) -> None:
    found = classes(raw)
    assert found is not None
    assert (found.values.tolist(), found.num_classes, found.names) == (values, count, names)


@pytest.mark.parametrize("raw", [[None, None], np.array([np.nan, np.nan])])
def test_without_any_label_there_are_none(raw: Any) -> None:
    assert classes(raw) is None


@pytest.mark.parametrize(
    ("raw", "options", "values", "count", "names"),
    [
        ([1, 0], {"classes": 5}, [1, 0], 5, None),
        ([1, 0], {"classes": ("a", "b", "c")}, [1, 0], 3, ("a", "b", "c")),
        (["a", "b"], {"classes": ("b", "a")}, [1, 0], 2, ("b", "a")),
        (["a", "a"], {"classes": ("b", "a")}, [1, 1], 2, ("b", "a")),
        (["a", "b", "a", "b"], {"classes": 2}, [0, 1, 0, 1], 2, ("a", "b")),
        (["7", "3"], {"classes": 10}, [7, 3], 10, None),
        ([1, 0], {"names": ("a", "b")}, [1, 0], 2, ("a", "b")),
        ([1, 0], {"names": ("a", "b"), "classes": ("b", "a")}, [0, 1], 2, ("b", "a")),
    ],
)
def test_the_option_says_how_many_classes_there_are_and_in_which_order(
    raw: Any, options: Any, values: list[int], count: int, names: tuple[str, ...] | None
) -> None:
    found = classes(raw, **options)
    assert found is not None
    assert (found.values.tolist(), found.num_classes, found.names) == (values, count, names)


@pytest.mark.parametrize(
    ("raw", "options", "words"),
    [
        (["dog", None, "ant", "ant"], {}, "1 of 4 images have no label in the table"),
        ([0, 3], {"classes": 3}, "is 3, but there are 3 classes"),
        ([0, 2], {"names": ("a", "b")}, "is 2, but there are 2 classes"),
        ([0, 1], {"names": ("a", "b"), "classes": 3}, "asks for 3 classes, and the table has 2"),
        (np.eye(2), {"classes": 3}, "asks for 3 classes, and the table .one-hot. has 2"),
        (["a", "b", "a", "b"], {"classes": 3}, "data.classes is 3, and the table has 2 classes"),
        (["a", "b"], {"classes": ("a", "c")}, "class 'b' in the table is not among data.classes"),
        (["1", "3", "1", "3"], {}, "'1' and '3'; set data.classes=4"),
        ([{"a": 1}, {"a": 2}], {}, "are dict, such as {'a': 1}"),
        ([0, "a"], {}, "are int, str"),
        ([[0.5, 0.5], [1, 0]], {}, r"float64 of shape \(2, 2\)"),
        ([-1, -1], {}, "is -1; classes are numbered from 0"),
        (np.array([-5.0, 1.0]), {}, "is -5; classes are numbered from 0"),
        ([0.5, 1], {}, "float64 of shape"),
    ],
)
def test_labels_that_are_no_classes_are_refused(raw: Any, options: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        classes(raw, **options)


def test_as_many_texts_as_captions_are_classes_only_if_asked_for() -> None:
    texts = ["a cat", "a dog", "an ant", "a cat"]
    with pytest.raises(InputError, match="3 of 4 labels in the table differ, such as 'a cat'"):
        labels_of(texts, "the table", 4, Data())
    found = labels_of(texts, "the table", 4, Data(), is_asked_for=True)
    assert found is not None
    assert found.values.tolist() == [0, 1, 2, 0]
