"""Verification: is a response the exact answer? Whole columns at once, and without evaluating what a model wrote.

    right, parsed = integers(pa.array(["7", " +07", "seven"]), pa.array(["7", "7", "7"]))   # right: yes, yes, no

A response that is no answer at all is wrong, and `parsed` says so: an unparseable share is a different failure from a
wrong one. Patterns are matched by Arrow's RE2, in linear time whatever the text."""

from __future__ import annotations

import json
import logging
import math
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from genloss.core.contracts import Checked
from genloss.core.errors import UserError
from genloss.core.machine import cores

LONGEST = 400  # characters of a response that are read as an answer
NUMBER = r"[+-]?[0-9]{1,12}(\.[0-9]{0,12})?"


def _numpy(mask: Any) -> np.ndarray:
    return np.asarray(mask.to_numpy(zero_copy_only=False), dtype=bool)


def strings(values: Any) -> pa.Array:
    """One string array; a missing response is an empty one, and white space around it is nothing."""
    array = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else pa.array(values, pa.string())
    return pc.utf8_trim_whitespace(pc.fill_null(array, ""))


def normal_integers(values: pa.Array) -> pa.Array:
    """Without a plus sign and leading zeros; minus zero is zero."""
    bare = pc.replace_substring_regex(values, r"^\+?(-?)0*([0-9]+)$", r"\1\2")
    return pc.if_else(pc.equal(bare, "-0"), "0", bare)


def integers(responses: Any, answers: Any) -> Checked:
    """Whole numbers of any length, compared as digits."""
    said, truth = strings(responses), strings(answers)
    parsed = pc.match_substring_regex(said, r"^[+-]?[0-9]+$")
    right = pc.and_(parsed, pc.equal(normal_integers(said), normal_integers(truth)))
    return Checked(_numpy(right), _numpy(parsed))


def texts(responses: Any, answers: Any) -> Checked:
    """Equal texts, after runs of white space have become one space; an empty response is none."""
    said, truth = (pc.replace_substring_regex(strings(v), r"\s+", " ") for v in (responses, answers))
    parsed = pc.not_equal(said, "")
    return Checked(_numpy(pc.and_(parsed, pc.equal(said, truth))), _numpy(parsed))


def spectra(responses: Any, answers: Any, tolerance: float) -> Checked:
    """Lists of numbers in any order, right if sum |error| / sum |true| < tolerance (Charton 2022, arXiv 2112.01898,
    section 3: the L1 norm; Feng et al. 2024, arXiv 2406.07515, use it for eigenvalues). A list of another length is
    unparseable."""
    said = _numbers(responses)
    truth = _numbers(answers)
    count, wanted = (np.asarray(pc.list_value_length(v).fill_null(-1)) for v in (said, truth))
    parsed = (count == wanted) & (count > 0)
    right = np.zeros(len(parsed), dtype=bool)
    for n in np.unique(count[parsed]):
        rows = np.flatnonzero(parsed & (count == n))
        values, true = (
            np.sort(pc.cast(v.take(pa.array(rows)).flatten(), pa.float64()).to_numpy().reshape(-1, n), axis=1)
            for v in (said, truth)
        )
        error, size = np.abs(values - true).sum(axis=1), np.abs(true).sum(axis=1)
        right[rows] = (error < tolerance * size) | (error == 0)
    return Checked(right, parsed)


def _numbers(values: Any) -> pa.ListArray:
    """Lists of the numbers of each text, as texts; null where something else is in it."""
    flat = pc.replace_substring_regex(strings(values), r"[\s,;]+", " ")
    short = pc.less_equal(pc.utf8_length(flat), LONGEST)
    fine = pc.and_(short, pc.match_substring_regex(flat, rf"^{NUMBER}( {NUMBER})*$"))
    return pc.split_pattern(pc.if_else(fine, pc.replace_substring(flat, "+", ""), pa.scalar(None, pa.string())), " ")


# LaTeX that can be read without cost. Simplifying ((1+x)^99)^99 takes minutes, and a large binomial does not end.
COMMANDS = {"frac", "dfrac", "tfrac", "sqrt", "pi", "cdot", "times", "left", "right"}
PLAIN = re.compile(r"[0-9A-Za-z\s+\-*/=(){}\[\].,^\\]{1,80}")
POWER = re.compile(r"\^\s*(?:([0-9])(?![0-9])|\{\s*-?([0-9])\s*\})")
DEGREE = 8  # the product of all exponents, at most
LETTERS = 4  # different variables, at most
SECONDS = 5  # for what should be impossible, and only where signals work, in the main thread


def cheap(text: str) -> bool:
    """Whether a text is LaTeX of the kind that answers are made of, and quick to simplify."""
    if not PLAIN.fullmatch(text) or re.search(r"[0-9]{16}", text):
        return False
    if not all(name in COMMANDS for name in re.findall(r"\\([A-Za-z]+|.?)", text)):
        return False
    if len(set(re.findall(r"[A-Za-z]", re.sub(r"\\[A-Za-z]+", " ", text)))) > LETTERS:
        return False
    powers = [int(a or b) for a, b in POWER.findall(text)]
    return len(powers) == text.count("^") and math.prod(max(1, p) for p in powers) <= DEGREE


# What numerals are, of at most this many digits: of two that differ, math-verify never takes the difference for an
# error of rounding, but for decimals within CLOSE, which it compares to six digits.
NUMERAL = re.compile(
    r"-?(?:0|[1-9][0-9]{0,5})(?:\.[0-9]{1,6})?|-?(?:0|[1-9][0-9]{0,5})/[1-9][0-9]{0,5}"
    r"|(?:-\\[dt]?frac\{|\\[dt]?frac\{-?)(?:0|[1-9][0-9]{0,5})\}\{[1-9][0-9]{0,5}\}"
)
CLOSE = Fraction(2, 10**6)
POOL = 1000  # pairs from which on processes are worth their start, about two seconds each


def numeral(text: str) -> Fraction | None:
    """The number that a whole number, a decimal or a fraction of two whole numbers is, exactly; None of any other
    text."""
    if not NUMERAL.fullmatch(text):
        return None
    if "frac" in text:
        fraction = re.fullmatch(r"(-?)\\.?frac\{(-?[0-9]+)\}\{([0-9]+)\}", text)
        assert fraction is not None
        sign, above, below = fraction.groups()
        return Fraction(int(sign + above), int(below))
    return Fraction(text)


def expressions(responses: Any, answers: Any) -> Checked:
    """Mathematical expressions in LaTeX, equal as math-verify (Hugging Face) sees it: 1/2 and \\frac{2}{4} are one
    answer.

    Only its LaTeX grammar is used: its parser of plain expressions ends in SymPy's `parse_expr`, which evaluates
    Python. What is not `cheap` is unparseable. Its decisions, sooner: a pair of texts is compared once, numerals by
    their exact values, and many others in several processes."""
    try:
        import math_verify  # noqa: F401
    except ModuleNotFoundError:
        raise UserError("compare", "expression", "needs math-verify; pip install 'math-verify[antlr4_9_3]'") from None
    said, truth = (pc.dictionary_encode(strings(v)) for v in (responses, answers))
    texts, true = (v.dictionary.to_pylist() for v in (said, truth))
    codes = np.asarray(said.indices, dtype=np.int64) * len(true) + np.asarray(truth.indices, dtype=np.int64)
    distinct, inverse = np.unique(codes, return_inverse=True)
    values = {text: numeral(text) for text in {*texts, *true}}
    found: list[tuple[bool, bool] | None] = []
    hard: list[tuple[str, str]] = []
    for code in distinct.tolist():
        a, b = texts[code // len(true)], true[code % len(true)]
        x, y = values[a], values[b]
        if x is None or y is None or ("." in a + b and 0 < abs(x - y) < CLOSE):
            found.append(None)
            hard.append((a, b))
        else:
            found.append((x == y, True))
    rest = iter(_math_verify(hard))
    each = np.array([next(rest) if f is None else f for f in found], dtype=bool).reshape(-1, 2)[inverse]
    return Checked(each[:, 0], each[:, 1])


def _math_verify(pairs: list[tuple[str, str]]) -> list[tuple[bool, bool]]:
    """(right, parsed) of each (response, answer); in processes if there are many, one a core."""
    workers = cores()
    if len(pairs) < POOL or workers == 1:
        return compare(pairs)
    size = min(10 * POOL, -(-len(pairs) // (2 * workers)))
    parts = [pairs[i : i + size] for i in range(0, len(pairs), size)]
    with ThreadPoolExecutor(workers) as pool:  # each waits for a process
        return [said for part in pool.map(_in_a_process, parts) for said in part]


def _in_a_process(pairs: list[tuple[str, str]]) -> list[tuple[bool, bool]]:
    # of its own and not of multiprocessing: that forks threads of torch, or runs the user's main module again
    command = [sys.executable, "-c", f"from {__name__} import _serve; _serve()"]
    done = subprocess.run(command, input=json.dumps(pairs), stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def compare(pairs: list[tuple[str, str]]) -> list[tuple[bool, bool]]:
    """(right, parsed) of each (response, answer), by math-verify, one after the other."""
    import math_verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns once that it has no timeout
    limit = SECONDS if threading.current_thread() is threading.main_thread() else None
    grammar = [math_verify.LatexExtractionConfig()]

    @lru_cache(maxsize=POOL)
    def read(text: str) -> list[Any]:
        if not cheap(text):
            return []
        try:
            return math_verify.parse(f"${text}$", grammar, fallback_mode="no_fallback", parsing_timeout=limit)
        except Exception:  # of many kinds; each means that this is no expression
            return []

    found = []
    for said, truth in pairs:
        expression = read(said)
        try:
            same = bool(expression) and math_verify.verify(read(truth), expression, timeout_seconds=limit)
        except Exception:  # of many kinds; each means that they cannot be compared: not the right answer
            same = False
        found.append((bool(same), bool(expression)))
    return found


def _serve() -> None:
    print(json.dumps(compare(json.load(sys.stdin))))
