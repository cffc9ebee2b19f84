"""Commands and flags, once: what is parsed, what is passed on, and the page of --help."""

import dataclasses
import textwrap


@dataclasses.dataclass(frozen=True)
class Flag:
    """A flag of some commands.

    Attributes:
      about: for --help.
      value: what stands behind the = in --help; "": the flag is a switch.
      default: the value that a command gets if the flag is absent.
      choices: command -> the values that it takes, its default first; a command that is not there
        takes any.
    """

    about: str
    value: str
    default: str | None = None
    choices: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Command:
    """A command: the function of `commands` with its name, called as f(config, **options).

    The options are its flags, `workdir` (None if absent), `words` if it takes any, and `name`, the
    configuration's, if `needs` is "config".

    Attributes:
      about: for --help.
      needs: "config": a configuration, or the directory of a run, which holds one; "run": such a
        directory; "source": such a directory, or --weights; "": nothing.
      flags: names in `FLAGS`.
      words: what its words are, for --help; "": it takes none.
    """

    about: str
    needs: str
    flags: tuple[str, ...] = ()
    words: str = ""


FLAGS = {
    "sweep": Flag("'KEY=[a,b] KEY=[c,d]': a run for each combination of values", "GRID"),
    "checkpoint": Flag("best (the default), latest, or a step", "WHICH", "best"),
    "weights": Flag("published weights (densenet121.ra_in1k), or a file", "SOURCE"),
    "crops": Flag(
        "views of each image: 1, or 5 (corners and centre)", "N", choices={"evaluate": ("1", "5")}
    ),
    "flip": Flag("also their mirror images; probabilities of all views are averaged", ""),
    "cam": Flag("folder that takes class activation maps, laid over the images", "DIR"),
    "format": Flag(
        "of answers: table, json or csv (--json and --csv for short); of an export: onnx, "
        "stablehlo, safetensors or triton",
        "F",
        choices={
            "predict": ("table", "json", "csv"),
            "export": ("onnx", "stablehlo", "safetensors", "triton"),
        },
    ),
    "output": Flag("the file to write; for an export a folder, or a file like x.onnx", "PATH"),
    "preprocess": Flag("take uint8 pixels and give probabilities: normalisation goes inside", ""),
    "int8": Flag("also a quantised version, with accuracy before and after", ""),
    "calibration": Flag("images for int8, instead of the run's own data", "DIR"),
    "coordinator": Flag(
        "where process 0 listens, if several processes work together and no launcher (mpirun, "
        "srun, Kubernetes, TPU) says so; docs/scaling.md",
        "HOST:PORT",
    ),
    "num_processes": Flag("how many they are", "N"),
    "process_id": Flag("which of them this is, from 0", "I"),
}

# Of a process among several; a launcher's variables say the same (`training.launchers`).
PROCESS_FLAGS = ("coordinator", "num_processes", "process_id")

COMMANDS = {
    "train": Command(
        "(the default) train, evaluate, checkpoint; started again with the same --workdir it "
        "resumes at the last checkpoint",
        needs="config",
        flags=("sweep", *PROCESS_FLAGS),
    ),
    "evaluate": Command(
        "top-1, top-5, loss, calibration and the accuracy of every class over every example of the "
        "evaluation split: of a run's checkpoint (--workdir=DIR), or of published weights "
        "(--config=FILE --config.init_from=SOURCE); of ImageNet also with ReaL's labels and on "
        "ImageNet-V2, if they are prepared; --config.data.image_size=N at another resolution",
        needs="config",
        flags=("checkpoint", "crops", "flip", *PROCESS_FLAGS),
    ),
    "predict": Command(
        "top-5 labels with probabilities for image files, folders, globs, file:// URLs, or - for "
        "standard input; from --workdir=DIR or --weights=SOURCE",
        needs="source",
        flags=("checkpoint", "weights", "cam", "format"),
        words="IMAGE...",
    ),
    "report": Command(
        "writes DIR/report.html again, from a finished or a running run; for several "
        "directories a page that compares them",
        needs="run",
        flags=("checkpoint",),
        words="DIR...",
    ),
    "logits": Command(
        "what a teacher (--weights=SOURCE, or the run in --workdir=DIR) says about each training "
        "image of the configuration, as a file for --config.distill.logits",
        needs="config",
        flags=("weights", "output"),
    ),
    "export": Command(
        "a model for elsewhere, with a model card: ONNX, StableHLO, safetensors for timm, or a "
        "model repository for Triton and KServe; from --workdir=DIR or --weights=SOURCE",
        needs="source",
        flags=("checkpoint", "weights", "format", "output", "preprocess", "int8", "calibration"),
    ),
    "benchmark": Command(
        "images/s of the training step, of training with the data, of the input pipeline and of "
        "inference, as shares of what this machine could do at best; memory and compile time; "
        "--config.data.name=synthetic needs no data; --output=FILE.json keeps the figures",
        needs="config",
        flags=("output",),
    ),
    "models": Command("a table of every variant: parameters, multiply-adds, weights", needs=""),
}

# The short form of a flag.
SHORT = {"--json": "--format=json", "--csv": "--format=csv"}

_KEYS = (
    "--config.total_epochs=10, --config.total_steps=100, --config.seed=1, --config.batch_size=128, "
    "--config.optimizer.learning_rate=0.05, --config.data.data_dir=DIR, "
    "--config.model.dtype=bfloat16, --config.init_from=densenet121.ra_in1k (or a file, or a run's "
    "directory)"
)
_HELP = """\
usage: {program} [COMMAND] --config=configs/NAME.py [--workdir=DIR] [--config.key=value ...]

commands
{commands}
flags
{configuration}  --workdir=DIR              the run's directory (default: runs/NAME): config.json,
                             metrics.jsonl, checkpoints/
{flags}
examples
  {program} --config=configs/digits.py --workdir=runs/digits      # a minute, no download
  {program} evaluate --workdir=runs/digits
  {program} predict --workdir=runs/digits --cam=maps my/images/*.png
  {program} predict --weights=densenet121.ra_in1k photo.jpg
  {program} report runs/digits runs/other
  {program} export --workdir=runs/digits --format=onnx --output=exports/digits
  {program} --config=configs/cifar10.py --config.total_epochs=10
  {program} --config=configs/densenet121.py:tiny                  # a look before the long run
  {program} --config=configs/densenet121.py --workdir=runs/121 --config.data.data_dir=DIR
"""


def help_text(program: str, configurations: list[str], defaults: str) -> str:
    """Returns the page of --help.

    Args:
      program: as it was called.
      configurations: the names of those that come with the package.
      defaults: the file that has every key.
    """
    commands = [
        _row(name, f"{c.words}: {c.about}" if c.words else c.about, 13)
        for name, c in COMMANDS.items()
    ]
    flags = []
    for name, flag in FLAGS.items():
        users = ", ".join(c for c in COMMANDS if name in COMMANDS[c].flags)
        written = f"--{name}={flag.value}" if flag.value else f"--{name}"
        flags.append(_row(written, f"{flag.about} ({users})", 29))
    files = (
        "a configuration; each file says what it does and expects: one of yours, or of those that "
        f"come with the package: {', '.join(configurations)}"
    )
    keys = f"another value for one of its keys, see {defaults}: {_KEYS}"
    return _HELP.format(
        program=program,
        configuration=_row("--config=FILE[:ARGUMENT]", files, 29)
        + _row("--config.KEY=VALUE", keys, 29),
        commands="".join(commands),
        flags="".join(flags),
    )


def _row(name: str, about: str, indent: int) -> str:
    first, *others = textwrap.wrap(
        about, 100 - indent, break_on_hyphens=False, break_long_words=False
    )
    lines = [f"  {name}".ljust(indent) + first, *(" " * indent + line for line in others)]
    return "".join(line + "\n" for line in lines)
