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
    ],
)
def test_bad_checks_are_refused_before_any_work(override: str, said: str) -> None:
    quoted = override if "(" not in override else 'curation.format.checks.prose.pattern="("'
    with pytest.raises(UserError, match=said):
        Experiment(compose(["curation=format", quoted]))
