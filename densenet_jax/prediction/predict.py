"""Predictions for image files: for each file the most likely classes, its labels, or numbers."""

import concurrent.futures
import dataclasses
import functools
import glob
import itertools
import os
import pathlib
import sys
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from PIL import Image

from densenet_jax.data.augment import device
from densenet_jax.data.reading import host
from densenet_jax.data.reading.files import read_file
from densenet_jax.data.reading.limits import MAX_FILE_BYTES
from densenet_jax.data.sources import imagenet_classes
from densenet_jax.data.sources.folders import IMAGE_SUFFIXES
from densenet_jax.report import activation_maps, pictures
from densenet_jax.scores.conformal import Conformal
from densenet_jax.tasks.outputs import SOFTMAX, Outputs
from densenet_jax.weights.published import Preprocessing

STDIN = "-"
OVERLAY_SIDE = 224  # small images are enlarged to about this height and width in pixels
READERS = 8  # threads that read and decode files


class PredictError(ValueError):
    """No image can be predicted.

    A single file that cannot be read does not raise this error: its `Answer` has an `error`.
    """


@dataclasses.dataclass(frozen=True)
class Answer:
    """The prediction for one image, or the reason why there is none.

    Attributes:
      path: of the file, as it was given or found.
      classes: numbers of the classes, likeliest first; of several labels, those that are predicted,
        likeliest first, or all that were asked for; of regression, all numbers in order. Empty if
        there is an error.
      labels: their names.
      values: their probabilities, from 0 to 1; of regression, the numbers.
      image: the cropped image that the model saw, as uint8 [H, W, 1 or 3]; None if there is an
        error.
      overlay: path of the image with its class activation map; None if none was requested.
      error: why the image could not be predicted; None if it could.
      present: of several labels, whether each is predicted.
      outputs: what the model's outputs mean.
    """

    path: str
    classes: tuple[int, ...] = ()
    labels: tuple[str, ...] = ()
    values: tuple[float, ...] = ()
    image: np.ndarray | None = None
    overlay: str | None = None
    error: str | None = None
    present: tuple[bool, ...] = ()
    outputs: Outputs = SOFTMAX

    @property
    def probabilities(self) -> tuple[float, ...]:
        """Another name of `values`, which are probabilities unless the task is regression."""
        return self.values


def predict(
    model: nn.Module,
    variables: Any,
    preprocessing: Preprocessing,
    class_names: Sequence[str] | None,
    paths: Sequence[str],
    *,
    outputs: Outputs = SOFTMAX,
    top: int | None = None,
    conformal: Conformal | None = None,
    batch_size: int = 32,
    cam: str | os.PathLike[str] | None = None,
    block: str = "final",
) -> Iterator[Answer]:
    """Yields an answer for each image, in order, as soon as its batch is computed.

    Args:
      model: a classifier, as `load_pretrained` returns it.
      variables: {"params": ..., "batch_stats": ...} of the model.
      preprocessing: image size, crop, interpolation, mean and std that the model expects.
      class_names: in label order; None: ImageNet's names for 1,000 classes, otherwise "class 0",
        "class 1", ...
      paths: files, folders (all images below them), glob patterns, file:// URLs, or "-" for
        standard input.
      outputs: what the model's outputs mean.
      top: number of classes in an answer, however (un)likely; None: of classification 5, of several
        labels those from their threshold on, of regression all.
      conformal: of classification, answers with all classes that it does not rule out.
      batch_size: number of images that are computed together.
      cam: a folder for overlays of class activation maps; None: no overlays.
      block: the block whose feature maps the overlays explain, see `activation_maps.grad_cam`.

    Raises:
      PredictError: there are no paths, the model has no classifier or no such block, the number of
        class names differs from the number of classes, or the folder `cam` cannot be written.
    """
    names = _names(model, class_names)
    if not paths:
        raise PredictError(
            "predict needs images: files, folders, globs, file:// URLs, or - for standard input."
        )
    overlays = None if cam is None else Overlays(cam)
    return _answers(
        functools.partial(_outputs, model, preprocessing, outputs),
        Choice(names, outputs, top, conformal),
        functools.partial(_maps, model, preprocessing, block),
        variables,
        _pixels(paths, preprocessing, model.in_channels),
        batch_size,
        overlays,
        functools.partial(pictures.shown, ends=preprocessing.ends),
    )


def _names(model: nn.Module, class_names: Sequence[str] | None) -> Sequence[str]:
    """Returns the readable names of a model's classes; see `predict`."""
    count = model.num_classes
    if not count:
        raise PredictError(
            "The model has no classifier (num_classes is 0); load it with a classifier to predict."
        )
    if class_names is None:
        return imagenet_classes.names() if count == 1000 else [f"class {i}" for i in range(count)]
    if len(class_names) != count:
        raise PredictError(
            f"The model has {count} classes, but there are {len(class_names)} names; give one name "
            "for each class."
        )
    return imagenet_classes.readable(class_names)


def _answers(
    compute: Callable[..., jax.Array],
    choice: "Choice",
    maps: Callable[..., jax.Array],
    variables: Any,
    pixels: Iterator[tuple[str, np.ndarray | str]],
    batch_size: int,
    overlays: "Overlays | None",
    shown: Callable[[np.ndarray], np.ndarray],
) -> Iterator[Answer]:
    """Yields an answer for each image.

    Args:
      compute: maps (variables, images [B, H, W, C]) to probabilities or numbers [B, C].
      choice: what an answer says of them.
      maps: maps (variables, images, classes [B]) to class activation maps [B, h, w].
      variables: of the model.
      pixels: (path, [H, W, C] or an error) of each image.
      batch_size: number of images that are computed together.
      overlays: writes overlays; None: no overlays.
      shown: maps an image that the model saw to one that people see, uint8 [H, W, 1 or 3].
    """
    size = 0
    while chunk := list(itertools.islice(pixels, batch_size)):
        # A shorter last batch is padded, so that one compiled program serves all batches.
        size = size or len(chunk)
        found = [(k, image) for k, (_, image) in enumerate(chunk) if not isinstance(image, str)]
        rows = {}
        if found:
            images = np.stack([image for _, image in found])
            filled = np.pad(images, [(0, size - len(images)), (0, 0), (0, 0), (0, 0)])
            values = np.asarray(compute(variables, filled))
            heat = None
            if overlays is not None:
                heat = np.asarray(maps(variables, filled, values.argmax(axis=1)))
            for row, (k, _) in enumerate(found):
                rows[k] = values[row], None if heat is None else heat[row]
        for k, (path, image) in enumerate(chunk):
            if isinstance(image, str):
                yield Answer(path, error=image)
                continue
            image = shown(image)
            values, spot = rows[k]
            answer = choice.answer(path, values)
            overlay = None
            if overlays is not None and spot is not None and answer.error is None:
                overlay = overlays.write(path, image, spot)
            yield dataclasses.replace(answer, image=image, overlay=overlay)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _outputs(
    model: nn.Module,
    preprocessing: Preprocessing,
    outputs: Outputs,
    variables: Any,
    images: jax.Array,
) -> jax.Array:
    """Returns the probabilities or numbers of images, [B, C]."""
    logits: Any = model.apply(variables, _normalized(model, preprocessing, images))
    return outputs(logits)


@dataclasses.dataclass(frozen=True)
class Choice:
    """What an answer says of the values of an image.

    Attributes:
      names: of the classes, in label order.
      outputs: what the values mean.
      top, conformal: see `predict`.
    """

    names: Sequence[str]
    outputs: Outputs
    top: int | None = None
    conformal: Conformal | None = None

    def answer(self, path: str, values: np.ndarray) -> Answer:
        """Returns the answer for an image whose values are float [C]."""
        if not np.isfinite(values).all():
            return Answer(path, error="the network's outputs are not finite")
        task = self.outputs.task
        several = task == "multilabel"
        ranked = np.argsort(-values, kind="stable")
        order = np.arange(len(values)) if task == "regression" else ranked
        above = values >= np.asarray(self.outputs.thresholds or 0.5)
        if self.conformal is not None:
            order = order[self.conformal.sets(values[None])[0][order]]
        elif self.top is not None or not several:
            default = 5 if task == "classification" else len(values)
            order = order[: default if self.top is None else self.top]
        else:
            order = order[above[order]]
        return Answer(
            path,
            tuple(order.tolist()),
            tuple(self.names[i] for i in order),
            tuple(values[order].tolist()),
            present=tuple(above[order].tolist()) if several else (),
            outputs=self.outputs,
        )


def _maps(
    model: nn.Module,
    preprocessing: Preprocessing,
    block: str,
    variables: Any,
    images: jax.Array,
    classes: jax.Array,
) -> jax.Array:
    """Returns class activation maps [B, h, w]: exact ones if the model allows, else Grad-CAM."""
    images = _normalized(model, preprocessing, images)
    if block == "final" and activation_maps.has_linear_head(model):
        return activation_maps.cam(model, variables, images, classes)
    try:
        return activation_maps.grad_cam(model, variables, images, classes, block)
    except ValueError as e:
        raise PredictError(str(e)) from None


def _normalized(model: nn.Module, preprocessing: Preprocessing, images: jax.Array) -> jax.Array:
    """Returns images [B, H, W, C] as the model takes them."""
    given = preprocessing
    return device.normalize(images, given.mean, given.std, model.dtype, given.ends)


class Overlays:
    """Writes overlays into a folder, each to a file of its own.

    Raises:
      PredictError: the folder or a file in it cannot be written.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self.folder = pathlib.Path(folder)
        self._written: set[str] = set()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise PredictError(f"The folder {folder} cannot be created: {e.strerror}.") from None

    def write(self, path: str, image: np.ndarray, heat: np.ndarray) -> str:
        """Writes an overlay and returns the path of its file.

        Args:
          path: of the image; the overlay has the same name, with a number if that is taken.
          image: uint8 [H, W, C].
          heat: class activation map [h, w].
        """
        stem = "stdin" if path == STDIN else pathlib.PurePath(path).stem
        numbered = (f"{stem}-{i}" for i in itertools.count(2))
        name = next(n for n in itertools.chain([stem], numbered) if n not in self._written)
        self._written.add(name)
        file = self.folder / f"{name}.png"
        shown = pictures.overlay(pictures.enlarged(image, OVERLAY_SIDE), heat)
        try:
            Image.fromarray(shown).save(file)
        except OSError as e:
            raise PredictError(f"The overlay {file} cannot be written: {e.strerror}.") from None
        return str(file)


def _pixels(
    paths: Iterable[str], preprocessing: Preprocessing, channels: int
) -> Iterator[tuple[str, np.ndarray | str]]:
    """Yields (path, cropped image [H, W, C] or an error), reading some files ahead."""

    def load(found: tuple[str, str | None]) -> tuple[str, np.ndarray | str]:
        path, error = found
        if error:
            return path, error
        try:
            return path, host.eval_crop(
                _read(path), channels=channels, narrow=True, **preprocessing.reading
            )
        except host.ImageError as e:
            return path, str(e)
        except OSError as e:
            return path, e.strerror or str(e)

    with concurrent.futures.ThreadPoolExecutor(READERS) as pool:
        files = find(paths)
        while some := list(itertools.islice(files, 4 * READERS)):
            yield from pool.map(load, some)


def _read(path: str) -> bytes:
    """Returns the content of a file, or of standard input for "-".

    Raises:
      ImageError: it is not a regular file, or has more than `MAX_FILE_BYTES`.
    """
    if path != STDIN:
        return read_file(path)
    content = sys.stdin.buffer.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise host.ImageError(f"more than {MAX_FILE_BYTES:,} bytes are too many for an image")
    return content


def find(paths: Iterable[str]) -> Iterator[tuple[str, str | None]]:
    """Yields (file, None) for each image file that the paths name, or (path, error).

    Args:
      paths: see `predict`.
    """
    for given in paths:
        path = given
        if "://" in given:
            url = urllib.parse.urlsplit(given)
            if url.scheme != "file" or url.netloc not in ("", "localhost"):
                yield (
                    given,
                    "only file:// URLs of this machine can be read; download the file first",
                )
                continue
            path = urllib.request.url2pathname(url.path)
        elif given != STDIN:
            path = os.path.expanduser(given)
        if path == STDIN or os.path.isfile(path):
            yield path, None
        elif os.path.isdir(path):
            yield from _below(path)
        elif glob.has_magic(path):
            matches = [p for p in sorted(glob.glob(path, recursive=True)) if os.path.isfile(p)]
            for match in matches:
                yield match, None
            if not matches:
                yield given, "no file matches"
        else:
            yield given, "there is no such file"


def _below(folder: str) -> Iterator[tuple[str, str | None]]:
    """Yields (file, None) or (path, error) for the images below a folder, sorted by name."""
    found = False
    refused: list[OSError] = []
    for parent, folders, files in os.walk(folder, onerror=refused.append):
        folders.sort()
        for name in sorted(files):
            if name.lower().endswith(IMAGE_SUFFIXES) and name[0] != ".":
                found, path = True, os.path.join(parent, name)
                # Reading a pipe or a device could block or continue for ever.
                special = os.path.exists(path) and not os.path.isfile(path)
                yield path, "it is not a regular file" if special else None
    for error in refused:
        yield error.filename, error.strerror
    if not found and not refused:
        yield folder, f"the folder has no images ({', '.join(IMAGE_SUFFIXES)})"
