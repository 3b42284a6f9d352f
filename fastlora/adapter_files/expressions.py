"""Matches untrusted regular expressions in a time bounded by the lengths of expression and name.

Python's matcher backtracks, which takes exponential time for some expressions. This one is a deterministic
finite automaton, built lazily. Its states are sets of places in the expression. It supports what patterns for
module names need: letters, ".", classes, groups, "|", repeats and anchors. It refuses backreferences and
look-around.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

LONGEST: Final = 512
# {m,n} is expanded into copies. No reasonable expression needs more places than this.
_MOST_PLACES: Final = 2_000
_DEEPEST: Final = 20
# Making a new state takes some 2 us for each place in it; following a letter to a known state takes 0.1 us.
_STEPS_A_PLACE: Final = 20

_TOKEN: Final = re.compile(
    r"(?P<class>\[\^?\]?(?:\\.|[^\[\]\\])*\])|(?P<open>\((?:\?:)?)|(?P<close>\))|(?P<bar>\|)"
    r"|(?P<start>\^)|(?P<end>\$)|(?P<letter>\\[dDwWsS]|\\[^a-zA-Z0-9]|[^\\\[\]()|^$*+?{}])",
    re.DOTALL,
)
_REPEAT: Final = re.compile(r"(?:([*+?])|\{(\d{1,3})(?:(,)(\d{0,3}))?\})\??")


class Work:
    """A limit on the steps of matching.

    Attributes:
        left: The number of steps that may still be taken.
    """

    def __init__(self, steps: int) -> None:
        self.left = steps

    def take(self, steps: int) -> None:
        """Take steps; ValueError if too few are left."""
        self.left -= steps
        if self.left < 0:
            raise ValueError("take too long to match (name layers by the ends of their names)")


class _Place(NamedTuple):
    """A place in an expression: the letter or anchor that leads on from it, and the places that follow."""

    letter: re.Pattern[str] | None
    anchor: str
    targets: list[int]


class _State:
    """A state: the set of places reached so far, and the state that follows for each letter seen so far."""

    __slots__ = ("accepts", "following", "places")

    def __init__(self, places: frozenset[int], accepts: bool) -> None:
        self.places, self.accepts = places, accepts
        self.following: dict[str, _State] = {}


class Expression:
    """An expression that matches a whole name, or all that follows one of its dots; "^" is the name's start.

    Args:
        text: The expression.
        work: The limit on steps; reading the expression takes steps too.

    Raises:
        ValueError: If it is not a valid expression, or cannot be matched in a bounded time.
    """

    def __init__(self, text: str, work: Work) -> None:
        if len(text) > LONGEST:
            raise ValueError(f"must have at most {LONGEST} letters")
        self._text, self._at, self._work = text, 0, work
        self._places: list[_Place] = []
        first, last = self._choice(0)
        if self._at < len(text):
            raise ValueError("has a ')' too many")
        self._last = self._place("end", [])
        self._places[last].targets.append(self._last)
        self._again = self._closed({first}, "")
        self._states: dict[frozenset[int], _State] = {}
        start = self._closed({first}, "^")
        self._start = _State(start, self._last in self._closed(set(start), "^$"))

    def matches(self, name: str) -> bool:
        """Whether it matches a name. This takes one step for each letter, and more for each new state."""
        self._work.take(len(name))
        state = self._start
        for letter in name:
            state = state.following.get(letter) or self._follow(state, letter)
        return state.accepts

    def _follow(self, state: _State, letter: str) -> _State:
        self._work.take(_STEPS_A_PLACE * len(state.places))
        on = {
            target
            for place in state.places
            if (needed := self._places[place].letter) is not None and needed.fullmatch(letter)
            for target in self._places[place].targets
        }
        places = self._closed(on, "") | (self._again if letter == "." else frozenset())
        if places not in self._states:
            self._states[places] = _State(places, self._last in self._closed(set(places), "$"))
        found = state.following[letter] = self._states[places]
        return found

    def _closed(self, places: set[int], anchors: str) -> frozenset[int]:
        """All places that can be reached without a letter, passing only these anchors."""
        found, open_ends = set(places), list(places)
        while open_ends:
            place = self._places[open_ends.pop()]
            if place.letter is None and (not place.anchor or place.anchor in anchors):
                new = set(place.targets) - found
                found |= new
                open_ends += new
        return frozenset(found)

    def _place(self, anchor: str, targets: list[int], letter: re.Pattern[str] | None = None) -> int:
        if len(self._places) >= _MOST_PLACES:
            raise ValueError("repeats too much")
        self._work.take(_STEPS_A_PLACE)
        self._places.append(_Place(letter, anchor, targets))
        return len(self._places) - 1

    def _choice(self, depth: int) -> tuple[int, int]:
        """Read alternatives; return the places before and after them."""
        if depth > _DEEPEST:
            raise ValueError("has groups nested too deep")
        before, after = self._place("", []), self._place("", [])
        while True:
            first, last = self._sequence(depth)
            self._places[before].targets.append(first)
            self._places[last].targets.append(after)
            if not self._text.startswith("|", self._at):
                return before, after
            self._at += 1

    def _sequence(self, depth: int) -> tuple[int, int]:
        first = last = self._place("", [])
        while self._at < len(self._text) and self._text[self._at] not in "|)":
            begin = self._at
            one = self._atom(depth)
            least, most = self._repeat()
            end = self._at
            for index in range(max(least, most or 1) if most != 0 else 0):
                if index:
                    self._at = begin
                    one = self._atom(depth)
                self._places[last].targets.append(one[0])
                if index >= least:
                    skip = last
                    last = self._place("", [])
                    self._places[skip].targets.append(last)
                    self._places[one[1]].targets.append(last)
                else:
                    last = one[1]
            if most is None:
                self._places[one[1]].targets.append(one[0])
            self._at = end
        return first, last

    def _atom(self, depth: int) -> tuple[int, int]:
        token = _TOKEN.match(self._text, self._at)
        if token is None:
            raise ValueError(f"has {self._text[self._at : self._at + 8]!r}, which is not understood")
        self._at = token.end()
        kind, text = token.lastgroup, token[0]
        if kind == "open":
            inside = self._choice(depth + 1)
            if not self._text.startswith(")", self._at):
                raise ValueError("has a group that is not closed")
            self._at += 1
            return inside
        after = self._place("", [])
        if kind in ("start", "end"):
            return self._place(text, [after]), after
        if kind == "class" and re.search(r"--|&&|~~|\|\|", text):
            raise ValueError(f"has the class {text[:20]!r}, which is not understood")
        return self._place("", [after], re.compile(text, re.DOTALL)), after

    def _repeat(self) -> tuple[int, int | None]:
        """Read a repeat, if there is one; return the least and the most times, None for no limit."""
        found = _REPEAT.match(self._text, self._at)
        if found is None:
            return 1, 1
        self._at = found.end()
        if _REPEAT.match(self._text, self._at) or self._text.startswith("+", self._at):
            raise ValueError("has a repeat of a repeat, or one that gives nothing back")
        if found[1]:
            return {"*": (0, None), "+": (1, None), "?": (0, 1)}[found[1]]
        least = int(found[2])
        most = least if not found[3] else int(found[4]) if found[4] else None
        if most is not None and most < least:
            raise ValueError("has a repeat whose end is below its start")
        return least, most
