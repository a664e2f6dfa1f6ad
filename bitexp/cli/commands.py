"""The commands by their word. A new one is a module with `main(words) -> exit code`, and a line here."""

from __future__ import annotations

import shutil
from dataclasses import dataclass

from bitexp.common.format import wrapped


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
    "export": Command("bitexp.deploy.export", "outputs/lm_portable --to gguf", "a model for another engine"),
    "evaluate": Command(
        "bitexp.deploy.evaluate",
        "outputs/lm_portable --runtime llama.cpp",
        "does it compute the same?",
    ),
    "import": Command(
        "bitexp.deploy.import_model", "FOLDER --out model.safetensors", "a model of somebody else"
    ),
    "bench": Command(
        "bitexp.bench.command", "[step|layers|models|gpu]", "what a precision costs on this machine"
    ),
    "ptq": Command("bitexp.cli.ptq", "RUN --bits 2,3,4,8", "a trained run in fewer bits"),
    "allocate": Command(
        "bitexp.cli.allocate", "RUN --bits 1.58,2,4,8 --budget size=50%", "which bits for which layer?"
    ),
    "attack": Command("bitexp.deploy.robustness.command", "RUN", "what a flipped bit does"),
    "stack": Command("bitexp.deploy.forms.stack_command", "RUN", "one file that may be cut to any size"),
    "delta": Command("bitexp.deploy.forms.delta_command", "BASE FINE", "a fine-tune as one bit per weight"),
    "claims": Command("bitexp.claims.command", "reloaded", "does a published claim hold here?"),
    "reproduce": Command("bitexp.cli.reproduce", "RUN", "is it the same when it is made again?"),
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


UNTYPED = ("base", "claims", "hydra", "tuning")
"""Groups that other YAML is made of, or that Hydra lists."""


def group_lines() -> str:
    """The groups that are typed with their options as lines of `--help`, broken between words."""
    from hydra.core.global_hydra import GlobalHydra

    loader = GlobalHydra.instance().config_loader()
    listed = []
    for group in sorted(loader.list_groups("")):
        if group not in UNTYPED:
            line = f"{group}: {', '.join(sorted(loader.get_group_options(group)))}"
            listed += wrapped(line, shutil.get_terminal_size((110, 24)).columns, "  ")
    return "\n".join(listed)
