"""The table of published weights, with the preprocessing and accuracy of each.

A name is `model.tag`, as in timm. Accuracies are in per cent on the validation split of
ImageNet-1k, as measured by timm at the image sizes given here.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

WEIGHTS_FILE = "model.safetensors"


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the input of a network.

    Attributes:
      image_size: height and width of the input, in pixels.
      crop_fraction: fraction of the resized image that the central crop keeps along each axis.
      interpolation: "bicubic" or "bilinear", both with antialiasing.
      mean: mean of each channel, for images in the range [0, 1].
      std: standard deviation of each channel, for images in the range [0, 1].
      fit: what is shown of an image that is not square: "crop", its centre; "squash", all of it,
        distorted; "pad", all of it, with bands of the mean beside it.
      dtype: type of the pixels: "uint8", "uint16" or "float32".
      value_range: the pixel values that become 0 and 1; (): the ends of the type.
      exif: whether images are turned upright as their EXIF data say.
    """

    image_size: int = 224
    crop_fraction: float = 0.875
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    fit: str = "crop"
    dtype: str = "uint8"
    value_range: tuple[float, ...] = ()
    exif: bool = False

    @property
    def ends(self) -> tuple[float, float]:
        """The pixel values that become 0 and 1."""
        if self.value_range:
            return self.value_range[0], self.value_range[1]
        return 0.0, {"uint8": 255.0, "uint16": 65535.0}.get(self.dtype, 1.0)

    @property
    def reading(self) -> dict[str, Any]:
        """The arguments of `host.eval_crop`, without the number of channels."""
        low, high = self.ends
        fill = tuple(low + mean * (high - low) for mean in self.mean)  # becomes 0
        keys = ("image_size", "crop_fraction", "interpolation", "fit", "dtype", "exif")
        return {key: getattr(self, key) for key in keys} | {"fill": fill}

    def for_channels(self, channels: int) -> "Preprocessing":
        """Returns the preprocessing of images with another number of channels.

        As in timm, every channel then has the mean of the known means and of the known deviations.
        """
        if len(self.mean) == len(self.std) == channels:
            return self
        mean, std = (sum(x) / len(x) for x in (self.mean, self.std))
        return dataclasses.replace(self, mean=(mean,) * channels, std=(std,) * channels)


IMAGENET = Preprocessing()


@dataclass(frozen=True)
class Accuracy:
    """Top-1 and top-5 accuracy of one evaluation, in per cent; None: not published."""

    top1: float
    top5: float | None = None


@dataclass(frozen=True)
class Published:
    """Published weights on the Hugging Face hub.

    Attributes:
      repository: `owner/name` on the hub; its weight file is `WEIGHTS_FILE`.
      accuracy: accuracy with `preprocessing`.
      preprocessing: preprocessing at the image size of training.
      larger: (preprocessing, accuracy) at a larger image size, at which the weights are more
        accurate; None: unknown.
      licence: licence that the configuration file of the weights states.
    """

    repository: str
    accuracy: Accuracy
    preprocessing: Preprocessing = IMAGENET
    larger: tuple[Preprocessing, Accuracy] | None = None
    licence: str = "apache-2.0"


def _timm(name: str, top1: float, top5: float, at_288: Accuracy | None = None) -> Published:
    at_size_288 = Preprocessing(image_size=288, crop_fraction=0.95)
    larger = None if at_288 is None else (at_size_288, at_288)
    return Published(f"timm/{name}", Accuracy(top1, top5), larger=larger)


def _naver(name: str, top1: float, size: int = 224, crop: float = 0.9) -> Published:
    return Published(f"naver-ai/{name}", Accuracy(top1), Preprocessing(size, crop))


# The name of a variant stands for its first row.
PUBLISHED: dict[str, Published] = {
    "densenet121.ra_in1k": _timm("densenet121.ra_in1k", 75.57, 92.65, Accuracy(76.49, 93.38)),
    "densenet121.tv_in1k": _timm("densenet121.tv_in1k", 74.75, 92.16),
    "densenet161.tv_in1k": _timm("densenet161.tv_in1k", 77.38, 93.66),
    "densenet169.tv_in1k": _timm("densenet169.tv_in1k", 75.92, 92.98),
    "densenet201.tv_in1k": _timm("densenet201.tv_in1k", 77.28, 93.48),
    "densenetblur121d.ra_in1k": _timm(
        "densenetblur121d.ra_in1k", 76.57, 93.19, Accuracy(77.32, 93.80)
    ),
    "rdnet_tiny.nv_in1k": _naver("rdnet_tiny.nv_in1k", 82.81),
    "rdnet_small.nv_in1k": _naver("rdnet_small.nv_in1k", 83.66),
    "rdnet_base.nv_in1k": _naver("rdnet_base.nv_in1k", 84.37),
    "rdnet_large.nv_in1k": _naver("rdnet_large.nv_in1k", 84.79),
    "rdnet_large.nv_in1k_ft_in1k_384": _naver(
        "rdnet_large.nv_in1k_ft_in1k_384", 85.84, size=384, crop=1.0
    ),
}


def model_of(name: str) -> str:
    """Returns the variant of published weights, which is the name without its tag."""
    return name.partition(".")[0]


def of_model(model: str) -> dict[str, Published]:
    """Returns {name: published weights} of a variant."""
    return {name: row for name, row in PUBLISHED.items() if model_of(name) == model}
