"""Naming an adapter's layers in PEFT's patterns: short, and never more than is meant."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastlora.adapter_files import describe
from fastlora.model.name_matching import matches_end

EVERY = ["", "model", *(f"model.{i}.{name}" for i in (0, 1) for name in ("q", "v", "mlp", "mlp.q")), "head"]


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        (["model.0.v", "model.1.v"], ["v"]),
        (["model.0.q", "model.0.mlp.q", "model.1.q", "model.1.mlp.q"], ["q"]),
        (["model.0.q", "model.1.q"], ["0.q", "1.q"]),
        (["model.0.mlp.q", "model.1.mlp.q"], ["mlp.q"]),
        (["model.0.v", "head"], ["0.v", "head"]),
    ],
)
def test_the_shortest_endings_that_mean_no_other_module_are_chosen(chosen, expected):
    assert describe.target_modules(chosen, EVERY) == expected


def test_where_no_ending_is_enough_an_expression_for_whole_names_is_used():
    assert describe.target_modules(["a", "c"], ["", "a", "b.a", "c"]) == "a|c"


def test_modules_to_save_are_told_apart_letter_by_letter_as_peft_matches_them():
    assert describe.modules_to_save(["score"], ["", "score", "underscore"]) == ["score"]
    assert describe.modules_to_save(["m.score"], ["", "m.score", "m.underscore"]) == ["m.score"]
    assert describe.modules_to_save(["m.score"], ["", "m.score", "m.head"]) == ["score"]


NAMES = st.lists(
    st.lists(st.sampled_from(["a", "b", "0", "q_proj"]), min_size=1, max_size=4).map(".".join),
    min_size=1,
    max_size=8,
    unique=True,
)


@given(names=NAMES, data=st.data())
def test_target_modules_mean_exactly_what_was_chosen(names, data):
    chosen = data.draw(st.lists(st.sampled_from(names), min_size=1, unique=True))
    found = describe.target_modules(chosen, names)
    if isinstance(found, str):
        meant = [name for name in names if re.fullmatch(found, name)]
    else:
        meant = [name for name in names if any(name == end or name.endswith("." + end) for end in found)]
    assert set(meant) == set(chosen)


@given(names=NAMES, data=st.data())
def test_patterns_give_every_name_its_value(names, data):
    values = {name: data.draw(st.sampled_from([1, 2, 3])) for name in names}
    common, patterns = describe.pattern(values)
    for name, value in values.items():
        first = next((its for key, its in patterns.items() if matches_end(re.compile(key), name)), common)
        assert first == value
