"""`pilotage completion SHELL`: the script that teaches a shell our commands."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from pilotage.cli.errors import USAGE, CommandError


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a shell.

    For example in ~/.bashrc: eval "$(pilotage completion bash)"
    """
    from pilotage.cli.root import PROGRAM, root

    shell_class = get_completion_class(shell)
    if shell_class is None:
        raise CommandError(f"no completion for {shell}", USAGE)
    try:
        script = shell_class(root, {}, PROGRAM, "_PILOTAGE_COMPLETE").source()
    except RuntimeError as error:  # bash: click looks at the installed version
        raise CommandError(f"the completion of {shell} cannot be made: {error}") from error
    print(script)
