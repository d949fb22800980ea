"""Tokenizers: a byte-level BPE trained on the real training split, or a saved one. Always the `tokenizers` library.

    genloss run domain.tokenizer=my/tokenizer                     # or hub:OWNER/NAME@REVISION
    genloss run model=smollm2                                     # the model's own
    genloss run model=smollm2 domain.end='<|im_end|>'             # documents end with another of its tokens

A record is `begin` + tokens + `end`. Of a saved tokenizer these are its document separator, as far as it has one: what
a chat model's tokenizer calls begin and end of a sequence are the marks of a turn, which no document has. They are
written to `document.json` beside the tokenizer, whose own files stay as they are."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from genloss.core.contracts import Conversation, Prompt
from genloss.core.errors import UserError, first_line, nearest
from genloss.language import saved
from genloss.language.chat import ASSISTANT, MARKS, SYSTEM, USER, learned, own_templates, refused
from genloss.language.trial import endless

ENOUGH = 1 << 26  # characters that a BPE learns from: memory grows with the different words in them
LONG_WORD = 1000  # characters of a word that a BPE learns from as a whole
LONG = re.compile(rf"(?<!\S)\S{{{LONG_WORD},}}|(?<!\s)\s{{{LONG_WORD},}}")
LOOK = 64  # characters a token: a text with fewer of them to a token is looked at as a whole
END = "<|endoftext|>"  # begins and ends every record
DOCUMENT = "document.json"  # {"begin": token, "end": token}; without it they are the tokenizer's bos and eos
TEMPLATE = "chat_template.jinja"  # beside a tokenizer, as transformers saves it
# What ends a document, by the makers of models; in this order, since chat models keep the one of their base.
SEPARATORS = (END, "<|end_of_text|>", "<｜end▁of▁sentence｜>", "</s>", "<eos>")
BEGINNINGS = ("<|begin_of_text|>", "<｜begin▁of▁sentence｜>", "<s>", "<bos>")  # what begins one
# What shows how a template writes a conversation.
TALK = [
    {"role": USER, "content": "Ask one."},
    {"role": ASSISTANT, "content": "Say two."},
    {"role": USER, "content": "Ask three."},
    {"role": ASSISTANT, "content": "Say four."},
]
HELD = "\ue0000\ue001"  # stands for a content; no text has it
DAY = {"%d": "26", "%e": "26", "%b": "Jul", "%B": "July", "%m": "07", "%Y": "2024", "%y": "24", "%a": "Fri"}
DAY |= {"%A": "Friday", "%H": "12", "%M": "00", "%S": "00", "%p": "PM"}
TODAY = "".join(f"|replace({name!r}, {value!r})" for name, value in DAY.items())
TODAY = "{%- macro strftime_now(form) -%}{{- form" + TODAY + " -}}{%- endmacro -%}"


def cut_words(text: str) -> Iterator[str]:
    """A text, in parts where it has a word, or a white space, of more than LONG_WORD characters: learning a BPE takes
    time that grows with the square of the longest word, and a line of one character that repeats would take days."""
    at = 0
    for match in LONG.finditer(text):
        for end in range(match.start() + LONG_WORD, match.end(), LONG_WORD):
            yield text[at:end]
            at = end
    yield text[at:]


def at_most(texts: Iterable[str], characters: int) -> Iterator[str]:
    """The texts until so many characters have come."""
    for text in texts:
        if characters <= 0:
            return
        characters -= len(text)
        yield text


def train_bpe(
    texts: Iterable[str],
    vocabulary: int,
    context: int,
    out: Path,
    *,
    digits: bool = False,
    special: Sequence[str] = (),
) -> None:
    """Byte-level BPE (Radford et al. 2019) with one special token, and those of `special`, saved in the layout of
    transformers.

    digits: a token for every digit, which is what arithmetic needs at this size (Nogueira et al. 2021, arXiv
    2102.13019), and no split at spaces: the words around the numbers, the same in every problem of a family, become a
    few tokens.

    Of more than ENOUGH characters the first are taken: records lie in a random order, so they are a sample of all.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not digits)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = (
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level]) if digits else byte_level
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END, *special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    parts = (part for text in at_most(texts, ENOUGH) for part in cut_words(text))
    tokenizer.train_from_iterator(parts, trainer)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / "tokenizer.json"))
    named = {"bos_token": END, "eos_token": END, "pad_token": END}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": context, **named}
    (out / "tokenizer_config.json").write_text(json.dumps(config) + "\n", encoding="utf-8")


def use_saved(name: str, out: Path, key: str, begin: str | None = None, end: str | None = None) -> None:
    """Copy a saved Hugging Face tokenizer into the run; no code of it is run. key: what an error calls it. begin, end:
    tokens of it that begin and end a document; None: as it has them."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    source = saved.folder_of(name, key)
    # with a tokenizer.json it is that: the class of the model beside it may put a pre-tokenizer of its own in its
    # place (Qwen2)
    known: Any = PreTrainedTokenizerFast if (source / "tokenizer.json").is_file() else AutoTokenizer
    try:
        tokenizer = known.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # the library raises many kinds; all mean that it cannot be loaded
        raise UserError(key, name, f"cannot be loaded ({first_line(error)})") from None
    ids, special = tokenizer.get_vocab(), set(tokenizer.all_special_tokens)
    special |= {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    for wanted, token in (("domain.begin", begin), ("domain.end", end)):
        if token is not None and token not in ids:
            raise UserError(wanted, token, f"is no token of {name}; {nearest(token, special)}")
    found = next((token for token in SEPARATORS if token in special), tokenizer.eos_token)
    last = end or found
    if last is None:
        raise UserError(key, name, "has no end-of-text token; records could not end. domain.end=TOKEN chooses one")
    own = tokenizer.bos_token
    first = begin or (own if own and (own in BEGINNINGS or found == tokenizer.eos_token) else last)
    tokenizer.save_pretrained(out)
    (out / DOCUMENT).write_text(json.dumps({"begin": first, "end": last}) + "\n", encoding="utf-8")


def tell_ends(folder: Path, name: str) -> None:
    """Say where records of the saved tokenizer of this name, which is in `folder` now, begin and end: a template may
    have chosen other tokens than the tokenizer has."""
    ends = json.loads((folder / DOCUMENT).read_text(encoding="utf-8"))
    print(f"genloss: a record begins with {ends['begin']} and ends with {ends['end']} ({name})", file=sys.stderr)


def vocabulary_of(file: Path) -> dict[str, int]:
    """Every token of a tokenizer.json, with its number."""
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(file)).get_vocab(with_added_tokens=True)
    except Exception as error:  # the library raises no other kind
        raise UserError("domain.tokenizer", str(file), f"cannot be read ({first_line(error)})") from None


class Codec:
    """Texts to token ids and back. Every record is `begin` + tokens + `end` (the same id for the trained BPE)."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._tokenizer = self._read(special=False)
        config = json.loads((folder / "tokenizer_config.json").read_text())

        def token(key: str) -> str | None:
            value = config.get(key)
            return value["content"] if isinstance(value, dict) else value

        ids = self._tokenizer.get_vocab(with_added_tokens=True)
        document = folder / DOCUMENT
        marks = json.loads(document.read_text(encoding="utf-8")) if document.is_file() else {}
        self.end: int = ids[marks.get("end") or token("eos_token") or END]
        self.begin: int = ids.get(marks.get("begin") or token("bos_token") or "", self.end)
        self.size: int = max(ids.values()) + 1  # there may be gaps between the ids

    def _read(self, special: bool) -> Any:
        from tokenizers import Tokenizer

        tokenizer: Any = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        tokenizer.encode_special_tokens = not special  # as the characters that they are spelled with
        return tokenizer

    @cached_property
    def _knowing(self) -> Any:
        """The tokenizer that makes special tokens of what spells them."""
        return self._read(special=True)

    def encode(self, texts: Sequence[str], special: bool = False) -> list[list[int]]:
        """Token ids without `begin` and `end`. A text that spells a special token is its characters: texts are data,
        also those that a model made. special: it is that token, for a prompt that the caller has written."""
        if special:
            return [e.ids for e in self._knowing.encode_batch_fast(list(texts), add_special_tokens=False)]
        marks = {self.begin, self.end}  # which need not be special where `domain.end` has chosen them
        return [
            [i for i in e.ids if i not in marks]
            for e in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        ]

    def spelled(self, ids: Iterable[int]) -> list[str]:
        """What tokens are called in the vocabulary; '' of a number that is none."""
        return [self._tokenizer.id_to_token(i) or "" for i in ids]

    def decode(self, ids: list[list[int]]) -> list[str]:
        return self._tokenizer.decode_batch(ids, skip_special_tokens=True)

    # -- conversations -------------------------------------------------------------------------------------------------

    @cached_property
    def _chat(self) -> Any:
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast.from_pretrained(self.folder)

    @cached_property
    def template(self) -> str | None:
        """The model's chat template, if it has one; of several the default. What asks for the day has always the same
        one: tokens are those of any other day."""
        found = self._chat.chat_template
        found = found.get("default") if isinstance(found, dict) else found
        return f"{TODAY}{found}" if found and "strftime_now" in found else found or None

    @property
    def special(self) -> Mapping[str, Any]:
        """The tokens that a template can name."""
        return self._chat.special_tokens_map

    def is_special(self, token: str) -> bool:
        return token in self._marks

    def prompts(self, asked: Sequence[Prompt]) -> list[list[int]]:
        """Token ids without `begin`: of texts, and of conversations that wait for the assistant."""
        texts = [i for i, prompt in enumerate(asked) if isinstance(prompt, str)]
        found: list[list[int]] = [[] for _ in asked]
        for i, ids in zip(texts, self.encode([str(asked[i]) for i in texts]), strict=True):
            found[i] = ids
        for i, prompt in enumerate(asked):
            if not isinstance(prompt, str):
                ids = self.chat(prompt)
                found[i] = ids[ids[:1] == [self.begin] :]
        return found

    def chat(self, messages: Conversation) -> list[int]:
        """Token ids of a conversation, ready for the assistant's next turn, by the model's own template: what
        `apply_chat_template` of transformers gives. A message that spells a special token is its characters."""
        return self._ids(messages, ready=True)

    def rendered(self, messages: Conversation, everything: bool = False) -> list[int]:
        """Token ids of a whole conversation; those that are no targets as complements (genloss.language.packing).
        Targets are what the template marks as the assistant's, or `everything` after the first."""
        ids = self._ids(messages, ready=False)
        return [i if i >= 0 else ~i for i in ids] if everything else ids

    def length(self, messages: Conversation, enough: int) -> int:
        """Tokens of a whole conversation; of a text whose beginning alone has more than twice `enough`, those of the
        beginning: nobody waits for the tokens of megabytes to hear that they are too many."""
        contents = [m["content"] for m in messages]
        if sum(map(len, contents)) > LOOK * enough:
            text, _ = self._written(messages, contents, ready=False)
            found = len(self._knowing.encode(text[: LOOK * enough], add_special_tokens=False).ids)
            if found > 2 * enough:
                return found
        return len(self.rendered(messages))

    def _ids(self, messages: Conversation, ready: bool) -> list[int]:
        if not self.template:
            raise UserError("tokenizer", str(self.folder), "has no chat template; its model answers no conversations")
        if any(m["role"] == SYSTEM for m in messages[:1]) and not self._hears:
            raise refused("it leaves out system prompts; take one that writes them, or conversations without")
        contents = [m["content"] for m in messages]
        if not any(token in content for token in self._marks for content in contents):
            text, spans = self._written(messages, contents, ready)
            return self._part(text, spans, 0, ready)
        held = [f"\ue000{i}\ue001" for i in range(len(contents))]  # no text has these
        text, spans = self._written(messages, held, ready)
        ids: list[int] = []
        at = 0
        for part in re.split("(\ue000\\d+\ue001)", text):
            if part in held:
                inside = any(first <= at < end for first, end in spans)
                own = self.encode([contents[held.index(part)]])[0]
                ids += own if ready or inside else [~i for i in own]
            else:
                ids += self._part(part, spans, at, ready)
            at += len(part)
        return ids

    def _part(self, text: str, spans: list[tuple[int, int]], at: int, ready: bool) -> list[int]:
        """Ids of a part of a conversation that begins at character `at` of it."""
        made = self._knowing.encode(text, add_special_tokens=False)
        if ready:
            return made.ids
        mask = learned([(a + at, b + at) for a, b in made.offsets], spans)
        return [i if own else ~i for i, own in zip(made.ids, mask, strict=True)]

    def _written(
        self, messages: Conversation, contents: Sequence[str], ready: bool
    ) -> tuple[str, list[tuple[int, int]]]:
        """A conversation as the template writes it, and where in it the assistant speaks."""
        from transformers.utils.chat_template_utils import render_jinja_template

        template = self.template or ""
        said = [{"role": m["role"], "content": content} for m, content in zip(messages, contents, strict=True)]
        marked = not ready and MARKS.search(template) is not None
        try:
            made: Any = render_jinja_template(
                [said],
                chat_template=template,
                return_assistant_tokens_mask=marked,
                add_generation_prompt=ready,
                **self.special,
            )
        except Exception as error:  # it is a program, of which any step can fail
            raise refused(first_line(error)) from None
        (text,), spans = made
        return text, spans[0] if marked else []

    @cached_property
    def _hears(self) -> bool:
        """Whether the template writes a system prompt, or refuses it aloud."""
        messages = [{"role": SYSTEM, "content": ""}, *TALK[:2]]
        with contextlib.suppress(UserError):
            text, _ = self._written(messages, [HELD, *(m["content"] for m in TALK[:2])], ready=False)
            return HELD in text
        return True

    def openings(self) -> dict[str, str]:
        """What the template writes between two turns, by who speaks next: an end of a turn, and a mark of another."""
        held = ["\ue0000\ue001", "\ue0001\ue001", "\ue0002\ue001", "\ue0003\ue001"]
        turns = [{"role": role, "content": ""} for role in (USER, ASSISTANT) * 2]
        text, _ = self._written(turns, held, ready=False)
        after = {USER: held[1:3], ASSISTANT: held[2:4]}
        return {who: text.partition(a)[2].partition(b)[0] for who, (a, b) in after.items()}

    def opened(self, who: str) -> str:
        """What stands before a turn, behind all that the template writes of the turn before."""
        held = ["\ue0000\ue001", "\ue0001\ue001"]
        before, _ = self._written(
            [{"role": USER, "content": ""}, {"role": ASSISTANT, "content": ""}], held, ready=False
        )
        closed = before.partition(held[1])[2]
        return self.openings()[who].removeprefix(closed)

    @cached_property
    def _marks(self) -> list[str]:
        """The special tokens, as they are spelled."""
        return [t.content for t in self._tokenizer.get_added_tokens_decoder().values() if t.special]


def use_template(folder: Path, text: str | None, loss: str, key: str = "domain.template", name: str = "") -> None:
    """Give the tokenizer in `folder` a chat template (None: it has one), and note how its conversations begin and how a
    turn of the assistant ends: that is where sampling stops. loss: of LOSSES; '' where nothing is learned. key, name:
    of the template, for what is said of it."""
    if text is not None:
        (folder / TEMPLATE).write_text(text, encoding="utf-8")
    check_template(folder, key, name)
    try:
        begin, end = _ends(Codec(folder), loss)
    except UserError as error:
        raise UserError(key, name or None, error.remedy.replace("domain.template", key)) from None
    (folder / DOCUMENT).write_text(json.dumps({"begin": begin, "end": end}) + "\n", encoding="utf-8")


def check_template(folder: Path, key: str, name: str = "") -> None:
    """Refuse a tokenizer whose chat template, if it has one, is a program that does not end; those of genloss do. key,
    name: of it, for errors."""
    codec = Codec(folder)
    if codec.template and codec.template not in own_templates() and (why := endless(codec.template, codec.special)):
        raise UserError(key, name or None, f"{why}; take another chat template, or mend its loops")


def _ends(codec: Codec, loss: str) -> tuple[str, str]:
    """The tokens that begin a conversation and end a turn of the assistant, of a template that can be used; UserError
    of another one."""

    def need(can: object, why: str) -> None:
        if not can:
            raise UserError("domain.template", None, why)

    give = "domain.template=chatml, or a file of yours"
    need(codec.template is not None, f"the tokenizer has none; {give}, gives it one")
    if loss == ASSISTANT and not MARKS.search(codec.template or ""):
        why = "has no {% generation %} marks around what the assistant says, so nobody can tell its tokens"
        need(False, f"{why}; use domain.loss=all, or a template with marks, as domain.template=chatml")
    (asked, said), turns = (m["content"] for m in TALK[:2]), TALK[:2]
    whole, spans = codec._written(turns, [asked, said], ready=False)
    firsts = {*codec.spelled(codec.encode([whole], special=True)[0][:1])}
    with contextlib.suppress(UserError):  # some templates refuse system prompts; who has one is told then
        told, _ = codec._written([{"role": SYSTEM, "content": asked}, *turns], [asked, asked, said], ready=False)
        firsts.update(codec.spelled(codec.encode([told], special=True)[0][:1]))
    only = len(firsts) == 1 and codec.is_special(min(firsts))
    found = ", ".join(map(repr, sorted(firsts))) or "nothing"
    need(only, f"begins conversations with {found}, and not always with one special token")
    need(asked in whole and said in whole.partition(asked)[2], "does not write what is said as it is")
    posed, _ = codec._written(turns[:1], [asked], ready=True)
    goes_on = whole.startswith(posed)
    before, _, behind = whole[len(posed) if goes_on else 0 :].rpartition(said)
    open_mark = goes_on and any(mark in before for mark in codec._marks)
    need(not open_mark, "does not begin the assistant's turn where one is asked for (add_generation_prompt)")
    ends = codec.spelled(codec.encode([behind], special=True)[0])
    end = next((name for name in ends if codec.is_special(name)), None)
    need(end, "ends the assistant's turn with no special token, so that no answer would end")
    if loss:
        why = "asks for an answer (add_generation_prompt) with another text than it writes before one"
        need(goes_on, f"{why}, so what is learned is not what is asked")
        _check_turns(codec, need)
    if loss == ASSISTANT:
        marked = "".join(whole[a:b] for a, b in spans)
        need(asked not in marked, "marks by {% generation %} what the user says")
        need(said in marked, "marks by {% generation %} nothing of what the assistant says")
        left_out = f"has {end} behind its {{% endgeneration %}}, so that no answer would learn to end; put it before"
        need(str(end) in marked.rpartition(said)[2], left_out)
    return min(firsts), str(end)


def _check_turns(codec: Codec, need: Callable[[object, str], None]) -> None:
    """Of several turns each is written, and an answer stands behind what is asked for it."""
    contents = [m["content"] for m in TALK]
    try:
        whole, _ = codec._written(TALK, contents, ready=False)
        posed, _ = codec._written(TALK[:-1], contents[:-1], ready=True)
    except UserError:  # who has such a conversation is told then
        return
    rest = whole
    for number, content in enumerate(contents, 1):
        _, found, rest = rest.partition(content)
        need(found, f"leaves out, or changes, turn {number} of a conversation of {len(contents)}")
    need(whole.startswith(posed), "writes earlier turns otherwise once there is an answer")


@lru_cache(maxsize=4)
def load_codec(folder: Path) -> Codec:
    return Codec(folder)
