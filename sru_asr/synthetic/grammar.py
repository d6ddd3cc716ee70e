"""Grammars that sentences are drawn from.

``<name>`` in a text stands for one alternative of the rule of that name. Alternatives are equally
likely; one that is wanted more often is written more often. A rule that no list can hold is a
function that draws.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

Rule = Sequence[str] | Callable[[np.random.Generator], str]

NAME = re.compile(r"<(\w+)>")


def expand(text: str, rules: Mapping[str, Rule], rng: np.random.Generator) -> str:
    """Draw a sentence.

    Parameters
    ----------
    text : str
        Words, and names of rules in angle brackets.
    rules : mapping of str to sequence of str or callable
        The alternatives of each rule, or a function that draws one. They may name other rules.
    rng : numpy.random.Generator
        The only source of chance: equal states give equal sentences.

    Returns
    -------
    str
        The text, with every name replaced.

    Raises
    ------
    KeyError
        When a name has no rule.

    Examples
    --------
    >>> rules = {"command": ("<verb> <digit>",), "verb": ("CALL", "SET"), "digit": ("ONE", "TWO")}
    >>> expand("PLEASE <command>", rules, np.random.default_rng(1))
    'PLEASE CALL TWO'
    """

    def choose(match: re.Match[str]) -> str:
        rule = rules[match[1]]
        chosen = rule(rng) if callable(rule) else rule[int(rng.integers(len(rule)))]
        return expand(chosen, rules, rng)

    return NAME.sub(choose, text)
