"""The `genloss` command: few verbs, each with --help; heavy libraries are imported only when work needs them."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from genloss import __version__
from genloss.core.errors import UserError, nearest

VERBS = {
    "run": "run one arm, or with -m every arm of a sweep, and resume what was interrupted",
    "compose": "write params.yaml from conf/ and overrides, for `dvc repro`",
    "round": "run one round of the run directory (what a DVC stage calls)",
    "report": "table and figure of finished runs or sweeps; rebuilds their MLflow view",
    "trace": "where a record comes from and which models learned from it",
    "replicate": "run published results against theory, and write the scoreboard",
    "verify": "compute a run again from nothing and compare every hash",
    "golden": "the best split of a budget between real and synthetic records, and its loss weights",
    "ui": "open MLflow on the project's runs",
}


def help_text() -> str:
    lines = "\n".join(f"  {verb:<11}{text}" for verb, text in VERBS.items())
    return (
        "usage: genloss VERB [...]\n\nA laboratory for recursive training: models that learn from data that models made.\n\n"
        f"{lines}\n\nEvery verb has --help. Start with: genloss run rounds=1 size=256"
    )


def main(argv: list[str] | None = None) -> None:
    """Entry point. Exit codes: 0 done; 1 some arms failed, `verify` found a difference, or a result did not replicate; 2 bad input; 130 interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(help_text())
        return
    if arguments[0] in ("-V", "--version"):
        print(f"genloss {__version__}")
        return
    if arguments[0] in ("-sc", "--shell-completion", "--shell_completion"):
        arguments.insert(0, "run")
    try:
        code = dispatch(arguments[0], arguments[1:])
    except UserError as error:
        print(f"genloss: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("genloss: interrupted; the same command goes on from here", file=sys.stderr)
        code = 130
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        remedy = "free space or name another place with GENLOSS_STORE; the same command then goes on from here"
        print(f"genloss: {error.filename or 'disk'}: {error.strerror}; {remedy}", file=sys.stderr)
        code = 2
    sys.stdout.flush()
    sys.stderr.flush()
    if code:
        raise SystemExit(code)


def dispatch(verb: str, rest: list[str]) -> int:
    if verb == "run":
        from genloss.workflow.hydra_app import hydra_main

        return hydra_main(rest)
    if verb not in VERBS:
        raise UserError("verb", verb, f"unknown; {nearest(verb, VERBS)}")
    parser = argparse.ArgumentParser(prog=f"genloss {verb}", description=VERBS[verb])
    if verb == "compose":
        parser.add_argument("overrides", nargs="*", help="Hydra overrides, for example rounds=8 mixing=accumulate")
        parser.add_argument(
            "--check", action="store_true", help="write nothing; exit with 1 if params.yaml is not current"
        )
        parser.add_argument(
            "--dir", type=Path, help="change the params.yaml of this run directory instead, by values alone"
        )
        args = parser.parse_args(rest)
        from genloss.workflow.params import compose_params

        return compose_params(args.overrides, args.check, args.dir)
    if verb == "round":
        parser.add_argument("number", type=int, help="0 trains on real data; n needs the rounds before it")
        parser.add_argument("--dir", type=Path, default=Path(), help="run directory (default: here)")
        args = parser.parse_args(rest)
        from genloss.workflow import warm
        from genloss.workflow.arm import one_round

        return warm.run(["round", *rest], lambda: one_round(args.dir, args.number))
    if verb == "report":
        parser.add_argument("dirs", type=Path, nargs="+", metavar="DIR", help="run directories or sweeps")
        parser.add_argument("--metric", help="what the table and the figure show (default: the domain's own)")
        parser.add_argument("--out", type=Path, help="folder for report.md, rounds.csv and the figure")
        args = parser.parse_args(rest)
        from genloss.observatory.report import report

        return report(args.dirs, args.metric, args.out)
    if verb == "trace":
        parser.add_argument("dir", type=Path, metavar="DIR", help="run directory")
        parser.add_argument("record", help="id of a record, or its beginning")
        args = parser.parse_args(rest)
        from genloss.observatory.lineage import trace

        return trace(args.dir, args.record)
    if verb == "replicate":
        parser.add_argument("names", nargs="*", metavar="CASE|PAPER", help="which of --list; none: all")
        parser.add_argument("--list", action="store_true", help="name the cases and run nothing")
        parser.add_argument("--write", action="store_true", help="write docs/scoreboard.md, not .genloss/replicate/")
        parser.add_argument("--fresh", action="store_true", help="compute again what earlier calls have computed")
        parser.add_argument("--jobs", type=int, default=2, help="arms at a time (default: 2)")
        args = parser.parse_args(rest)
        from genloss.replicate import listing, replicate

        if args.list:
            print(listing())
            return 0
        return replicate(args.names, args.write, args.fresh, args.jobs)
    if verb == "verify":
        parser.add_argument("dir", type=Path, metavar="DIR", help="run directory")
        parser.add_argument("--round", type=int, help="only this round, from the artifacts of the rounds before it")
        args = parser.parse_args(rest)
        from genloss.workflow.verify import verify

        return verify(args.dir, args.round)
    if verb == "golden":
        parser.add_argument("budget", type=float, help="what the records of a round may cost")
        parser.add_argument("--cost-real", type=float, default=1.0, help="of one fresh real record (default: 1)")
        parser.add_argument(
            "--cost-synthetic", type=float, default=1.0, help="of one record of the last model (default: 1)"
        )
        parser.add_argument("--rounds", type=int, default=20)
        args = parser.parse_args(rest)
        from genloss.theory.golden import golden

        return golden(args.budget, args.cost_real, args.cost_synthetic, args.rounds)
    parser.add_argument("--port", type=int, default=5000)
    parser.add_argument("--host", default="127.0.0.1")
    args = parser.parse_args(rest)
    from genloss.workflow.tracking import store_uri

    uri = store_uri(None)
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "ui",
        "--backend-store-uri",
        uri,
        "--host",
        args.host,
        "--port",
        str(args.port),
    ]
    os.execv(sys.executable, command)
    return 0
