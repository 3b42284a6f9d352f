"""Expressions are matched as Python matches them."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastlora.adapter_files.expressions import Expression, Work
from fastlora.adapter_files.patterns import Patterns
from fastlora.model.name_matching import matches_end

ATOMS = st.sampled_from(
    ["a", "b", r"\.", ".", "[ab]", "[^a]", r"\d", r"\w", "0", "(a|b)", "(?:ab|b\\.)", "(a|)", "(a*b)"]
)
REPEATS = st.sampled_from(["", "", "", "*", "+", "?", "{2}", "{1,2}", "{0}", "{0,1}", "{2,}", "*?", "??"])
SEQUENCES = st.lists(st.tuples(ATOMS, REPEATS).map("".join), max_size=3).map("".join)
GROUPS = st.tuples(SEQUENCES.map("({})".format), REPEATS, SEQUENCES).map("".join)
EXPRESSIONS = st.tuples(
    st.sampled_from(["", "^"]),
    st.lists(SEQUENCES | GROUPS, min_size=1, max_size=2).map("|".join),
    st.sampled_from(["", "$"]),
).map("".join)
NAMES = ["", "a", "ab", "a.b", "a.b.0", "b.ab", "ab.ab.0a", "aab", "aaa.bbb", "0", "bb.a"]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(text=EXPRESSIONS)
def test_an_expression_matches_what_pythons_own_matches(text):
    ours, theirs = Expression(text, Work(10**9)), re.compile(text)
    assert [ours.matches(name) for name in NAMES] == [matches_end(theirs, name) for name in NAMES]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    keys=st.lists(
        st.sampled_from(["a", "a.b", r"a\.b", "^a", "^a.b", "b.", "..", "ab|b", ".*b", "0"]), unique=True
    )
)
def test_the_first_key_that_matches_counts_whether_it_is_looked_up_or_matched(keys):
    patterns = Patterns("rank_pattern", {key: i for i, key in enumerate(keys)})
    for name in NAMES:
        first = next((i for i, key in enumerate(keys) if matches_end(re.compile(key), name)), -1)
        assert patterns.find(name, -1) == first


@pytest.mark.parametrize(
    "text", ["(", ")", "a)", "[", "*", "a**", "a{2}{3}", "a{3,2}", "(?=a)", r"(a)\1", r"\b", "a*+", "[a--b]"]
)
def test_what_is_no_expression_or_cannot_be_bounded_is_refused(text):
    with pytest.raises(ValueError, match=r"^has |^repeats "):
        Expression(text, Work(10**9))
