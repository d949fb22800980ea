"""What a language model is told: texts with places, in a YAML file whose hash is in the keys of the stages that use it.

    words = Prompts.read(file, {"asked": ("problem", "many")})     # these texts, each with these places
    words.fill("asked", problem="2+2=", many="2 more")             # $problem and ${many} are filled in

The file of a system lies beside its code and is named by nothing else; `prompts=my.yaml` of a plug-in names a copy with
other words. `version` is for people; what counts is the sha256."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any, ClassVar

from genloss.core.contracts import Plugin
from genloss.core.errors import UserError, first_line
from genloss.core.hashes import sha256_file
from genloss.core.places import in_project


@dataclass(frozen=True)
class Prompts:
    version: int
    texts: Mapping[str, str]

    @classmethod
    def read(cls, file: Path, wanted: Mapping[str, Sequence[str]]) -> Prompts:
        """UserError with the key `prompts` where the file lacks a text, or a text a place that it needs; or has one
        that nobody fills in."""
        import yaml

        try:
            found = yaml.safe_load(file.read_text(encoding="utf-8"))
            if not isinstance(found, dict) or found.keys() != {"version", *wanted}:
                raise ValueError(f"it must have exactly the keys version, {', '.join(wanted)}")
            prompts = cls(int(found.pop("version")), {name: str(text) for name, text in found.items()})
            for name, places in wanted.items():
                text = Template(prompts.texts[name])
                has = set(text.get_identifiers())
                if not text.is_valid():
                    raise ValueError(f"{name} has a $ that is no place; write $$ for a dollar")
                if has != set(places):
                    which = f"the places ${', $'.join(places)}" if places else "no places"
                    raise ValueError(f"{name} must have {which}, and has {', '.join(sorted(has)) or 'none'}")
        except (OSError, ValueError, TypeError, RecursionError, yaml.YAMLError) as error:
            raise UserError("prompts", str(file), f"is no file of prompts ({first_line(error)})") from None
        return prompts

    def __getitem__(self, name: str) -> str:
        return self.texts[name]

    def fill(self, name: str, **values: Any) -> str:
        """A text with its places filled in; what is filled in is text, whatever it looks like."""
        return Template(self.texts[name]).substitute(values)


def onward(text: str, prompt: str) -> str:
    """What a model writes behind a prompt, without the prompt's last line, which chat models say again. A text that
    is no more than a part of that line, as where it was stopped in it, is nothing."""
    last, said = prompt.strip().rpartition("\n")[2].strip(), text.strip()
    if last.startswith(said):
        return ""
    return said.removeprefix(last) if said.startswith(last) else text


class Told(Plugin):
    """A plug-in that tells a model what to do. It derives from this, says where its words lie, and has a field
    `prompts: str = ""`: another file."""

    own_prompts: ClassVar[Path]
    wanted: ClassVar[Mapping[str, Sequence[str]]]  # texts of the file, each with its places
    prompts: str

    def words(self) -> Prompts:
        return Prompts.read(self.words_file(), self.wanted)

    def words_file(self) -> Path:
        return in_project(self.prompts, "prompts") if self.prompts else self.own_prompts

    def places(self) -> tuple[str, ...]:
        return ("prompts",)

    def fingerprint(self) -> str:
        return sha256_file(self.words_file())

    def told_by(self) -> dict[str, Any]:
        """For the results of a round: version and sha256 of the words."""
        return {"prompts": {"version": self.words().version, "sha256": self.fingerprint()}}
