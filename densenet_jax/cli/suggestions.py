"""Suggestions for flags of other tools, and for misspelt flags, keys, commands and files."""

import difflib
from collections.abc import Iterable

from densenet_jax.configs import default

# Flags that people know from other training programs -> what they are called here.
FAMILIAR = {
    "epochs": "--config.total_epochs=N",
    "steps": "--config.total_steps=N",
    "lr": "--config.optimizer.learning_rate=X",
    "b": "--config.batch_size=N",
    "opt": "--config.optimizer.name=NAME",
    "optim": "--config.optimizer.name=NAME",
    "wd": "--config.optimizer.weight_decay=X",
    "sched": "--config.optimizer.schedule=NAME",
    "scheduler": "--config.optimizer.schedule=NAME",
    "warmup_epochs": "--config.optimizer.warmup='N epochs'",
    "arch": "--config.model.name=NAME",
    "pretrained": "--config.init_from=densenet121.ra_in1k (or a file)",
    "initial_checkpoint": "--config.init_from=FILE",
    "resume": "--workdir=DIR of the run, which then continues by itself",
    "out": "--workdir=DIR",
    "output_dir": "--workdir=DIR",
    "ckpt_save_dir": "--workdir=DIR",
    "data": "--config.data.data_dir=DIR",
    "data_path": "--config.data.data_dir=DIR",
    "dataset": "--config.data.name=NAME",
    "dataset_download": "python -m densenet_jax.data.prepare",
    "img_size": "--config.data.image_size=N",
    "input_size": "--config.data.image_size=N",
    "size": "--config.data.image_size=N",
    "num_workers": "--config.data.workers=N",
    "num_parallel_workers": "--config.data.workers=N",
    "j": "--config.data.workers=N",
    "amp": "--config.model.dtype=auto",
    "precision": "--config.model.dtype=auto",
    "smoothing": "--config.label_smoothing=X",
    "mixup": "--config.augment.mixup=X",
    "cutmix": "--config.augment.cutmix=X",
    "drop": "--config.model.dropout_rate=X",
    "drop_rate": "--config.model.dropout_rate=X",
    "drop_path": "--config.model.drop_path_rate=X",
    "clip_grad": "--config.optimizer.clip_norm=X",
    "accumulate": "--config.optimizer.accumulate=N",
    "grad_accum_steps": "--config.optimizer.accumulate=N",
    "ema": "--config.ema_decay=0.9999",
    "model_ema": "--config.ema_decay=0.9999",
    "num_classes": "--config.model.num_classes=N (by default the number of classes in the data)",
    "patience": "--config.early_stopping=N",
    "gpus": "--config.mesh.data=N (all are used by default)",
    "device": "the variable JAX_PLATFORMS=cpu",
    "tta": "--flip and --crops=5, of the command evaluate",
    "top_k": "--top=N, of the command predict",
}


def flag(name: str, flags: Iterable[str]) -> str:
    """Returns a sentence about a flag that does not exist.

    Args:
      name: as it was typed, without dashes.
      flags: those that exist.
    """
    plain = name.replace("-", "_")
    keys = {option.key.rpartition(".")[2]: option.key for option in default.OPTIONS}
    if plain in FAMILIAR:
        return f"There is no flag --{name}; here it is {FAMILIAR[plain]}."
    if plain in keys:
        return f"There is no flag --{name}; here it is --config.{keys[plain]}=VALUE."
    near = difflib.get_close_matches(plain, [*flags, *keys], n=1, cutoff=0.7)
    named = [f"--config.{keys[word]}" if word in keys else f"--{word}" for word in near]
    hint = f"; did you mean {named[0]}?" if named else "."
    return f"There is no flag --{name}{hint}"


def key(name: str) -> str:
    """Returns a sentence about a key that a configuration does not have.

    Args:
      name: as it was typed, with dots and without `config.`.
    """
    last = name.rpartition(".")[2]
    keys = [option.key for option in default.OPTIONS]
    same = [known for known in keys if known.rpartition(".")[2] == last]
    found = difflib.get_close_matches(name, same or keys, n=1, cutoff=0.0 if same else 0.6)
    text = f"The configuration has no key {name!r}"
    if last in FAMILIAR:
        return f"{text}; here it is {FAMILIAR[last]}."
    return f"{text}; did you mean --config.{found[0]}=VALUE?" if found else f"{text}."


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns "; did you mean X?", or "." if nothing that is known is near."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else "."
