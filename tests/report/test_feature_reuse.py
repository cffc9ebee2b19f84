"""Feature reuse (figure 5) and ablation against explicit sums."""

import numpy as np
import pytest

from densenet_jax.report.feature_reuse import ablate, connections, reuse, targets, without

from .conftest import random_variables, tiny_model


def test_means_of_absolute_weights(tiny):
    _, variables = tiny
    matrices = reuse(variables, normalize=False)
    assert [m.shape for m in matrices] == [
        (3, 3),
        (2, 2),
    ]  # rows: input and layers; columns: layers and the reader of the block
    params = variables["params"]
    block = matrices[0]
    second = np.abs(params["denseblock1"]["denselayer2"]["conv1"]["kernel"])
    after = np.abs(params["transition1"]["conv"]["kernel"])
    np.testing.assert_allclose(block[0, 1], second[..., :8, :].mean(), rtol=1e-6)
    np.testing.assert_allclose(block[1, 1], second[..., 8:, :].mean(), rtol=1e-6)
    np.testing.assert_allclose(block[2, 2], after[..., 12:, :].mean(), rtol=1e-6)
    assert np.isnan(block[1, 0])
    assert np.isnan(block[2, 1])
    last = np.abs(params["classifier"]["kernel"])
    np.testing.assert_allclose(matrices[1][1, 1], last[-4:].mean(), rtol=1e-6)


def test_normalised_and_scaled(tiny):
    _, variables = tiny
    assert [np.nanmax(m) for m in reuse(variables)] == [1, 1]
    scale = np.abs(variables["params"]["denseblock1"]["denselayer1"]["norm1"]["scale"])
    kernel = np.abs(variables["params"]["denseblock1"]["denselayer1"]["conv1"]["kernel"])
    found = reuse(variables, scaled=True, normalize=False)[0][0, 0]
    np.testing.assert_allclose(found, (kernel * scale[:, None]).mean(), rtol=1e-6)


def test_plain_layers_have_3x3_kernels():
    variables = random_variables(tiny_model(bottleneck=False))
    assert [m.shape for m in reuse(variables)] == [(3, 3), (2, 2)]
    assert variables["params"]["denseblock1"]["denselayer1"]["conv1"]["kernel"].shape[0] == 3


def test_other_networks_are_refused():
    with pytest.raises(ValueError, match="not the parameters of a DenseNet"):
        reuse({"params": {"stage0": {}}})


def test_a_removed_connection_is_not_read(tiny, images):
    """Without the connection, layer 2 does not depend on layer 1's output."""
    model, variables = tiny
    cut = without(variables, 1, 1, 2)
    kernel = cut["params"]["denseblock1"]["denselayer2"]["conv1"]["kernel"]
    assert np.all(kernel[..., 8:, :] == 0)
    assert np.all(kernel[..., :8, :] != 0)
    assert np.all(variables["params"]["denseblock1"]["denselayer2"]["conv1"]["kernel"] != 0)

    def second_layer(variables, change):
        params = variables["params"]
        block = params["denseblock1"]
        layer = block["denselayer1"]
        changed = {**layer, "conv2": {"kernel": layer["conv2"]["kernel"] + change}}
        params = {**params, "denseblock1": {**block, "denselayer1": changed}}
        maps = model.apply({**variables, "params": params}, images, method="features")["block1"]
        return maps[..., 12:]

    assert np.array_equal(second_layer(cut, 0), second_layer(cut, 1))
    assert not np.allclose(second_layer(variables, 0), second_layer(variables, 1))


def test_ablate_removes_each_connection_once(tiny):
    _, variables = tiny
    every = list(connections(variables["params"]))
    assert len(every) == 6 + 3
    sums = {
        (block, source, target): np.abs(_part(variables, block, source, target)).sum()
        for block, source, target in every
    }

    def score(variables):
        return sum(np.abs(_part(variables, *connection)).sum() for connection in every)

    falls = ablate(score, variables)
    for (block, source, target), total in sums.items():
        np.testing.assert_allclose(falls[block - 1][source, target - 1], total, rtol=1e-3)
    assert np.isnan(falls[0][1, 0])
    some = ablate(score, variables, [(2, 0, 1)])
    assert np.isfinite(some[1][0, 0])
    assert sum(np.isfinite(m).sum() for m in some) == 1


def _part(variables, block, source, target):
    reader = targets(variables["params"])[block - 1][target - 1]
    kernel = variables["params"]
    for name in reader.kernel:
        kernel = kernel[name]
    return np.asarray(kernel, np.float64)[..., reader.bounds[source] : reader.bounds[source + 1], :]
