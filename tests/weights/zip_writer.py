"""Writes NumPy's archives, including members and headers that NumPy never writes."""

import io
import struct
import zipfile

import numpy as np


def npy(array, header=None):
    buffer = io.BytesIO()
    np.save(buffer, array)
    data = buffer.getvalue()
    if header is not None:
        data = data[:8] + struct.pack("<H", len(header)) + header + data[128:]
    return data


def npz(members, compression=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()
