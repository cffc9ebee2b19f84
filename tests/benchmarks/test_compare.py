"""The comparison: its arithmetic, failing contenders, and the reference network."""

import importlib.util
import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import densenet_jax
from densenet_jax.models.block import dense_block

BENCHMARKS = pathlib.Path(__file__).parents[2] / "benchmarks"


def load(name):
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


@pytest.fixture(scope="module")
def results():
    return load("results")


@pytest.fixture(scope="module")
def compare(results):
    return load("compare")


class Fake:
    """A contender with a given time per step that, on request, fails in its third turn."""

    def __init__(self, name, order, seconds, error=None):
        self.name, self.order, self.seconds, self.error = name, order, seconds, error

    def ask(self, run):
        self.order.append(self.name)
        if self.error and self.order.count(self.name) == 3:
            raise self.error
        return {"seconds": self.seconds * run}


def test_contenders_take_turns(compare):
    order = []
    fakes = {name: Fake(name, order, 2.0) for name in "abc"}
    seconds = compare.alternate(fakes, dict.fromkeys("abc", 5), 2, say=lambda _: None)
    assert "".join(order) == "abccba"
    assert seconds == {"a": [2.0, 2.0], "b": [2.0, 2.0], "c": [2.0, 2.0]}


def test_a_contender_that_fails_is_named_and_dropped(compare):
    order, said = [], []
    fakes = {"a": Fake("a", order, 1.0), "b": Fake("b", order, 2.0, compare.ContenderError("oom"))}
    seconds = compare.alternate(fakes, {"a": 1, "b": 1}, 4, say=said.append)
    assert seconds == {"a": [1.0] * 4}
    assert "b: left out, oom" in said


def test_the_error_of_a_process_that_ends_is_reported(compare):
    options = {"device": "cpu"}
    said = []
    processes, facts = compare.start(
        ["torch"], {"torch": sys.executable}, {**options, "blocks": None}, False, said.append
    )
    assert not processes
    assert not facts
    assert said[0].startswith("torch: left out, ")
    assert "Error" in said[0]


def test_ratios_are_of_the_same_round(compare):
    figures = compare.summarise({"us": [1.0, 2.0, 4.0], "peer": [3.0, 4.0, 4.0]}, 8, "us")
    assert figures["us"]["images_per_second"] == 4.0
    assert figures["peer"]["images_per_second"] == 2.0
    assert figures["peer"]["base_is_faster"] == [2.0, 1.0, 3.0]


def test_records_replace_older_ones_row_by_row(results):
    def record(rows, batch=1, header=("n", "ms")):
        return {"kind": "scaling", "what": "growth", "batch": batch, "header": header, "rows": rows}

    kept = results.join([record([["1", 5], ["2", 6]])], [record([["2", 7], ["3", 8]])])
    assert [r["rows"] for r in kept] == [[["1", 5], ["2", 7], ["3", 8]]]
    assert len(results.join(kept, [record([["1", 5]], batch=2)])) == 2
    other = results.join(kept, [record([["1", 5]], header=("n", "GB"))])
    assert [r["rows"] for r in other] == [[["1", 5]]]


def test_page_and_chart_show_every_contender(compare, results):
    figures = compare.summarise({"densenet_jax": [1.0], "flax": [3.0]}, 16, "densenet_jax")
    for contender in figures.values():
        contender.update(peak_bytes=2e9, compile_seconds=3.0, versions={"jax": "1"})
    record = {"kind": "comparison", "device": "cpu", "mode": "train", "batch": 16, "size": 224}
    record.update(dtype="float32", blocks=[6, 12, 24, 16], hardware="cpu", host="2 cores")
    record.update(date="2000-01-01", cold=False, contenders=figures, limit=32.0)
    record["machine"] = {"flops": 1e11, "bandwidth": 1e10}
    page = results.page([json.loads(json.dumps(record))])
    assert "DenseNet-121, training step, batch 16, 224x224, float32" in page
    assert "| densenet_jax | 16 | 50 % |  | 2.00 |  | 3.0 |" in page
    assert "| plain Flax | 5.33 | 17 % | 3.00 (3.00 to 3.00) | 2.00 |  | 3.0 |" in page
    assert results.chart([record]).count("<rect") == 2


def test_plain_flax_is_the_same_network():
    blocks = (1, 2)
    ours = densenet_jax.create_model("densenet121", block_sizes=blocks, growth_rate=8)
    plain = load("plain_flax").DenseNet(blocks, growth_rate=8)
    images = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
    shapes = jax.eval_shape(ours.init, jax.random.key(0), images)
    variables = jax.jit(plain.init)(jax.random.key(0), images)
    sizes = [sorted(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (shapes, variables)]
    assert sizes[0] == sizes[1]
    # With the same parameters, in the order of the layers, the logits are the same.
    mine = _in_order(variables["params"], shapes["params"])
    expected = jax.jit(plain.apply, static_argnames="train")(variables, images)
    statistics = jax.tree_util.tree_map_with_path(
        lambda path, leaf: (jnp.ones if path[-1].key == "var" else jnp.zeros)(leaf.shape),
        shapes["batch_stats"],
    )
    actual = jax.jit(ours.apply)({"params": mine, "batch_stats": statistics}, images)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def _in_order(plain, shapes):
    """Returns the parameters of `plain_flax` in the tree of this project's DenseNet."""

    def number(name):
        return int(name.rpartition("_")[2])

    convs = [plain[k] for k in sorted((k for k in plain if k.startswith("Conv_")), key=number)]
    norms = [plain[k] for k in sorted((k for k in plain if k.startswith("Batch")), key=number)]
    convs, norms = iter(convs), iter(norms)

    def layer(tree):
        return {k: dict(next(norms if "norm" in k else convs)) for k in sorted(tree, key=_place)}

    out = layer({k: None for k in ("conv0", "norm0")})
    for i in range(1, 3):
        block = f"denseblock{i}"
        out[block] = {k: layer(shapes[block][k]) for k in sorted(shapes[block])}
        if f"transition{i}" in shapes:
            out[f"transition{i}"] = layer(shapes[f"transition{i}"])
    out["norm_final"] = dict(next(norms))
    out["classifier"] = plain["Dense_0"]
    return out


def _place(name):
    """Sorts norm1, conv1, norm2, conv2 (and conv0, norm0, which are independent)."""
    return name[-1], "conv" in name


def test_memory_kept_for_the_gradient_grows_linearly_with_depth():
    """With concatenated maps kept for the backward pass, it would grow quadratically."""
    growth, width = 4, 16

    def layer(c):
        norms = [{"scale": jnp.ones(n), "bias": jnp.zeros(n)} for n in (c, width)]
        kernels = jnp.ones((1, 1, c, width)), jnp.ones((3, 3, width, growth))
        return list(zip(norms, kernels, strict=True))

    def kept(depth):
        layers = [layer(8 + i * growth) for i in range(depth)]

        def block(x, layers):
            return dense_block.train(x, dense_block.moments(x), layers, epsilon=1e-5)[0]

        x = jnp.ones((8, 16, 16, 8))
        residuals = jax.eval_shape(lambda x: jax.vjp(lambda x: block(x, layers), x)[1], x)
        maps = [leaf for leaf in jax.tree.leaves(residuals) if leaf.ndim == 4]
        return sum(leaf.size for leaf in maps if leaf.shape[:3] == x.shape[:3])

    few, more, most = (kept(depth) for depth in (6, 12, 18))
    assert few > 0
    assert most - more == more - few
