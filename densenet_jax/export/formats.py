"""The export formats.  Each writes the model's files, a model card and a JSON spec."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from densenet_jax import atomic_files
from densenet_jax.data.augment import device
from densenet_jax.export import card, stablehlo
from densenet_jax.export.bundle import Bundle, ExportError, need
from densenet_jax.export.onnx.calibration import Calibration
from densenet_jax.export.onnx.opsets import OPSET, OPSETS
from densenet_jax.tasks.by_name import find_task
from densenet_jax.weights import timm_config, to_state_dict, write_safetensors
from densenet_jax.weights.names import unusual

LOADER = pathlib.Path(__file__).parent / "load_stablehlo.py"

# The written files, the model's first, and facts for the card (see `card.render`).
Written = tuple[list[pathlib.Path], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Target:
    """Where an export is written, and under which names.

    For the output `net.onnx` the card is `net.md` and the spec `net.json`; a folder gets
    `model.onnx`, `README.md` and `model.json`.

    Attributes:
      folder: the folder of all files.
      stem: name of the model file and the spec, without suffix.
      card: file name of the model card.
    """

    folder: pathlib.Path
    stem: str = "model"
    card: str = "README.md"

    @classmethod
    def of(cls, output: str | os.PathLike[str], suffix: str) -> "Target":
        """Returns the target for a path and creates its folder.

        Args:
          output: a file if it ends with `suffix`, otherwise a folder.
          suffix: the format's file suffix; "" for formats that are a folder.

        Raises:
          ExportError: `output` is an existing file without the suffix, or the folder cannot be
            created.
        """
        path = pathlib.Path(output)
        target = cls(path)
        if suffix and path.suffix == suffix and not path.is_dir():
            target = cls(path.parent, path.stem, f"{path.stem}.md")
        elif path.is_file():
            name = f", or a file name that ends with {suffix}" if suffix else ""
            raise ExportError(f"{path} is a file; --output takes a folder{name}.")
        try:
            target.folder.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise ExportError(
                f"The folder {target.folder} cannot be created: {e.strerror}."
            ) from None
        return target

    def file(self, suffix: str) -> pathlib.Path:
        """Returns the path of the model's file with a suffix."""
        return self.folder / f"{self.stem}{suffix}"


def export(
    bundle: Bundle,
    format: str,
    output: str | os.PathLike[str],
    *,
    preprocess: bool = False,
    int8: Calibration | None = None,
    dynamic: str = "",
    opset: int | None = None,
) -> list[pathlib.Path]:
    """Writes a model in one of the formats and returns the written files, the model's first.

    Args:
      bundle: the model.
      format: a key of `FORMATS`.
      output: a folder, or a file with the format's suffix.
      preprocess: the exported program maps pixels to probabilities; False: it maps
        normalised float32 images to logits.
      int8: calibration images; if given, a version quantised to int8 is written as well (ONNX and
        Triton only).
      dynamic: "size": height and width of the images may have any size; "": only the batch may.
      opset: the version of ONNX's operators, 11 to 23; None: 17.

    Raises:
      ExportError: the format is unknown or does not support an option, a package is missing, a
        path cannot be written, the weights are not finite, or the exported model's outputs differ
        from JAX's.
    """
    if format not in FORMATS:
        raise ExportError(f"There is no format {format!r}; the formats are {', '.join(FORMATS)}.")
    chosen = FORMATS[format]
    options: dict[str, Any] = {"preprocess": preprocess, "int8": int8}
    options |= {"dynamic": dynamic, "opset": opset}
    if dynamic not in ("", "size"):
        raise ExportError(f"--dynamic={dynamic} must be size, which leaves height and width open.")
    if opset is not None and opset not in OPSETS:
        raise ExportError(
            f"--opset={opset} must be one of {OPSETS[0]} to {OPSETS[-1]}, the versions of ONNX's "
            "operators that can be written."
        )
    if problem := unusual(to_state_dict(bundle.model, bundle.variables)):
        raise ExportError(
            f"The weights cannot be exported: they have {problem}; export an earlier checkpoint, "
            "from before the training diverged."
        )
    for name, value in options.items():
        if value and name not in chosen.takes:
            raise ExportError(
                f"The format {format} does not support --{name}; {_formats_with(name)} support it."
            )
    for package in chosen.packages:
        need(package, "onnx" if package.startswith("onnx") else None)
    target = Target.of(output, chosen.suffix)
    try:
        options = {name: value for name, value in options.items() if name in chosen.takes}
        files, facts = chosen.write(bundle, target, **options)
        spec = target.file(".json")
        facts |= {"spec": spec.name, "preprocess": preprocess}
        details = {"format": format, "preprocess": preprocess, "output": facts.get("output", "")}
        atomic_files.write(spec, json.dumps({**bundle.spec(), **details}, indent=2) + "\n")
        page = target.folder / target.card
        atomic_files.write(page, card.render(bundle, format, **facts))
    except OSError as e:
        raise ExportError(f"{e.filename or target.folder} cannot be written: {e.strerror}.") from e
    return [*files, spec, page]


def _formats_with(option: str) -> str:
    """Returns the names of the formats that support an option, as a list in words."""
    names = [name for name, row in FORMATS.items() if option in row.takes]
    return " and ".join([*filter(None, [", ".join(names[:-1])]), names[-1]])


def _stablehlo(bundle: Bundle, target: Target, *, preprocess: bool, dynamic: str) -> Written:
    exported = stablehlo.to_stablehlo(bundle, preprocess, dynamic_size=dynamic == "size")
    path, loader = target.file(".stablehlo"), target.folder / LOADER.name
    atomic_files.write(path, bytes(exported.serialize()))
    atomic_files.write(loader, LOADER.read_bytes())
    return [path, loader], {
        "file": path.name,
        "platforms": exported.platforms,
        "convention": exported.calling_convention_version,
        "output": bundle.outputs.noun if preprocess and bundle.model.num_classes else "scores",
        "width": exported.out_avals[0].shape[1],
        "smallest": stablehlo.smallest(bundle) if dynamic else 0,
    }


def _onnx(
    bundle: Bundle,
    target: Target,
    *,
    preprocess: bool,
    int8: Calibration | None,
    dynamic: str,
    opset: int | None,
) -> Written:
    path = target.file(".onnx")
    facts = _write_onnx(bundle, path, preprocess, dynamic, opset)
    facts["file"] = path.name
    files = [path]
    if int8 is not None:
        files.append(target.file(".int8.onnx"))
        facts["int8"] = _write_int8(bundle, path, files[-1], preprocess, int8)
    return files, facts


def _triton(
    bundle: Bundle,
    target: Target,
    *,
    preprocess: bool,
    int8: Calibration | None,
    opset: int | None,
) -> Written:
    from densenet_jax.export import triton

    folder = target.folder / bundle.name
    path = folder / "1" / "model.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = _write_onnx(bundle, path, preprocess, "", opset)
    files = [path]
    facts |= {"file": f"{bundle.name}/1/model.onnx", "max_batch": triton.MAX_BATCH}
    facts["queue_ms"] = triton.QUEUE_MICROSECONDS / 1000
    triton.write(folder, bundle.name, bundle, preprocess, facts["width"])
    if int8 is not None:
        name = f"{bundle.name}_int8"
        files.append(target.folder / name / "1" / "model.onnx")
        files[-1].parent.mkdir(parents=True, exist_ok=True)
        facts["int8"] = _write_int8(bundle, path, files[-1], preprocess, int8)
        triton.write(target.folder / name, name, bundle, preprocess, facts["width"])
    return files, facts


def _write_onnx(
    bundle: Bundle, path: pathlib.Path, preprocess: bool, dynamic: str, opset: int | None
) -> dict[str, Any]:
    """Writes an ONNX file, compares it with JAX, and returns facts for the card."""
    from densenet_jax.export.onnx import file as onnx_file

    free, used = dynamic == "size", opset or OPSET
    model = onnx_file.to_onnx(bundle, preprocess, dynamic_size=free, opset=used)
    atomic_files.write(path, model.SerializeToString())
    return {
        "difference": onnx_file.difference(bundle, path, preprocess, dynamic_size=free),
        "opset": used,
        "ir_version": model.ir_version,
        "output": model.graph.output[0].name,
        "width": model.graph.output[0].type.tensor_type.shape.dim[1].dim_value,
        "smallest": int(free),
    }


def _write_int8(
    bundle: Bundle, before: pathlib.Path, after: pathlib.Path, preprocess: bool, given: Calibration
) -> dict[str, Any]:
    """Writes the int8 version of an ONNX file and returns facts for the card.

    Args:
      before: the float32 file.
      after: the int8 file to write.
      preprocess: whether the model takes pixels instead of normalised images.
      given: images to calibrate with and to compare on.
    """
    from densenet_jax.export.onnx import int8

    def prepared(batch: np.ndarray) -> np.ndarray:
        """Returns images [B, H, W, C] as the model takes them."""
        if preprocess:
            return batch
        given = bundle.preprocessing
        images = jnp.asarray(batch)
        return np.asarray(device.normalize(images, given.mean, given.std, np.float32, given.ends))

    int8.quantize(before, after, map(prepared, given.calibration))
    images = map(prepared, given.images)
    outputs = None if preprocess else bundle.outputs
    task = find_task(bundle.outputs.task)
    compared = int8.compare(before, after, list(images), given.labels, task, outputs)
    return {**compared, "calibration": given.about, "on": given.on}


def _safetensors(bundle: Bundle, target: Target) -> Written:
    path = target.file(".safetensors")
    return [path, write_hub_files(bundle, target, path)], {
        "source": str(target.folder),
        "timm": f"local-dir:{target.folder}" if timm_config.fits_timm(bundle.model) else "",
    }


def write_hub_files(bundle: Bundle, target: Target, path: pathlib.Path) -> pathlib.Path:
    """Writes the weights to `path`, and timm's config.json to the folder; returns the latter.

    Raises:
      WeightsError: the weights cannot be written.
    """
    write_safetensors(path, to_state_dict(bundle.model, bundle.variables), {"format": "pt"})
    config = timm_config.to_config(
        bundle.model, bundle.preprocessing, bundle.class_names, bundle.licence, bundle.outputs
    )
    file = target.folder / timm_config.CONFIG_FILE
    atomic_files.write(file, json.dumps(config, indent=2) + "\n")
    return file


class Format(NamedTuple):
    """An export format.

    Attributes:
      suffix: of its file; "" if the format is a folder.
      write: maps (bundle, target, **options) to the written files and the facts for the card (see
        `card.render`).
      takes: names of the options of `export` that it supports.
      packages: required packages that densenet-jax does not install by default: those of an extra,
        and those that JAX needs for the format without depending on them.
    """

    suffix: str
    write: Callable[..., Written]
    takes: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()


_ONNX = ("onnx", "onnxruntime")
FORMATS: dict[str, Format] = {
    "stablehlo": Format(".stablehlo", _stablehlo, ("preprocess", "dynamic"), ("flatbuffers",)),
    "onnx": Format(".onnx", _onnx, ("preprocess", "int8", "dynamic", "opset"), _ONNX),
    "safetensors": Format(".safetensors", _safetensors),
    "triton": Format("", _triton, ("preprocess", "int8", "opset"), _ONNX),
}
