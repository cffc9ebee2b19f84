"""Scripts with which a shell completes commands, flags, configurations and keys."""

from densenet_jax.cli import config_files
from densenet_jax.cli.table import COMMANDS, FLAGS
from densenet_jax.configs import default

PROGRAM = "densenet-jax"  # the installed command
SHELLS = ("bash", "zsh", "fish")

# Bash divides words at "=", so that a value is a word of its own, two after its flag.
_BASH = """\
_densenet_jax() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" flag="" words="{words}"
  if [[ "$word" == "=" ]]; then flag="${{COMP_WORDS[COMP_CWORD-1]}}"; word=""
  elif [[ "${{COMP_WORDS[COMP_CWORD-1]}}" == "=" ]]; then flag="${{COMP_WORDS[COMP_CWORD-2]}}"; fi
  case "$flag" in
    "") ;;
    --config) words="{configurations}" ;;
{values}    *) words="" ;;
  esac
  COMPREPLY=($(compgen -W "$words" -- "$word") $(compgen -f -- "$word"))
  [[ "${{COMPREPLY[0]}}" == *= ]] && compopt -o nospace
  return 0
}}
complete -o filenames -F _densenet_jax {program}"""
_ZSH = "autoload -U +X bashcompinit && bashcompinit\nautoload -U +X compinit && compinit -u\n"


def script(shell: str) -> str:
    """Returns the script for a shell of `SHELLS`."""
    flags = ["--workdir=", "--config=", "--help", "--version"]
    flags += [f"--{name}=" if flag.value else f"--{name}" for name, flag in FLAGS.items()]
    flags += [f"--config.{option.key}=" for option in default.OPTIONS]
    configurations = [f"configs/{name}.py" for name in config_files.names()]
    values = {
        f"--{name}": choices
        for name, flag in FLAGS.items()
        if (choices := sorted({c for some in flag.choices.values() for c in some}))
    }
    if shell == "fish":
        lines = [f"complete -c {PROGRAM} -n __fish_use_subcommand -a '{' '.join(COMMANDS)}'"]
        lines += [f"complete -c {PROGRAM} -a '{' '.join(flags)}'"]
        lines += [f"complete -c {PROGRAM} -a '{' '.join('--config=' + c for c in configurations)}'"]
        lines += [
            f"complete -c {PROGRAM} -a '{' '.join(f'{flag}={c}' for c in choices)}'"
            for flag, choices in values.items()
        ]
        return "\n".join(lines)
    bash = _BASH.format(
        program=PROGRAM,
        words=" ".join([*COMMANDS, *flags]),
        configurations=" ".join(configurations),
        values="".join(f'    {flag}) words="{" ".join(c)}" ;;\n' for flag, c in values.items()),
    )
    return (_ZSH if shell == "zsh" else "") + bash
