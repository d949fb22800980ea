"""The `genloss` command: few verbs, each with --help; heavy libraries are imported only when work needs them."""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from genloss import __version__
from genloss.core.errors import UserError, first_line, nearest
from genloss.core.places import settle
from genloss.core.replaced import replaced
from genloss.core.signals import Stopped, stoppable

Argument = tuple[tuple[str, ...], dict[str, Any]]  # what argparse's add_argument takes
Call = Callable[[argparse.Namespace], int]  # returns the exit code


def argument(*names: str, **options: Any) -> Argument:
    return names, options


class Verb(NamedTuple):
    """One verb: what it does, the arguments that it takes, and the function that gets them."""

    text: str
    arguments: tuple[Argument, ...]
    call: Call


VERBS: dict[str, Verb] = {}
RUN = "run one arm, or with -m every arm of a sweep, and resume what was interrupted"  # Hydra reads its arguments


def verb(name: str, text: str, *arguments: Argument) -> Callable[[Call], Call]:
    """Makes the function below it a verb."""

    def enter(call: Call) -> Call:
        VERBS[name] = Verb(text, arguments, call)
        return call

    return enter


def not_empty(words: Sequence[str]) -> None:
    """Refuse an empty argument, which a shell makes of a variable that is not set: as a name it would be taken for none
    at all, and as a folder for this one."""
    for i, word in enumerate(words):
        flag, given, value = word.partition("=")
        if not word or (flag.startswith("--") and given and not value):
            before = words[i - 1] if i and words[i - 1].startswith("-") else "an argument"
            raise UserError(flag or before, None, "is empty; give it a value, or leave it out")


def between(name: str, low: float, high: float, kind: type[int] | type[float] = int) -> Callable[[str], float]:
    """Reads a number of an argument; UserError if it lies outside of the range."""

    def read(text: str) -> float:
        try:
            number = kind(text)
        except ValueError:
            number = math.nan
        if not low <= number <= high:
            raise UserError(name, text, f"must be a {'whole ' * (kind is int)}number in [{low:g}, {high:g}]")
        return number

    return read


DIR = argument("dir", type=Path, metavar="DIR", help="run directory")


def address_of(args: argparse.Namespace) -> str | None:
    """--tracking-uri, by the rules of tracking.uri."""
    from genloss.experiment import Tracking

    try:
        return Tracking(uri=args.tracking_uri).uri
    except UserError as error:
        raise UserError("--tracking-uri", error.value, error.remedy) from None


TRACKING = argument("--tracking-uri", metavar="URI", help="MLflow's address (default: what the runs, or conf/, say)")


@verb(
    "compose",
    "write params.yaml from conf/ and overrides, for `dvc repro`",
    argument("overrides", nargs="*", help="Hydra overrides, for example rounds=8 mixing=accumulate"),
    argument("--check", action="store_true", help="write nothing; exit with 1 if params.yaml is not current"),
    argument("--dir", type=Path, help="what if? an arm beside this run directory that differs in values"),
    argument("--config-dir", type=Path, help="a folder of options beside conf/, as `genloss run` takes it"),
)
def _compose(args: argparse.Namespace) -> int:
    from genloss.workflow.params import compose_params

    more = args.config_dir and args.config_dir.resolve()
    if more and not more.is_dir():
        raise UserError("--config-dir", args.config_dir, "is no folder")
    return compose_params([*args.overrides, *([f"hydra.searchpath=['{more}']"] if more else [])], args.check, args.dir)


@verb(
    "round",
    "run one round of the run directory (what a DVC stage calls)",
    argument("number", type=int, help="0 trains on real data; n needs the rounds before it"),
    argument("--dir", type=Path, default=Path(), help="run directory (default: here)"),
)
def _round(args: argparse.Namespace) -> int:
    from genloss.workflow import warm

    def cold() -> int:
        from genloss.workflow.arm import one_round

        return one_round(args.dir, args.number)

    return warm.run(["round", str(args.number), "--dir", str(args.dir)], cold)


@verb(
    "report",
    "verdicts, table and figure of finished runs or sweeps; rebuilds their MLflow view",
    argument("dirs", type=Path, nargs="+", metavar="DIR", help="run directories or sweeps"),
    argument("--metric", help="what the table and the figure show (default: the domain's own)"),
    argument(
        "--control",
        metavar="ARM",
        help="what verdicts compare with: an arm or a regime (default: on real records alone)",
    ),
    argument(
        "--metrics", metavar="NAME,...", help="metrics to add to the rounds first: options, and metrics.NAME.KEY=VALUE"
    ),
    argument("--out", type=Path, help="folder for report.md, rounds.csv, verdicts.json and the figure"),
    TRACKING,
)
def _report(args: argparse.Namespace) -> int:
    uri = address_of(args)
    from genloss.observatory.report import report
    from genloss.workflow.identity import differing
    from genloss.workflow.sweep import told_apart, true_arms
    from genloss.workflow.tracking import rebuild_all

    found = [(folder, true_arms(folder)) for folder in args.dirs]
    arms = told_apart([arm for _, arms in found for arm in arms])
    missed = 0
    if args.metrics:
        from genloss.workflow.added import add

        missed = add(arms, args.metrics)
    code = report(args.dirs, arms, args.metric, args.out, differing(arms), args.control)
    rebuild_all(found, uri)
    return code or missed


@verb(
    "forecast",
    "what the first rounds of arms say of their later ones, and which real data would hold a metric",
    argument("dirs", type=Path, nargs="+", metavar="DIR", help="sweeps or run directories"),
    argument("--metric", help="what is forecast (default: the domain's own)"),
    argument("--rounds", type=between("--rounds", 1, 1_000_000), metavar="K", help="see rounds up to K (default: all)"),
    argument("--threshold", type=between("--threshold", -1e300, 1e300, float), metavar="T", help="when is T crossed?"),
    argument("--out", type=Path, help="folder for forecast.json"),
)
def _forecast(args: argparse.Namespace) -> int:
    from genloss.observatory.forecast import FILE, forecast, place_of
    from genloss.workflow.sweep import told_apart, true_arms

    arms = told_apart([arm for folder in args.dirs for arm in true_arms(folder)])
    out = place_of(args.dirs, args.out)
    print(forecast(arms, out, args.metric, args.rounds, args.threshold))
    print(f"\nwritten: {out}/{FILE}")
    return 0


@verb(
    "push",
    "send the data of a sweep's arms, or of one, to the DVC remote",
    argument("dir", type=Path, metavar="DIR", help="a sweep or a run directory"),
    argument("--remote", help="which of DVC's remotes (default: DVC's default)"),
)
def _push(args: argparse.Namespace) -> int:
    from genloss.workflow.share import push

    return push(args.dir, args.remote)


@verb(
    "pull",
    "fetch the data of a sweep's arms, or of one, from the DVC remote",
    argument("dir", type=Path, metavar="DIR", help="a sweep or a run directory, as Git has it"),
    argument("--remote", help="which of DVC's remotes (default: DVC's default)"),
)
def _pull(args: argparse.Namespace) -> int:
    from genloss.workflow.share import pull

    return pull(args.dir, args.remote)


@verb(
    "samples",
    "records of a round, to be read",
    DIR,
    argument("--round", type=int, help="which round (default: the last one)"),
    argument("--count", type=int, default=5, help="of kept and of rejected ones (default: 5)"),
)
def _samples(args: argparse.Namespace) -> int:
    from genloss.observatory.samples import show

    return show(args.dir, args.round, args.count)


@verb(
    "trace",
    "where a record comes from, what was made from it, and which models learned from it",
    DIR,
    argument("record", nargs="?", help="id of a record, or its beginning"),
    argument("--summary", action="store_true", help="of all records: generations, real ancestors, what was dropped"),
    argument("--json", action="store_true", help="as JSON, to be read by a program"),
)
def _trace(args: argparse.Namespace) -> int:
    from genloss.observatory.lineage import summarise, trace

    if bool(args.record) == args.summary:
        raise UserError("record", args.record, "give the id of a record, or --summary, and not both")
    return summarise(args.dir, args.json) if args.summary else trace(args.dir, args.record, args.json)


@verb(
    "export",
    "a round as a data set and a model for Hugging Face's libraries, with cards",
    DIR,
    argument("--round", type=int, help="which round (default: the last one)"),
    argument("--to", type=Path, required=True, metavar="FOLDER", help="where to; it must not be there yet"),
    argument("--merge", action="store_true", help="an adapter merged into its base, too"),
    argument("--license", metavar="ID", help="of the records (default: that of the corpus, where it is known)"),
    argument("--push", metavar="OWNER/NAME", help="send it to private repositories of the Hugging Face hub, too"),
)
def _export(args: argparse.Namespace) -> int:
    from genloss.workflow.export import export

    return export(args.dir, args.round, args.to, args.push, args.merge, args.license)


@verb(
    "model",
    "the model of a round, computed again if it was not kept (keep.models)",
    DIR,
    argument("--round", type=int, required=True, help="which round"),
)
def _model(args: argparse.Namespace) -> int:
    from genloss.workflow.arm import one_model

    print(f"model: {one_model(args.dir, args.round)}")
    return 0


@verb(
    "replicate",
    "run published results against theory, and write the scoreboard",
    argument("names", nargs="*", metavar="CASE|PAPER", help="which of --list; none: all"),
    argument("--list", action="store_true", help="name the cases and run nothing"),
    argument("--write", action="store_true", help="write docs/scoreboard.md, not .genloss/replicate/"),
    argument("--fresh", action="store_true", help="compute again what earlier calls have computed"),
    argument("--jobs", type=between("--jobs", 1, 1024), default=2, help="arms at a time (default: 2)"),
)
def _replicate(args: argparse.Namespace) -> int:
    from genloss.replicate import listing, replicate

    if args.list:
        print(listing())
        return 0
    return replicate(args.names, args.write, args.fresh, args.jobs)


@verb(
    "verify",
    "compute a run again from nothing and compare every hash",
    DIR,
    argument("--round", type=int, help="only this round, from the artifacts of the rounds before it"),
)
def _verify(args: argparse.Namespace) -> int:
    from genloss.workflow.verify import verify

    return verify(args.dir, args.round)


@verb(
    "golden",
    "the best split of a budget between real and synthetic records, and its loss weights",
    argument("budget", type=between("budget", 0, 1e9, float), help="what the records of a round may cost"),
    argument(
        "--cost-real",
        type=between("--cost-real", 1e-6, 1e9, float),
        default=1.0,
        help="of one fresh real record (default: 1)",
    ),
    argument(
        "--cost-synthetic",
        type=between("--cost-synthetic", 1e-6, 1e9, float),
        default=1.0,
        help="of one record of the last model (default: 1)",
    ),
    argument("--rounds", type=between("--rounds", 1, 200), default=20),
)
def _golden(args: argparse.Namespace) -> int:
    from genloss.theory.golden import golden

    return golden(args.budget, args.cost_real, args.cost_synthetic, args.rounds)


@verb(
    "feedback",
    "a page on this machine that takes a person's likes and dislikes of images, and makes the next round",
    argument("dir", type=Path, metavar="RUN", help="a run of experiment=fabric/person, or its session"),
    argument("--port", type=between("--port", 0, 65535), default=5001, help="0: any that is free"),
)
def _feedback(args: argparse.Namespace) -> int:
    from genloss.workflow.feedback import feedback

    return feedback(args.dir, args.port)


@verb(
    "ui",
    "open MLflow on the project's runs, or on those of one sweep or arm",
    argument("dir", type=Path, nargs="?", metavar="DIR", help="a sweep or a run directory"),
    argument("--port", type=between("--port", 1, 65535), default=5000),
    argument("--host", default="127.0.0.1"),
    TRACKING,
)
def _ui(args: argparse.Namespace) -> int:
    from genloss.workflow.ui import ui

    return ui(args.dir, address_of(args), args.host, args.port)


def dispatch(name: str, rest: list[str]) -> int:
    """Call a verb with its arguments; returns the exit code."""
    if name == "run":
        import logging

        from genloss.workflow.hydra_app import hydra_main

        logging.raiseExceptions = False  # `--info` logs what it prints: a traceback a line once its reader has left
        return hydra_main(rest)
    if name == "serve":  # not for users: the process that a round starts for the rounds after it
        from genloss.workflow import warm

        return warm.serve(Path(rest[0]), main)
    if name not in VERBS:
        raise UserError("verb", name, f"unknown; {nearest(name, ['run', *VERBS])}")
    not_empty(rest)
    parser = argparse.ArgumentParser(prog=f"genloss {name}", description=VERBS[name].text)
    for names, options in VERBS[name].arguments:
        parser.add_argument(*names, **options)
    args = parser.parse_args(rest)
    settle(next((folder for folder in (getattr(args, "dir", None), *getattr(args, "dirs", ())) if folder), None))
    return VERBS[name].call(args)


COMPLETION = ("-sc", "--shell-completion", "--shell_completion")  # flags of Hydra, by which a shell asks


def complete(arguments: list[str]) -> int:
    """Tab completion: verbs for the first word, Hydra's for the overrides of `run` and `compose`, nothing else."""
    if not arguments[-1].startswith("query="):  # what installs it
        try:
            return dispatch("run", arguments)
        except ValueError as error:  # of Hydra
            raise UserError(arguments[0], " ".join(arguments[1:]), first_line(error)) from None
    line = os.environ.get("COMP_LINE", "")
    words = line[: int(os.environ.get("COMP_POINT", len(line)))].split(" ")
    verbs, last = [word for word in words[1:-1] if word], words[-1]
    if not verbs:
        print("\n".join(name for name in ["run", *VERBS] if name.startswith(last)))
    elif verbs[0] in ("run", "compose") and not last.startswith("-"):
        # flags and their values are not for Hydra, which completes for a command without verbs
        overrides = [word for word in verbs[1:] if "=" in word and not word.startswith("-")]
        os.environ["COMP_LINE"] = " ".join(["genloss", *overrides, last])
        with contextlib.redirect_stderr(io.StringIO()), contextlib.suppress(Exception):  # a prompt has no room for it
            dispatch("run", arguments)
    return 0


def help_text() -> str:
    texts = {"run": RUN} | {name: found.text for name, found in VERBS.items()}
    lines = "\n".join(f"  {name:<11}{text}" for name, text in texts.items())
    return (
        "usage: genloss VERB [...]\n\n"
        "A laboratory for recursive training: models that learn from data that models made.\n\n"
        f"{lines}\n\nEvery verb has --help. Start with: genloss run rounds=1 size=256"
    )


OTHER_KIND = (errno.EEXIST, errno.EISDIR, errno.ENOTDIR)  # of what lies there, which no run of genloss leaves


def remedy(error: OSError) -> str:
    """What a user can do about a file that cannot be read or written. A write that fails does not say of which file;
    most are the store's."""
    from genloss.core.places import store_root

    if error.errno in OTHER_KIND:
        return "a file is where a folder belongs, or the reverse; delete it, and the same command goes on from here"
    first = {
        errno.ENOSPC: "free space",
        errno.EDQUOT: "free space",
        errno.EROFS: "it must be on a disk that can be written",
        errno.EACCES: "allow this user to read and write it",
        errno.EPERM: "allow this user to read and write it",
        errno.EMFILE: "allow more open files (ulimit -n)",
    }.get(error.errno or 0, "see whether that file and its disk can be read and written")
    store = store_root()
    ours = error.filename is None or Path(os.fsdecode(error.filename)).is_relative_to(store)
    other = f", or move the store, {store}, with GENLOSS_STORE" if ours else ""
    return f"{first}{other}; the same command then goes on from here"


def command(arguments: list[str]) -> int:
    """What the first word says; returns the exit code."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(help_text())
        return 0
    if arguments[0] in ("-V", "--version"):
        print(f"genloss {__version__}")
        return 0
    if arguments[0] in COMPLETION:
        return complete(arguments)
    return dispatch(arguments[0], arguments[1:])


def main(argv: list[str] | None = None) -> None:
    """Entry point. Exit codes: 0 done; 1 some arms failed, `verify` found a difference, or a result did not replicate;
    2 bad input; 128 + n stopped by signal n (130: Ctrl-C, 143: SIGTERM); 141 whoever read the output has closed it
    (`genloss --help | head`)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        with stoppable():
            try:
                code = command(arguments)
            except SystemExit:  # Hydra's end of --help
                sys.stdout.flush()
                raise
            sys.stdout.flush()
    except UserError as error:
        print(f"genloss: {error}", file=sys.stderr)
        code = 2
    except (Stopped, KeyboardInterrupt) as error:
        stopped = error if isinstance(error, Stopped) else Stopped()
        print(stopped, file=sys.stderr)
        code = stopped.code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python still flushes at its end
        code = 141
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        # what cannot be renamed was written aside; its second name says where to
        place = (error.errno in OTHER_KIND and error.filename2) or error.filename or "disk"
        print(f"genloss: {place}: {error.strerror}; {remedy(error)}", file=sys.stderr)
        code = 2
    except Exception as error:
        if (told := replaced(error)) is None:
            raise
        print(f"genloss: {told}", file=sys.stderr)
        code = 2
    sys.stderr.flush()
    if code:
        raise SystemExit(code)
