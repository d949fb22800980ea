"""What is known of a metric by its name: its unit, and the range that its values lie in.

    quantity("distinct_2")                    unit "unique / all n-grams", from 0 to 1
    quantity("diversity", "gaussian")         a name that domains share: unit "variance a dimension", from 0 on
    quantity("mine")                          of a metric that is not genloss's own nothing: no unit, any number

The one place that says it: axes and tables have the unit from here, forecasts the range, and verdicts from it whether a
risk can diverge. docs/metrics.md says the same for people, in the same words; a test compares them. A floor, a standard
error and a prediction have what their metric has.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cache

from genloss.observatory.results import BESIDE

ENDS = (*BESIDE, "_asymptotic", "_limit")  # of the names of what is read beside a metric


@dataclass(frozen=True)
class Quantity:
    unit: str = ""
    low: float = -math.inf
    high: float = math.inf

    def holds(self, value: float) -> bool:
        return self.low <= value <= self.high

    def ended(self, worse: int) -> bool:
        """Whether it ends in a direction (1: up, -1: down): it cannot diverge there."""
        return math.isfinite(self.high if worse > 0 else self.low)


ANY, POSITIVE, SHARE = (-math.inf, math.inf), (0.0, math.inf), (0.0, 1.0)

# names, as regular expressions that match all of them: unit, range
KNOWN: dict[str, tuple[str, tuple[float, float]]] = {
    # does the model still know real text?
    r"heldout_loss|loss_under_round0(_p\d+)?|group_loss/.+|group_loss_worst|response_loss": ("nats/token", POSITIVE),
    r"heldout_perplexity": ("exp(nats/token)", (1.0, math.inf)),
    r"heldout_bits_per_byte|response_bits_per_byte": ("bits/byte", POSITIVE),
    r"heldout_tokens|response_tokens": ("tokens", POSITIVE),
    r"loss_bin_\d+": ("share of records", SHARE),
    r"agreement(_shuffled)?|topic_cosine": ("cosine", (-1.0, 1.0)),
    r"denoising_loss(_worst)?": ("squared error", POSITIVE),
    # how far is it from real text?
    r"ngram_kl_\d|request_kl": ("nats", POSITIVE),
    r"manifold_precision": ("share of the sample", SHARE),
    r"manifold_recall": ("share of real records", SHARE),
    r"manifold_density": ("real balls / k", POSITIVE),
    r"manifold_coverage": ("share of real balls", SHARE),
    r"frechet": ("squared distance", POSITIVE),
    r"frontier": ("area, 0 to 1", SHARE),
    r"frontier_cells|request_coverage": ("share of cells", SHARE),
    # of images
    r"feature_frechet": ("squared distance / real variance", POSITIVE),
    r"kernel_distance": ("squared discrepancy", ANY),
    r"feature_spread": ("total variance / that of real images", POSITIVE),
    r"memorisation": ("distance to trained-on / held-out images", POSITIVE),
    r"sprite_reader": ("share of held-out real records", SHARE),
    r"sprite_(unreadable|impossible|outside)": ("share of records", SHARE),
    r"sprite_mislabelled": ("share of the readable ones", SHARE),
    r"sprite_(tail_)?modes": ("modes / those of as many real records", POSITIVE),
    r"sprite_tail": ("records / those of the real distribution", POSITIVE),
    r"sprite_diversity": ("probability", SHARE),
    r"sprite_entangled": ("nats", ANY),
    # answers
    r"(probe_)?accuracy(/.+)?|followed(/.+)?|elsewhere|labelled": ("share right, greedy", SHARE),
    r"unparseable": ("share without an answer", SHARE),
    r"sampled_accuracy": ("share right, temperature 1", SHARE),
    r"(label|kept)_accuracy|label_unparseable|well_formed(_generated)?|forgotten|request_unreadable": ("share", SHARE),
    r"(critique/)?(phi|psi|p_star)": ("probability", SHARE),
    r"difficulty": ("operations", POSITIVE),
    r"lineage(_max)?": ("operators", POSITIVE),
    r"(verdict|type|step)_accuracy|confusion/.+|critique/unparseable": ("share", SHARE),
    r"critique/accidents": ("share of the wrong solutions", SHARE),
    r"length_bias": ("difference of probabilities", (-1.0, 1.0)),
    r"refine/(before|after|fixed|broken)": ("share right", SHARE),
    r"refine/accepted": ("share", SHARE),
    r"refine/gain": ("difference of shares right", (-1.0, 1.0)),
    # images that are liked
    r"preference(_min|_max|_max_so_far)?": ("score, 0 to 1", SHARE),
    r"target_similarity(_min|_max)?": ("cosine, 0 to 1", SHARE),
    r"pixel_diversity": ("1 - cosine", SHARE),
    # conversations
    r"breadth": ("share of (topic, format, steps)", SHARE),
    r"distinct_responses": ("different / all answers", SHARE),
    r"response_entropy": ("nats an answer", POSITIVE),
    r"response_entropy_token": ("nats/token", POSITIVE),
    r"response_words|(kept|rejected)_words": ("words", POSITIVE),
    r"response_length_bias": ("share", (-1.0, math.inf)),
    r"win_rate": ("share won, ties as half", SHARE),
    r"win_ties": ("share of the pairs", SHARE),
    r"win_((position|length)_bias|undecided)": ("share of the judgements", SHARE),
    r"win_(length_)?pairs|win_judged": ("pairs", POSITIVE),
    r"ifbench_(strict|loose)": ("share of prompts, greedy", SHARE),
    r"ifbench/.+": ("share of instructions", SHARE),
    r"ifbench_(prompts|left_out)": ("prompts", POSITIVE),
    r"ifbench_cut_off": ("answers", POSITIVE),
    r"ifbench_failed": ("instructions", POSITIVE),
    r"pool_size|new_kept": ("instructions", POSITIVE),
    r"(pool|new)_texts": ("effective number of texts", POSITIVE),
    r"(pool|new)_pairs": ("different pairs of verb and noun", POSITIVE),
    r"(pool|new)_pairs_effective": ("effective number of pairs", POSITIVE),
    r"(pool|new)_cells": ("effective number of cells", POSITIVE),
    r"new_rouge": ("ROUGE-L F", SHARE),
    r"new_readable|new_right": ("share", SHARE),
    # is it well-formed, and where does it come from?
    r"repetition": ("share of word 3-grams", SHARE),
    r"loops|valid|on_topic|overlap_(exact|13gram)|(near_)?copies_(real|earlier)|near_copies|duplicates": (
        "share of records",
        SHARE,
    ),
    r"valid_distinct": ("different valid records / records", SHARE),
    r"(numbers|names|name_pairs)_known": ("share", SHARE),
    r"run_(real|earlier)": ("share of a record's words", SHARE),
    r"longest_run_(real|earlier)|tail_types|types_(rarefied|words)": ("words", POSITIVE),
    # diversity
    r"distinct_\d": ("unique / all n-grams", SHARE),
    r"entropy_\d": ("bits", POSITIVE),
    r"coverage_d\d+": ("share of a decile of real words", SHARE),
    r"self_bleu": ("BLEU-4, 0 to 1", SHARE),
    r"tail_exponent": ("α of P(k) ∝ k^-α", (1.0, math.inf)),
    r"tail_x_min": ("occurrences", POSITIVE),
    r"vendi": ("records, effective", (1.0, math.inf)),
    r"embedding_distance": ("1 - cosine", (0.0, 2.0)),
    r"compression_ratio": ("raw / zlib bytes", POSITIVE),
    # of the lab's models alone
    r"log_diversity": ("nats a dimension", ANY),
    r"w2": ("squared distance a dimension", POSITIVE),
    r"support": ("tokens", POSITIVE),
    r"lost_mass": ("probability", SHARE),
    r"entropy": ("nats", POSITIVE),
    r"pairs": ("pairs", POSITIVE),
    r"modes": ("modes", POSITIVE),
    r"recall|confusion": ("share of fresh real points", SHARE),
    r"log_likelihood": ("nats a point", ANY),
    r"outside": ("share of what the model makes", SHARE),
    r"risk": ("squared error", POSITIVE),
    r"norm": ("squared length", POSITIVE),
    r"angle": ("radians", (0.0, math.pi)),
    r"angle_squared": ("radians²", (0.0, math.pi**2)),
    r"error_rate": ("share", SHARE),
    # counts and times
    r"train_real_fraction": ("share", SHARE),
    r"n_(samples|((generated|kept|rejected)(_sd)?))": ("records", POSITIVE),
    r"train_(real|generation_\d+|((records|requested)(_sd)?))": ("records", POSITIVE),
    r"dropped/.+|group_records/.+|generate/cut_off": ("records", POSITIVE),
    r"(numbers|names|name_pairs)_found|generate/.+|refine/samples": ("count", POSITIVE),
    r"diverged": ("step", POSITIVE),
    r"seconds/.+": ("seconds", POSITIVE),
    r"tokens_per_second/.+": ("tokens/second", POSITIVE),
}
# of names that domains share, by the domain
OF_DOMAIN: dict[tuple[str, str], tuple[str, tuple[float, float]]] = {
    ("gaussian", "diversity"): ("variance a dimension", POSITIVE),
    ("categorical", "diversity"): ("probability", SHARE),
    ("gmm", "diversity"): ("variance, summed over dimensions", POSITIVE),
    ("gaussian", "drift"): ("squared distance a dimension", POSITIVE),
    ("categorical", "drift"): ("squared distance", (0.0, 2.0)),
    ("gmm", "drift"): ("squared distance", POSITIVE),
    ("classification", "accuracy"): ("share right", SHARE),
}


@cache
def quantity(name: str, domain: str = "") -> Quantity:
    """Of a metric, of a domain where its name alone does not say it."""
    name = name.removeprefix("theory/")
    for end in ENDS:
        name = name.removesuffix(end)
    if found := OF_DOMAIN.get((domain, name)):
        return Quantity(found[0], *found[1])
    known = (Quantity(unit, *within) for names, (unit, within) in KNOWN.items() if re.fullmatch(names, name))
    return next(known, Quantity())
