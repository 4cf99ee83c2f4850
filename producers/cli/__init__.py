"""The `headrace` command: data on stdout, talk on stderr; exit 0 done, 1 some work failed, 2 usage or settings,
3 a server cannot be reached."""

from __future__ import annotations

import os
import sys
from importlib import metadata
from pathlib import Path
from typing import ClassVar

import click

from producers.cli.context import SOME_FAILED, UNREACHABLE, USAGE, State, json_option
from workers.errors import HeadraceError, ServerUnavailable, SettingsError


class LazyGroup(click.Group):
    """Commands in modules that are imported when they are asked for: `headrace --help` stays quick."""

    modules: ClassVar[dict[str, tuple[str, str]]] = {
        "telemetry": ("telemetry", "telemetry"),
        "products": ("products", "products"),
        "postprocessing": ("postprocessing", "postprocessing"),
        "dispatch": ("dispatch", "dispatch"),
        "repack": ("repack", "repack"),
        "up": ("services", "up"),
        "down": ("services", "down"),
        "demo": ("demo", "demo"),
        "worker": ("services", "worker"),
        "beat": ("services", "beat"),
        "flower": ("services", "flower"),
        "status": ("status", "status"),
        "runs": ("history", "runs"),
        "retry": ("history", "retry"),
        "cancel": ("history", "cancel"),
        "db": ("db", "db"),
        "validate": ("db", "validate"),
        "pause": ("hosts", "pause"),
        "resume": ("hosts", "resume"),
        "drain": ("hosts", "drain"),
        "hosts": ("hosts", "hosts"),
    }

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.modules)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.modules:
            return None
        module, name = self.modules[cmd_name]
        imported = __import__(f"producers.cli.{module}", fromlist=[name])
        command: click.Command = getattr(imported, name)
        return command


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(metadata.version("headrace"), prog_name="headrace")
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    help="Settings file (default: $HEADRACE_CONFIG, ./headrace.yaml, /etc/headrace/headrace.yaml).",
)
@json_option
@click.pass_context
def cli(ctx: click.Context, config: Path | None) -> None:
    """The task queue that feeds an instrument's archive."""
    ctx.ensure_object(State).config = config
    if config is not None:
        # Processes that this command starts, and the Celery application, read the same file.
        os.environ["HEADRACE_CONFIG"] = str(config.absolute())


def main() -> None:
    """Run the command and turn every error into one clear line and the documented exit code."""
    try:
        result = cli.main(standalone_mode=False)
        code = result if isinstance(result, int) else 0
    except click.exceptions.Abort:
        click.echo("interrupted", err=True)
        code = 130
    except click.ClickException as error:
        error.show()
        code = USAGE
    except SettingsError as error:
        for problem in error.problems:
            click.echo(f"headrace: {problem}", err=True)
        code = USAGE
    except ServerUnavailable as error:
        click.echo(f"headrace: {error}", err=True)
        code = UNREACHABLE
    except HeadraceError as error:
        click.echo(f"headrace: {error}", err=True)
        code = SOME_FAILED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = SOME_FAILED
    sys.exit(code)
