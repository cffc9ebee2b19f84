"""Checkpoints as others leave them: the network is found under any prefix, or refused."""

import numpy as np
import pytest

from densenet_jax import weights
from densenet_jax.models.variants import create_model
from densenet_jax.weights import adapt, names
from tests.random_variables import random_variables

TINY = {"block_sizes": (1, 1, 2), "growth_rate": 4, "stem_features": 8, "num_classes": 5}


def tiny(**overrides):
    return create_model("densenet121", **{**TINY, **overrides})


@pytest.fixture(scope="module")
def model():
    return tiny()


@pytest.fixture(scope="module")
def variables(model):
    return random_variables(model)


@pytest.fixture(scope="module")
def torch(model, variables):
    return weights.to_state_dict(model, variables)


def prefixed(prefix, state_dict):
    return {prefix + name: tensor for name, tensor in state_dict.items()}


def renamed(state_dict, *rules):
    result = {}
    for name, tensor in state_dict.items():
        new = name
        for old, other in rules:
            new = new.replace(old, other)
        result[new] = tensor
    return result


def assert_loads(model, variables, state_dict):
    loaded = names.traverse_util.flatten_dict(weights.from_state_dict(model, state_dict), sep="/")
    wanted = names.traverse_util.flatten_dict(variables, sep="/")
    assert all(np.array_equal(loaded[path], value) for path, value in wanted.items())


def load(model, state_dict, **options):
    matching = names.match(model, state_dict, **options)
    return matching, *adapt.merge(model, matching, 0)


@pytest.mark.parametrize(
    "prefix",
    [
        *("module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.module.", "model."),
        *("net.", "backbone.", "encoder.", "densenet121.", "timm_model.", "model.model.", "0."),
        *("module.densenet121.", "student.", "features."),
    ],
)
def test_any_prefix(model, variables, torch, prefix):
    assert_loads(model, variables, prefixed(prefix, torch))


@pytest.mark.parametrize(
    "rules",
    [
        [("features.", "0.0."), ("classifier.", "1.4.")],  # fastai
        [("features.", "encoder.features."), ("classifier.", "fc.")],  # an encoder of its own
        [("features.", "")],
        [("features.", "features._fsdp_wrapped_module.")],
        [("denseblock1.", "denseblock1._checkpoint_wrapped_module.")],
        [("norm1.", "norm.1."), ("conv2.", "conv.2.")],  # before PyTorch 0.4
        # MONAI
        [
            ("layer1.norm", "layer1.layers.norm"),
            ("layer1.conv", "layer1.layers.conv"),
            ("classifier.", "class_layers.out."),
        ],
        # MMPretrain
        [
            *(("features.conv0", "backbone.stem.0"), ("features.norm0", "backbone.stem.1")),
            ("features.norm5", "backbone.transitions.2.0"),
            *((f"features.denseblock{i}", f"backbone.stages.{i - 1}.block") for i in (1, 2, 3)),
            *((f"denselayer{i}", str(i - 1)) for i in (1, 2)),
            *((f"features.transition{i}", f"backbone.transitions.{i - 1}") for i in (1, 2)),
            ("classifier.", "head.fc."),
        ],
    ],
)
def test_other_names_for_the_modules(model, variables, torch, rules):
    assert_loads(model, variables, renamed(torch, *rules))


@pytest.mark.parametrize("prefix", ["densenet121/", "sequential/densenet121_", "a/b/"])
def test_networks_nested_in_a_keras_model(model, variables, prefix):
    keras = weights.to_state_dict(model, variables, "keras")
    theirs = renamed(prefixed(prefix, keras), (f"{prefix}predictions/", "dense_1/"))
    assert_loads(model, variables, theirs)


@pytest.mark.parametrize("separator", ["/", "."])
def test_our_own_variables_in_another_tree(model, variables, separator):
    own = weights.to_state_dict(model, variables, "densenet_jax")
    theirs = {f"state/{name}".replace("/", separator): tensor for name, tensor in own.items()}
    assert_loads(model, variables, theirs)


def test_a_prefix_before_rdnet():
    model = create_model(
        "rdnet_tiny", block_sizes=(1, 1), growth_rates=(8, 8), stem_features=16, halving=(1,),
        num_classes=3,
    )  # fmt: skip
    variables = random_variables(model)
    assert_loads(model, variables, prefixed("model.", weights.to_state_dict(model, variables)))


def test_what_is_beside_the_network_is_named(model, torch, caplog):
    beside = {"criterion.weight": np.ones(5), "op_threshs": np.ones(5), "acc.total": np.ones(())}
    _, _, report = load(model, {**prefixed("model.", torch), **beside})
    assert report.dropped == ("acc.total", "criterion.weight", "op_threshs")
    assert report.prefix == "model"
    assert "from model" in str(report)
    weights.from_state_dict(model, {**torch, **beside})
    assert "Not used: acc.total, criterion.weight, op_threshs" in caplog.text


@pytest.mark.parametrize(
    "extra",
    [
        {"features.denseblock1.denselayer1.relu1.weight": np.ones(1)},  # PReLU
        {"features.denseblock1.denselayer2.conv1.weight": np.ones((16, 12, 1, 1))},
    ],
)
@pytest.mark.parametrize("root", ["features.", "0.0.", ""])
def test_what_is_left_over_inside_the_network_is_refused(model, torch, root, extra):
    theirs = renamed({**torch, **extra}, ("features.", root))
    with pytest.raises(weights.MismatchError, match=r"relu1|denselayer2"):
        weights.from_state_dict(model, theirs)


def test_a_further_layer_in_the_body_s_module_is_refused(model, torch):
    extra = {"features.attention.weight": np.ones((3, 3)), "features.attention.bias": np.ones(3)}
    with pytest.raises(weights.MismatchError, match="attention"):
        weights.from_state_dict(model, {**torch, **extra})


def test_two_networks_are_refused_by_name_unless_one_is_chosen(model, variables, torch):
    twice = {name: 2 * tensor for name, tensor in torch.items()}
    both = {**prefixed("student.", torch), **prefixed("teacher.", twice)}
    with pytest.raises(weights.WeightsError, match=r"2 networks, 'student' and 'teacher'.*prefix="):
        names.match(model, both)
    _, loaded, _ = load(model, both, prefix="teacher")
    kernel = loaded["params"]["conv0"]["kernel"]
    assert np.array_equal(kernel, 2 * variables["params"]["conv0"]["kernel"])
    with pytest.raises(weights.WeightsError, match="None of the names"):
        names.match(model, both, prefix="teach")


def test_the_average_beside_the_raw_weights_is_taken_and_the_others_are_named(model, torch):
    raw = {name: 2 * tensor for name, tensor in torch.items()}
    both = {**prefixed("online_model.", raw), **prefixed("ema_model.", torch)}
    _, loaded, report = load(model, both)
    kernel = loaded["params"]["classifier"]["kernel"]
    assert np.array_equal(kernel.T, torch["classifier.weight"])
    assert report.prefix == "ema_model"
    assert set(report.dropped) == set(prefixed("online_model.", raw))


def test_the_state_of_mindspore_s_optimizers_is_no_second_network(model, variables):
    theirs = weights.to_state_dict(model, variables, "mindcv")
    trainable = {name: x for name, x in theirs.items() if "moving" not in name}
    state = {"beta1_power": np.ones(1), "lr": np.ones(1), "current_iterator_step": np.ones(1)}
    for prefix in ("moment1.", "moment2.", "accum.", "linear.", "ema.", "lamb_m.", "stat."):
        state |= prefixed(prefix, trainable)
    assert_loads(model, variables, {**theirs, **state})
    _, _, report = load(model, {**theirs, **state})
    assert len(report.dropped) == 7 * len(trainable)
    renamed_head = renamed(theirs, ("classifier.", "linear."))
    assert_loads(model, variables, renamed_head)


def test_two_tensors_of_one_meaning_are_refused(model, torch):
    name = "features.denseblock1.denselayer1.norm1.bias"
    torch = {**torch, name.replace("norm1", "norm.1"): 2 * torch[name]}
    with pytest.raises(weights.WeightsError, match=r"norm\.1\.bias.*norm1\.bias.*same meaning"):
        weights.from_state_dict(model, torch)


def test_three_dimensional_networks_are_refused_as_such(model, torch, tmp_path):
    solid = {n: x[..., None] if x.ndim == 4 else x for n, x in torch.items()}
    with pytest.raises(weights.WeightsError, match="three-dimensional"):
        weights.from_state_dict(model, solid)
    weights.write_safetensors(tmp_path / "best.safetensors", solid)
    with pytest.raises(weights.WeightsError, match="three-dimensional"):
        weights.load(tmp_path / "best.safetensors")


@pytest.mark.parametrize(
    ("theirs", "what"),
    [
        (["conv1.weight", *(f"layer{i}.0.conv1.weight" for i in (1, 2, 3))], "a ResNet"),
        (["cls_token", *(f"blocks.{i}.attn.qkv.weight" for i in range(3))], "a ViT"),
        ([f"features.{i}.weight" for i in range(5)], "a VGG"),
    ],
)
def test_other_architectures_are_named(model, theirs, what):
    with pytest.raises(weights.WeightsError, match=f"those of {what}"):
        weights.from_state_dict(model, dict.fromkeys(theirs, np.zeros(3)))


def test_pruned_weights_are_the_product(model, variables, torch):
    name = "features.conv0.weight"
    mask = np.arange(torch[name].size).reshape(torch[name].shape) % 2
    theirs = {n: x for n, x in torch.items() if n != name}
    theirs |= {f"{name}_orig": torch[name], f"{name}_mask": mask.astype(np.float32)}
    back = weights.to_state_dict(model, weights.from_state_dict(model, theirs))
    assert np.array_equal(back[name], torch[name] * mask)


def test_numbers_that_no_training_leaves_are_named(model, torch, caplog):
    bad = {name: tensor.copy() for name, tensor in torch.items()}
    bad["features.conv0.weight"][0] = np.nan
    bad["classifier.bias"][0] = np.inf
    bad["features.norm0.running_var"][0] = -1e-3
    weights.from_state_dict(model, bad)
    assert "NaN in 1 tensor (features.conv0.weight)" in caplog.text
    assert "infinite numbers in 1 tensor (classifier.bias)" in caplog.text
    assert "negative variances in 1 tensor (features.norm0.running_var)" in caplog.text
    for name in bad:
        bad[name] = np.full_like(bad[name], np.nan)
    weights.from_state_dict(model, bad)
    assert f"NaN in {len(bad)} tensors" in caplog.text
    assert f"and {len(bad) - 3} more" in caplog.text


def test_integers_are_no_weights(model, torch):
    quantised = {**torch, "classifier.weight": torch["classifier.weight"].astype(np.int8)}
    with pytest.raises(weights.WeightsError, match=r"quantised: classifier\.weight"):
        weights.from_state_dict(model, quantised)
