"""What a judge must answer, by benchmark, and what stands in for an answer that cannot be used.

The harness reads some verdicts carelessly: a number out of range makes it ask for ever, prose becomes 0 or 100. So
every verdict is read here first. One that cannot be used is counted, replaced by a harmless stand-in that ends the
harness's asking, and the score of that benchmark is missing.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Format:
    """A form of verdict.

    Attributes:
        wanted: the form in words.
        reads: whether a text is of that form.
        stand_in: a text of that form, for one that is not.
        plain: the text as the harness can read it.
    """

    wanted: str
    reads: Callable[[str], bool]
    stand_in: str
    plain: Callable[[str], str] = str


def _unit(text: str) -> bool:
    try:
        return 0.0 <= float(text.split(" ")[0].strip()) <= 1.0
    except ValueError:
        return False


def _pair(text: str) -> bool:
    words = _pair_plain(text).split("\n")[0].split(" ")
    try:
        return len(words) == 2 and all(1 <= float(word) <= 10 for word in words)
    except ValueError:
        return False


def _pair_plain(text: str) -> str:
    """One space between the numbers: out of "10, 8" the harness reads three words, and none of them."""
    first, *rest = text.strip().split("\n", 1)
    return "\n".join([re.sub(r"[,\s]+", " ", first).strip(), *rest])


def _correctness(text: str) -> bool:
    return len(set(re.findall(r"\b(?:in)?correct\b|\bunclear\b", text.casefold()))) == 1


def _letter(text: str) -> bool:
    return re.fullmatch(r"\W*[A-E]\W*|[(]?[A-E][.):,].*", text.strip(), flags=re.DOTALL) is not None


def _extraction(text: str) -> bool:
    return 0 < len(text.strip()) <= 200 and "\n" not in text.strip()


FORMATS: dict[str, Format] = {
    "any": Format("a text", lambda text: bool(text.strip()), "0"),
    "unit": Format("a number from 0 to 1", _unit, "0.0"),
    "pair": Format("two numbers from 1 to 10 on the first line", _pair, "10 1", _pair_plain),
    "correctness": Format("correct, incorrect or unclear", _correctness, "unclear"),
    "letter": Format("one letter from A to E", _letter, "E"),
    "extraction": Format("the answer in one line", _extraction, "-"),
}
