"""The versions of ONNX's operators that can be written, known without the package onnx."""

OPSETS = range(11, 24)
OPSET = 17  # the default, which ONNX Runtime 1.12 (2022) and later support
