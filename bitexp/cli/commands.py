"""The commands by their word. A new one is a module with `main(words) -> exit code`, and a line here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """Where a command lives, what is typed after its word, and what it is for, in one line each."""

    module: str
    usage: str
    help: str


COMMANDS = {
    "report": Command("bitexp.report.command", "outputs/vit_ternary", "which precision wins, at what cost"),
    "generate": Command(
        "bitexp.deploy.generate", 'outputs/lm_ternary --prompt "def "', "text from a language model"
    ),
    "bench": Command(
        "bitexp.bench.command", "[step|layers|models|gpu]", "what a precision costs on this machine"
    ),
    "dashboard": Command(
        "bitexp.report.dashboard", "--entity NAME", "the comparison as a workspace of wandb"
    ),
}


def is_word(typed: str) -> bool:
    """Whether a first argument names a command: overrides have an equals sign or a prefix, flags a dash."""
    return "=" not in typed and not typed.startswith(("+", "~", "-"))


def command_lines() -> str:
    """The commands as lines of `--help`, between those of the run."""
    starts = {f"python -m bitexp {word} {command.usage}": command.help for word, command in COMMANDS.items()}
    return "\n".join(f"  {start:<67}  {text}" for start, text in starts.items())
