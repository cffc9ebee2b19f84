"""The table of commands and flags, which parsing, calls and --help use."""

import dataclasses
import textwrap


@dataclasses.dataclass(frozen=True)
class Flag:
    """A flag of one or more commands.

    Attributes:
      about: its description in --help.
      value: placeholder of its value in --help, as in --output=PATH; "": the flag is a switch.
      default: the value that a command gets if the flag is absent.
      choices: {command: the allowed values, its default first}; a command that is not listed allows
        all values.
    """

    about: str
    value: str
    default: str | None = None
    choices: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Command:
    """A command, that is, the function of the same name in `commands`.

    The function is called with the configuration and, as keyword arguments, the values of its
    flags; `workdir`, the value of --workdir (None if absent), if `needs` is not empty; `words`, if
    it takes any; and `name`, the configuration's name, if `needs` is "config".

    Attributes:
      about: its description in --help.
      needs: what it works on.  "config": a configuration, or the directory of a run, which contains
        one; "run": the directory of a run; "source": the directory of a run, or --weights; "":
        nothing.
      flags: its flags, names in `FLAGS`.
      words: placeholder of its arguments without dashes in --help; "": it takes none.
      several_runs: whether --workdir may be repeated; the function gets the others as `more`.
    """

    about: str
    needs: str
    flags: tuple[str, ...] = ()
    words: str = ""
    several_runs: bool = False


FLAGS = {
    "sweep": Flag("'KEY=[a,b] KEY=[c,d]': a run for each combination of values", "GRID"),
    "folds": Flag(
        "cross-validation: a run for each of N parts of a folder or table without splits, and a "
        "summary over all",
        "N",
    ),
    "outside": Flag(
        "images of another kind (a folder, or NAME:SPLIT), to measure how well the model tells "
        "them from its own",
        "DATA",
    ),
    "images": Flag(
        "largest number of images to read, or to evaluate under noise and blur (the default is "
        "2000)",
        "N",
        "2000",
    ),
    "block": Flag(
        "the block whose features are written: block1, ... or final (the default)", "B", "final"
    ),
    "checkpoint": Flag(
        "the checkpoint to use: best (the default), latest, or a step", "WHICH", "best"
    ),
    "figures": Flag(
        "folder for figures as SVG and PDF: curves, ROC, confusion, feature reuse, growth", "DIR"
    ),
    "weights": Flag("published weights (densenet121.ra_in1k), or a file of weights", "SOURCE"),
    "model": Flag(
        "the variant that a file of weights belongs to, if its name and tensors do not show it",
        "NAME",
    ),
    "prefix": Flag(
        "the module that holds the network, for a file with several networks, such as student",
        "NAME",
    ),
    "crops": Flag(
        "number of views of each image: 1 (the default), or 5 (the corners and the centre)",
        "N",
        choices={"evaluate": ("1", "5")},
    ),
    "flip": Flag("also evaluates mirror images; the probabilities of all views are averaged", ""),
    "cam": Flag("folder for class activation maps, drawn over the images", "DIR"),
    "format": Flag(
        "format of predictions: table (the default), json or csv (--json and --csv for short); "
        "format of an export: onnx (the default), stablehlo, safetensors or triton",
        "F",
        choices={
            "predict": ("table", "json", "csv"),
            "export": ("onnx", "stablehlo", "safetensors", "triton"),
        },
    ),
    "thresholds": Flag(
        "rule that chooses the thresholds: youden (the default), f1, sensitivity=0.9 or "
        "specificity=0.9",
        "RULE",
    ),
    "coverage": Flag(
        "predicts a set of classes that contains the right one in this share of the cases, for "
        "example 0.9 (needs calibrate); evaluate measures the true share",
        "SHARE",
    ),
    "top": Flag("number of classes or labels to print for each image, or all", "N"),
    "output": Flag(
        "the file to write; for a dossier a folder, for an export a folder or a file such as "
        "x.onnx",
        "PATH",
    ),
    "preprocess": Flag(
        "includes preprocessing: the exported model takes pixels and returns probabilities", ""
    ),
    "int8": Flag("also writes a quantised version, and reports the accuracy before and after", ""),
    "calibration": Flag("folder of images for int8, instead of the run's own data", "DIR"),
    "dynamic": Flag("size: the exported model takes images of any height and width", "WHAT"),
    "opset": Flag("version of ONNX's operators, 11 to 23 (the default is 17)", "N"),
    "coordinator": Flag(
        "address of process 0, for several processes that are started without a launcher (mpirun, "
        "srun, Kubernetes, TPU); see docs/scaling.md",
        "HOST:PORT",
    ),
    "num_processes": Flag("number of processes", "N"),
    "process_id": Flag("number of this process, from 0", "I"),
}

# Flags of a process among several; a launcher sets variables instead (`training.jobs.launchers`).
PROCESS_FLAGS = ("coordinator", "num_processes", "process_id")

COMMANDS = {
    "train": Command(
        "(the default) trains, evaluates and writes checkpoints; with the --workdir of an earlier "
        "run it resumes from the last checkpoint",
        needs="config",
        flags=("sweep", "folds", *PROCESS_FLAGS),
    ),
    "evaluate": Command(
        "measures top-1, top-5, loss, calibration and the accuracy of every class on the "
        "evaluation split, for a run's checkpoint (--workdir=DIR) or for published weights "
        "(--config=FILE --config.init_from=SOURCE); for ImageNet also with ReaL's labels and on "
        "ImageNet-V2, if prepared; --config.data.image_size=N sets another resolution; "
        "--workdir=A --workdir=B averages the predictions of several runs",
        needs="config",
        flags=("checkpoint", "crops", "flip", "outside", "coverage", *PROCESS_FLAGS),
        several_runs=True,
    ),
    "calibrate": Command(
        "scales a run's probabilities so that they agree with observed frequencies, and chooses "
        "the thresholds of several labels, on the evaluation split; evaluate, predict and export "
        "use the result, calibration.json in the run's directory",
        needs="config",
        flags=("checkpoint", "thresholds"),
    ),
    "embed": Command(
        "writes pooled features of every example of both splits to --output=FILE.npz, for a run or "
        "for --config.init_from=SOURCE, and prints the accuracy of nearest neighbours and of a "
        "linear probe on them; with images, writes only their features",
        needs="config",
        flags=("checkpoint", "output", "block"),
        words="[IMAGE...]",
    ),
    "find_lr": Command(
        "trains for 100 steps with a growing learning rate, plots the loss, and suggests a rate",
        needs="config",
    ),
    "predict": Command(
        "prints predictions for image files, folders, globs, file:// URLs, or - for standard "
        "input: the five most likely classes with probabilities, the labels that reach their "
        "thresholds, or numbers; the model is --workdir=DIR or --weights=SOURCE",
        needs="source",
        flags=("checkpoint", "weights", "model", "prefix", "cam", "format", "top", "coverage"),
        words="IMAGE...",
    ),
    "report": Command(
        "writes DIR/report.html again, for a finished or running run; for several directories it "
        "writes a page that compares the runs; --figures=DIR also writes figures for papers",
        needs="run",
        flags=("checkpoint", "figures"),
        words="DIR...",
    ),
    "dossier": Command(
        "writes DIR/dossier: one page and a folder with the data card, scores with intervals, "
        "thresholds, calibration, robustness, a check of the activation maps, failures, and the "
        "commands that repeat the run; people fill in the rest of the checklists CLAIM, TRIPOD+AI "
        "and model cards",
        needs="config",
        flags=("checkpoint", "images", "output"),
    ),
    "statistics": Command(
        "measures mean, standard deviation and percentiles of the training images, and prints the "
        "flags to set",
        needs="config",
        flags=("images",),
    ),
    "logits": Command(
        "writes a teacher's logits of each training image to a file for --config.distill.logits; "
        "the teacher is --weights=SOURCE or the run in --workdir=DIR",
        needs="config",
        flags=("weights", "model", "output"),
    ),
    "export": Command(
        "writes a model in another format, with a model card: ONNX, StableHLO, safetensors for "
        "timm, or a model repository for Triton and KServe; from --workdir=DIR or --weights=SOURCE",
        needs="source",
        flags=(
            *("checkpoint", "weights", "model", "prefix", "format", "output", "preprocess"),
            *("int8", "calibration", "dynamic", "opset"),
        ),
    ),
    "benchmark": Command(
        "measures memory, compile time, and the images/s of the training step, of training with "
        "the data, of the input pipeline and of inference, also as shares of this machine's "
        "limits; --config.data.name=synthetic needs no data; --output=FILE.json saves the figures",
        needs="config",
        flags=("output",),
    ),
    "weights": Command(
        "describes a file of weights: format, naming scheme, network, classifier, problems; "
        "--output=FILE.safetensors converts it to the names of timm; two files are compared",
        needs="",
        flags=("model", "prefix", "output"),
        words="FILE [FILE]",
    ),
    "init": Command(
        "looks at a folder of images or a table and writes a commented configuration for it, ready "
        "to run: classes, groups, sizes, channels, balance, weights, batch and length; "
        "--output=FILE.py, by default named after the data",
        needs="",
        flags=("weights", "output"),
        words="DATA",
    ),
    "completion": Command(
        "prints a script that lets the shell complete commands, flags, configurations and keys: "
        "source <(densenet-jax completion bash)",
        needs="",
        words="bash|zsh|fish",
    ),
    "verify": Command(
        "compares the stages and logits of another implementation (ANSWERS, a .npz file) with this "
        "project's, for the same weights (a file, or formula:MODEL) and built-in images, and names "
        "the first stage that differs and the likely fault; --output=GOLDEN.npz writes the right "
        "stages and logits, --output=FILE.safetensors the weights",
        needs="",
        flags=("model", "prefix", "output"),
        words="WEIGHTS [ANSWERS]",
    ),
    "models": Command(
        "prints a table of all variants: parameters, multiply-adds, published weights", needs=""
    ),
}

# Short form -> the flag that it stands for.
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
  {program} --config=configs/densenet121.py:tiny                  # a short test before the long run
  {program} --config=configs/densenet121.py --workdir=runs/121 --config.data.data_dir=DIR
"""


_HELP_OF_ONE = """\
usage: {program} {command} {needs}{words}[--FLAG ...]

{about}
flags
{flags}"""
_NEEDS = {
    "config": "[--config=configs/NAME.py] [--workdir=DIR] [--config.KEY=VALUE ...] ",
    "source": "--workdir=DIR | --weights=SOURCE ",
    "run": "[--workdir=DIR] ",
    "": "",
}


def help_of(program: str, name: str) -> str:
    """Returns the text of --help of one command.

    Args:
      program: the command as it was called, see `invocation.program`.
      name: of the command.
    """
    command = COMMANDS[name]
    flags = []
    for flag_name in command.flags:
        flag = FLAGS[flag_name]
        written = f"--{flag_name}={flag.value}" if flag.value else f"--{flag_name}"
        flags.append(_row(written, flag.about, 29))
    return _HELP_OF_ONE.format(
        program=program,
        command=name,
        needs=_NEEDS[command.needs],
        words=f"{command.words} " if command.words else "",
        about=_row("", command.about, 2),
        flags="".join(flags) or "  none of its own\n",
    )


def help_text(program: str, configurations: list[str], defaults: str, command: str = "") -> str:
    """Returns the text of --help.

    Args:
      program: the command as it was called, see `invocation.program`.
      configurations: names of the packaged configurations.
      defaults: path of the file that documents every key of the configuration.
      command: whose own text is wanted; "": the text about all.
    """
    if command:
        return help_of(program, command)
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
        "a configuration, described in the file itself: one of your own, or one of the package: "
        f"{', '.join(configurations)}"
    )
    keys = f"sets one of its keys, which {defaults} documents: {_KEYS}"
    return _HELP.format(
        program=program,
        configuration=_row("--config=FILE[:ARGUMENT]", files, 29)
        + _row("--config.KEY=VALUE", keys, 29),
        commands="".join(commands),
        flags="".join(flags),
    )


def _row(name: str, about: str, indent: int) -> str:
    """Returns the lines of a name and its description, which starts at column `indent`."""
    first, *others = textwrap.wrap(
        about, 100 - indent, break_on_hyphens=False, break_long_words=False
    )
    lines = [f"  {name}".ljust(indent) + first, *(" " * indent + line for line in others)]
    return "".join(line + "\n" for line in lines)
