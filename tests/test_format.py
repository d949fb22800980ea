"""curation=format: every check is the reason of what it rejects; languages and topics; equal size by control=random."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genloss.core import records
from genloss.core.contracts import Inputs
from genloss.core.errors import UserError
from genloss.curate import Context, curate
from genloss.curate.format import Format
from genloss.domains.text import Text
from genloss.experiment import Experiment
from genloss.language.checkers import Language, Length
from genloss.workflow.compose import compose
from test_embedding import TOPICS, sentences

TEXT = Text(corpus={"_target_": "genloss.language.corpus.Sotu"})
C = "genloss.language.checkers"


def decided(curator: Format, texts: list[str], folder: Path, control: str = "none") -> Any:
    real = [s for i, topic in enumerate(TOPICS) for s in sentences(topic, 60, i)]
    records.write(records.make_table({"text": real}, origin="real", generation=0, recipe="x"), folder / "train.parquet")
    made = records.make_table({"text": texts}, origin="synthetic", generation=1, recipe="sample")
    return curate(made, {"format": curator}, control, Context(TEXT, 1, 0, folder, Inputs({})))


def test_the_first_check_that_fails_is_the_reason(tmp_path: Path) -> None:
    curator = Format(
        {
            "length": {"_target_": f"{C}.Length", "min_words": 2},
            "json": {"_target_": f"{C}.Json"},
            "pattern": {"_target_": f"{C}.Pattern", "pattern": r"\{.*\}"},
        }
    )
    texts = ['{"a": 1}', "short", "two words", "[1, 2]", '{"b": [2, 3]}', "<script>alert(1)</script>"]
    done = decided(curator, texts, tmp_path)
    assert done.kept["text"].to_pylist() == ['{"a": 1}', '{"b": [2, 3]}']
    assert done.reasons == {"format: json": 1, "format: length": 2, "format: pattern": 1, "kept": 2}
    same = decided(curator, texts, tmp_path, control="random")
    assert len(same.kept) == len(done.kept) and set(same.reasons) == {"kept", "control: random"}


def test_topics_are_those_of_the_embedding(tmp_path: Path) -> None:
    embedding = {"_target_": "genloss.language.embedding.Ngrams", "dimensions": 3}
    curator = Format(topics=[TOPICS["sea"], TOPICS["farm"]], similarity=0.7, embedding=embedding)
    texts = [*sentences("sea", 3, 7), *sentences("court", 4, 8), *sentences("farm", 2, 9)]
    done = decided(curator, texts, tmp_path)
    assert done.reasons == {"format: topic": 4, "kept": 5}
    assert min(done.kept["score"].to_pylist()) >= 0.7 > max(done.rejected["score"].to_pylist())


def test_languages() -> None:
    pytest.importorskip("py3langid")
    texts = ["The people of the river build a new bridge.", "Der Fluss ist im Winter sehr breit und tief."]
    assert Language(["en"]).valid(texts).tolist() == [True, False]
    assert Language(["en", "de"]).valid(texts).all()
    with pytest.raises(UserError, match=r"only=english: unknown; known: .*en"):
        Language(["english"]).check(None)  # type: ignore[arg-type]
    assert np.array_equal(Length(2, 3).valid(["a", "a b", "a b c", "a b c d"]), [False, True, True, False])


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("curation.format.checks.prose.pattern=(", r"curation\.format\.checks\.prose\.pattern=\(: is no regular"),
        ("+curation.format.checks.x={_target_: os.system}", r"curation\.format\.checks\.x"),
        ("curation.format.checks.length.min_words=-1", r"curation\.format\.checks\.length\.min_words=-1: must be"),
        ("curation.format.similarity=2", r"curation\.format\.similarity=2"),
        ("curation.format.similarity=0.4", r"curation\.format\.similarity=0\.4: has no effect without topics"),
        ("curation.format.checks={}", r"checks=\{\}: leaves length, prose there.*'~curation\.format\.checks\.NAME'"),
        ("+curation.format.checks={}", r"curation\.format\.checks=\{\}: leaves length, prose there"),
        ("curation={format: {checks: {}}}", r"curation\.format\.checks=\{\}: leaves length, prose there"),
        ("curation={}", r"curation=\{\}: is no name of an option"),
        ("~curation.format.checks", r"curation\.format\.checks=\{\}: must be one or more, or give topics"),
        ("curation.format.topics=[5]", r"curation\.format\.topics=\[5\]: must be a list of texts; quote"),
        ("curation.format.topics=[war,true]", r"curation\.format\.topics=\['war', True\]: must be a list of texts"),
        ("curation.format.topics=war", r"curation\.format\.topics=war: must be a list, as in"),
        ("curation.format.topics=null", r"curation\.format\.topics=null: must be a list"),
        ("curation.format.topics=[' ']", r"curation\.format\.topics=' ': must be a text with words"),
        (
            "curation.format.checks.prose.pattern=1e3",
            r"curation\.format\.checks\.prose\.pattern=1000\.0: must be a text",
        ),
        (
            "+curation.format.checks.l={_target_: genloss.language.checkers.Language, only: [5]}",
            r"\.l\.only=\[5\]: must",
        ),
    ],
)
def test_bad_checks_are_refused_before_any_work(override: str, said: str) -> None:
    quoted = override if "(" not in override else 'curation.format.checks.prose.pattern="("'
    with pytest.raises(UserError, match=said):
        Experiment(compose(["curation=format", quoted]))


def test_a_reason_has_one_meaning() -> None:
    with pytest.raises(UserError, match=r"checks=topic: must be named otherwise"):
        Format({"topic": {"_target_": f"{C}.Json"}}, topics=["war"])


def test_a_topic_that_the_embedding_does_not_know_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"topics=quarks: has no word that the embedding knows; use words of the real"):
        decided(Format(topics=[TOPICS["sea"], "quarks"]), sentences("sea", 3, 7), tmp_path)


def test_one_form_is_checked_written_and_measured() -> None:
    """curation=format, recipe=prose and experiment=format_control mean the same; topics too."""
    form = compose(["curation=format"]).curation.format.checks.prose.pattern
    assert form == compose(["recipe=prose"]).recipe.constraint.regex
    measured = compose(["experiment=format_control", "curation=topics"])
    assert form == measured.metrics.validity.checker.pattern
    for key in ("topics", "similarity", "embedding"):
        assert measured.metrics.topics[key] == measured.curation.topics[key]
