"""Another model, behind an OpenAI-compatible server: vLLM, SGLang, `transformers serve`, llama.cpp, or a hosted one.

    genloss run recipe/backend=openai recipe.backend.url=http://localhost:8000/v1 recipe.backend.model=NAME \\
        recipe.prompts=real
    genloss run domain=reasoning recipe=solve recipe/backend=openai recipe.backend.model=gpt-4o-mini \\
        recipe.backend.api=chat recipe.backend.max_tokens=200

Options of the decoding are sent under the names that servers know; those that servers have no name for are refused.
What a server ignores in silence is found out from its replies (genloss.backends.endpoint), and what a single reply
cannot show by asking the first prompt three times or more for a few tokens: at temperature 2 two seeds must not give
the same text, and with top_k=1, top_p=0.001 or min_p=0.999 they must. A server that does not repeat a reply for a seed
is taken all the same, since what it gave is kept and found again; that is said in one line."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from genloss.backends.endpoint import GREETING, Endpoint, Question
from genloss.backends.reply import BYTES, Reply
from genloss.backends.thoughts import without_thoughts
from genloss.core.contracts import Backend, Decoding, Prompt, Replies, Sampling
from genloss.core.errors import UserError, one_of, require
from genloss.core.records import CUT, ENDED
from genloss.core.seeds import seed_of
from genloss.language.constraint import check_constraint
from genloss.language.tokenizer import Codec, load_codec

SEEDS = 1 << 31  # of a server
PROBE = 16  # tokens of a reply that only shows what the server heeds
SET = ("seed", "max_tokens", "max_completion_tokens", "top_k", "min_p", "logprobs", "response_format")  # by the recipe
STOPS = 4  # texts to stop at that servers take
HOT = 2.0  # its temperature: the highest that servers take
NARROW = {"top_k": 1, "top_p": 0.001, "min_p": 0.999}  # leaves the likeliest token alone


def written(prompt: Prompt) -> str:
    """What a prompt says, to count its tokens by a tokenizer that has no template."""
    return prompt if isinstance(prompt, str) else "\n".join(message["content"] for message in prompt)


@dataclass
class OpenAI(Endpoint, Backend):
    """api: completions go on from a prompt as it is; chat answers it as a message, by the model's own template, and
    what the model thinks aloud is cut out."""

    elsewhere = True
    api: str = "completions"
    system: str = ""  # what a chat is told first
    begin: str = ""  # where a record has no prompt (recipe.prompts=none): the text that begins a document there
    max_tokens: int | None = None  # of a reply; None: what the recipe's max_tokens leaves, in the run's tokens
    seeds: bool = True  # whether each record's random stream is sent as a seed

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("api", self.api, ("completions", "chat"))
        require(self.max_tokens is None or self.max_tokens >= 1, "max_tokens", self.max_tokens, "at least 1, or null")
        for name in SET:
            require(name not in self.options, f"options.{name}", self.options.get(name), "absent: it is set here")
        require(not self.system or self.api == "chat", "system", self.system, "empty where api=completions")

    def check_decoding(self, decoding: Decoding, prompted: bool = True) -> None:
        why = "is no option of an OpenAI-compatible server"
        if decoding.repetition_penalty != 1:
            raise UserError("repetition_penalty", decoding.repetition_penalty, f"{why}; leave it at 1")
        if decoding.constraint and "json" not in decoding.constraint:
            remedy = "servers share no name for it but that of a JSON schema; write one (an enum is a choice)"
            raise UserError("constraint", decoding.constraint, remedy)
        check_constraint(decoding.constraint)
        if decoding.bias not in (0, 1):
            raise UserError("bias", decoding.bias, f"{why}; 1 samples, 0 is greedy")
        require(
            len(decoding.stop) <= STOPS, "stop", decoding.stop, f"at most {STOPS} texts, which is what servers take"
        )
        if not prompted and not (self.api == "completions" and self.begin):
            raise UserError("prompts", "none", "leaves a server nothing to go on from; use real, or backend.begin=TEXT")

    def check_conversations(self) -> None:
        why = "goes on from texts, and what is asked here are conversations; set backend.api=chat"
        if self.api != "chat":
            raise UserError("backend.api", self.api, why)
        if self.system:
            raise UserError("backend.system", self.system, "is a second system prompt to conversations; leave it empty")

    def greeting(self) -> Question:
        return Question(self.sent(GREETING, Decoding(max_tokens=1)) | {"max_tokens": 1}, "greeting")

    def compare(self, question: Question, reply: Reply) -> None:
        super().compare(question, reply)
        if reply.finish is None and reply.counted is None:
            raise self.ignored("finish_reason", "a reply does not say whether it was cut off, nor count its tokens")

    def said(self, reply: Reply) -> str:
        return without_thoughts(reply.text).strip() if self.api == "chat" else reply.text

    def sample(self, request: Sampling) -> Iterator[Replies]:
        try:
            self.begin_round(request.scratch, request.account or request.scratch / "account.json")
            if request.n and request.decoding.bias:
                self.probe(self.questions(request, 0, 1)[1][0], request)
            self.empty = 0
            for first in range(0, request.n, request.decoding.chunk):
                yield self.part(request, first, min(request.n, first + request.decoding.chunk))
            if 2 * self.empty > request.n:
                print(f"genloss: warning: {self.empty} of {request.n} replies of {self.url} are empty", file=sys.stderr)
        except UserError as error:
            raise error.under(self.stands_at or "recipe.backend", [f.name for f in fields(self)]) from None

    def part(self, request: Sampling, first: int, end: int) -> Replies:
        """The records from `first` to before `end`."""
        options = request.decoding
        prompts, asked = self.questions(request, first, end)
        made = Replies([], 0, [], logprobs=[] if options.logprobs else None)
        tokens = 0
        with closing(self.replies(enumerate(asked), request.runtime.workers)) as found:
            for i, reply in found:
                text = self.said(reply)
                short = options.stopped(text)  # some servers go on, or write it
                text = text if short is None else short
                self.empty += not text
                made.texts.append(f"{prompts[i]}{text}" if options.keep_prompt else text)
                written = reply.counted[1] if reply.counted else len(reply.text.encode()) // BYTES
                cut = reply.cut or (reply.finish is None and written >= asked[i].body["max_tokens"])
                made.finish.append(CUT if cut and short is None else ENDED)
                if made.logprobs is not None:
                    made.logprobs.append(reply.logprobs or [])
                tokens += written
                request.report(first + i + 1, request.n, "records")
        return made._replace(tokens=tokens)

    def questions(self, request: Sampling, first: int, end: int) -> tuple[Sequence[Prompt], list[Question]]:
        """(prompts, questions) of the records from `first` to before `end`."""
        options, codec = request.decoding, load_codec(request.data / "tokenizer")
        prompts: Sequence[Prompt] = [""] * (end - first) if request.prompts is None else request.prompts[first:end]
        if any(not isinstance(prompt, str) for prompt in prompts) and not codec.template:
            ids = codec.encode([written(prompt) for prompt in prompts])
        else:
            ids = codec.prompts(prompts)
        prompts = self.shortened(prompts, ids, options.prefix, codec)
        asked = []
        for i, prompt, row in zip(range(first, end), prompts, ids, strict=True):
            given = min(len(row), options.prefix)
            room = options.longest(given) - given
            body = self.sent(prompt or self.begin, options) | {"max_tokens": self.max_tokens or max(1, room)}
            stream = seed_of(request.seed, "record", i)
            if self.seeds and options.bias:
                body["seed"] = stream % SEEDS
            asked.append(Question(body, stream))
        return prompts, asked

    @staticmethod
    def shortened(prompts: Sequence[Prompt], ids: list[list[int]], longest: int, codec: Codec) -> Sequence[Prompt]:
        """Texts cut to so many tokens; conversations are not cut."""
        short = codec.decode([row[:longest] for row in ids])
        found: list[Prompt] = []
        for prompt, cut, row in zip(prompts, short, ids, strict=True):
            if isinstance(prompt, str) and len(row) > longest:
                found.append(cut if prompt.startswith(cut) else cut.rstrip("\ufffd"))  # half a character
            else:
                found.append(prompt)
        return found

    def sent(self, prompt: Prompt, options: Decoding) -> dict[str, Any]:
        """A request's prompt and decoding, without what is each record's own."""
        chat = self.api == "chat"
        said = [{"role": "system", "content": self.system}] if self.system else []
        asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(map(dict, prompt))
        messages = [*said, *asked]
        body: dict[str, Any] = {"messages": messages} if chat else {"prompt": prompt}
        body["temperature"] = options.temperature if options.bias else 0.0
        body |= {"top_p": options.top_p} if options.top_p < 1 else {}
        body |= {"top_k": options.top_k} if options.top_k else {}
        body |= {"min_p": options.min_p} if options.min_p else {}
        body |= {"stop": list(options.stop)} if options.stop else {}
        if options.constraint:
            schema = {"name": "record", "strict": True, "schema": options.constraint["json"]}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return body | ({"logprobs": True if chat else 1} if options.logprobs else {})

    def probe(self, question: Question, request: Sampling) -> None:
        """Find out what one reply cannot show: the first prompt is asked for a few tokens, at a temperature at which no
        two replies are alike. Once for the same options: a recipe may ask several times a round. UserError if an option
        is ignored."""
        seeded = "seed" in question.body
        options = frozenset(name for name in ("seed", *NARROW) if name in question.body)
        if options in self.probed:
            return
        body = {**question.body, "max_tokens": min(PROBE, question.body["max_tokens"]), "temperature": HOT}
        body.pop("response_format", None)

        asked: list[Question] = []

        def said(name: str, seed: int, **more: Any) -> Reply:
            seeds = {"seed": seed} if seeded else {}
            asked.append(Question({**body, **seeds, **more}, f"{name} {request.seed}"))
            return self.reply(asked[-1])

        one, other = said("one", 1), said("other", 2)
        if one.text == other.text and one.cut and len(one.text) >= PROBE:
            how = f"{HOT:g} gives {one.text[:40]!r} twice; a server of transformers samples with "
            how += "options.generation_config='{\"do_sample\":true}' where its model's own has do_sample=false"
            self.forget(asked)  # it may be mended
            raise self.ignored("temperature", how)
        if seeded and said("again", 1).text != one.text:
            why = "does not repeat a reply for a seed; what it gives is kept, so that a rerun has the same records"
            print(f"genloss: {self.url} {why}", file=sys.stderr)
        for name, value in NARROW.items():
            if name in body and said(name, 1, **{name: value}).text != said(f"{name} again", 2, **{name: value}).text:
                self.forget(asked)
                raise self.ignored(name, f"{name}={value:g} gives different texts; leave it as it is by default")
        self.probed.add(options)

    @cached_property
    def probed(self) -> set[frozenset[str]]:
        """Options that this server was seen to heed."""
        return set()

    def spent(self, scratch: Path) -> dict[str, float]:
        return self.costs(scratch)
