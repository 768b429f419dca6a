"""``metalscribe``: the command line. Commands import what they need when they run, so that ``--help`` answers at once.

Exit status: 0 done, 1 it failed, 2 the settings or the arguments are wrong (:mod:`metalscribe.cli.doctor` has its own
meaning for these three), 130 interrupted. What was asked for goes to stdout, everything said about it to stderr.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from metalscribe.cli import backup, config, doctor, jobs, keys, model, submit, transcribe, tune, usage
from metalscribe.cli.console import complain
from metalscribe.errors import ConfigurationError, InvalidParameter, MetalscribeError

_FAILED = 1
_MISUSED = 2
_INTERRUPTED = 130

app = typer.Typer(
    name="metalscribe",
    help="A private, API-keyed speech-to-text service on your own GPU.",
    no_args_is_help=True,
    rich_markup_mode=None,  # plain text that can be searched, and brackets that stay
    # A traceback is for bugs alone, and then whole and without the values of variables, which may be secrets.
    pretty_exceptions_enable=False,
)
app.command()(transcribe.transcribe)
app.command()(submit.submit)
app.command()(usage.usage)
app.command()(backup.backup)
app.command()(backup.restore)
app.command()(config.config)
app.command()(doctor.doctor)
app.add_typer(jobs.app, name="jobs")
app.add_typer(keys.app, name="keys")
app.add_typer(model.app, name="model")
app.add_typer(tune.app, name="bench")


@app.command()
def serve(
    *,
    host: Annotated[str | None, typer.Option(help="Address to listen on, in place of METALSCRIBE_HOST.")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="TCP port, in place of METALSCRIBE_PORT; 0 picks a free one.")
    ] = None,
) -> None:
    """Run the HTTP service until it is told to stop."""
    from metalscribe.cli.serve import serve as run  # noqa: PLC0415

    run(host, port)


@app.command()
def demo() -> None:
    """Run the whole service once, and show how to go on."""
    from metalscribe.cli.demo import demo as run  # noqa: PLC0415

    run()


def main() -> None:
    """Run the command line and exit; an expected failure is one line on stderr."""
    # ONNX Runtime, which finds the speech, otherwise reports to its maker about the models it loads (its Privacy.md). Set
    # here, before anything loads it, and for every process that this one starts.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    try:
        app()
    except MetalscribeError as error:
        complain(_explained(error))
        sys.exit(_MISUSED if isinstance(error, ConfigurationError | InvalidParameter) else _FAILED)
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)


def _explained(error: MetalscribeError) -> str:
    parameter = error.parameter if isinstance(error, InvalidParameter) else None
    if parameter is None or parameter in error.detail:
        return error.detail
    return f"--{parameter.replace('_', '-')}: {error.detail}"


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version  # noqa: PLC0415

        typer.echo(f"metalscribe {version('metalscribe')}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    *,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show on stderr what happens inside.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    del version
    if context.invoked_subcommand != "serve":  # which logs as its settings say
        from metalscribe.log import configure_logging  # noqa: PLC0415

        configure_logging("info" if verbose else "warning")
