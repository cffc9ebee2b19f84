"""DICOM, with pydicom (an extra): rescaled, windowed, and with black as 0."""

import io
from typing import Any

import numpy as np

from densenet_jax.data.reading.limits import ImageError, check_size

DEFLATED = "1.2.840.10008.1.2.1.99"  # a transfer syntax that inflates the whole file before parsing


def is_dicom(data: bytes) -> bool:
    """Returns whether data begin as a DICOM file does."""
    return data[128:132] == b"DICM"


def decode(data: bytes) -> np.ndarray:
    """Returns the first frame of a DICOM file: uint16 [H, W, 1], or uint8 [H, W, 3] for colours.

    Grey values are rescaled and windowed as the file says, 0 and 65,535 being the ends of the
    window; without a window they are the ends of the values that the stored bits can have.

    Raises:
      ImageError: pydicom is not installed, or the file has no readable image.
    """
    try:
        import pydicom
        from pydicom import pixels
    except ImportError:
        raise ImageError('a DICOM file needs pydicom: pip install "densenet-jax[dicom]"') from None
    try:
        if DEFLATED.encode() in data[:4096]:
            raise ImageError("a deflated DICOM file is not read; store it uncompressed")
        file = pydicom.dcmread(io.BytesIO(data))
        samples, wide = int(file.get("SamplesPerPixel", 1)), int(file.BitsAllocated) // 8
        check_size(int(file.Rows), int(file.Columns), len(data), samples * (2 * wide + 16))
        frame = pixels.pixel_array(file, index=0)
        return frame if samples == 3 else _grey(pixels, file, frame)
    except ImageError:
        raise
    except Exception as e:  # for a damaged file, almost any exception
        raise ImageError(f"not a readable image: the DICOM file is damaged: {e}") from e


def _grey(pixels: Any, file: Any, frame: np.ndarray) -> np.ndarray:
    """Returns a frame of stored values, [H, W], as uint16 [H, W, 1]."""
    stored, signed = int(file.BitsStored), int(file.get("PixelRepresentation", 0))
    ends = np.array([0, 2**stored - 1]) - (2 ** (stored - 1) if signed else 0)
    values = pixels.apply_rescale(frame, file).astype(np.float64)
    low, high = pixels.apply_rescale(ends, file).astype(np.float64)
    if file.get("WindowCenter") is not None or "VOILUTSequence" in file:
        low, high = _window(file, low, high)
    shown = ((values - low) / max(high - low, 1e-12)).clip(0, 1)
    if file.get("PhotometricInterpretation") == "MONOCHROME1":
        shown = 1 - shown
    return (shown * 65535).round().astype(np.uint16)[..., None]


def _window(file: Any, low: float, high: float) -> tuple[float, float]:
    """Returns the ends of a file's first window (DICOM PS3.3 C.11.2.1.2); else the given ones."""
    centre, width = (np.ravel(file.get(key, ())) for key in ("WindowCenter", "WindowWidth"))
    if not (len(centre) and len(width)):
        return low, high
    middle, half = float(centre[0]) - 0.5, (float(width[0]) - 1) / 2
    return middle - half, middle + half
