"""Augmentation in the step: distributions, agreement with Pillow, and with any devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from densenet_jax.data.augment import colour, device, mixing, policies

KEY = jax.random.key(0)
EVERYTHING = {
    "pad": 4,
    "flip": True,
    "jitter": (0.4, 0.4, 0.4, 0.1),
    "policy": "randaugment",
    "erase": 0.5,
    "erase_fill": (120, 110, 100),
    "mixup": 0.2,
    "cutmix": 1.0,
}


def photo(height=40, width=48, seed=0):
    """A smooth coloured picture with some noise, uint8 [H, W, 3]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / a + b) + np.cos(y / b) for a, b in ((7, 3), (5, 8), (11, 6))]
    smooth = 120 + 45 * np.stack(waves, -1) + rng.normal(0, 6, (height, width, 3))
    return smooth.clip(0, 255).astype(np.uint8)


def batch(size, height=16, width=16, channels=3):
    rng = np.random.default_rng(1)
    return jnp.asarray(rng.integers(0, 256, (size, height, width, channels), np.uint8))


def test_normalize():
    image = jnp.asarray(np.array([0, 255, 51], np.uint8).reshape(1, 1, 1, 3))
    got = device.normalize(image, (0.5, 0.5, 0.2), (0.5, 0.25, 0.1), jnp.float32)
    np.testing.assert_allclose(got.ravel(), [-1, 2, 0], atol=1e-6)
    assert device.normalize(image, (0,) * 3, (1,) * 3, jnp.bfloat16).dtype == jnp.bfloat16


def test_nothing_switched_on_changes_nothing():
    images = batch(4)
    np.testing.assert_array_equal(device.augment(KEY, images), images)
    same, targets = device.augment(KEY, images, jnp.eye(5)[:4])
    np.testing.assert_array_equal(same, images)
    np.testing.assert_array_equal(targets, np.eye(5)[:4])


def test_flip_mirrors_half_of_the_images():
    images = batch(1000, 2, 4)
    flipped = augment(images, flip=True)
    mirrored = (flipped == images[:, :, ::-1]).all((1, 2, 3))
    assert ((flipped == images).all((1, 2, 3)) | mirrored).all()
    assert 440 < mirrored.sum() < 560


def test_pad_and_crop_takes_every_window_equally_often():
    marked = jnp.zeros((4000, 5, 5, 1), jnp.uint8).at[:, 2, 2].set(255)
    moved = augment(marked, pad=2).reshape(4000, 25)
    assert (moved.sum(1) == 255).all()  # the centre stays inside when 2 pixels are padded
    counts = np.bincount(moved.argmax(1), minlength=25)
    assert counts.min() > 110
    assert counts.max() < 215


def test_jitter_stays_within_its_factors():
    grey = jnp.full((500, 2, 2, 3), 100, jnp.uint8)
    values = np.asarray(augment(grey, jitter=(0.4, 0, 0, 0)))[:, 0, 0, 0]
    assert 60 <= values.min() < 64
    assert 136 < values.max() <= 140
    assert abs(values.mean() - 100) < 4
    # Contrast, saturation and hue leave a uniform grey alone.
    np.testing.assert_array_equal(augment(grey, jitter=(0, 0.4, 0.4, 0.5)), grey)


def test_hue_agrees_with_the_definition():
    import colorsys

    image = photo(6, 7)
    shift = 0.3
    got = colour.shift_hue(jnp.asarray(image, jnp.float32), shift)
    for pixel, result in zip(image.reshape(-1, 3), np.reshape(got, (-1, 3)), strict=True):
        h, s, v = colorsys.rgb_to_hsv(*pixel / 255)
        expected = np.multiply(255, colorsys.hsv_to_rgb((h + shift) % 1, s, v))
        np.testing.assert_allclose(result, expected, atol=1e-2)


def augment(images, labels=None, **options):
    return jax.jit(lambda k, x, y: device.augment(k, x, y, **options))(KEY, images, labels)


def operate(name, image, value, sign=1.0):
    op = policies.OPS.index(name)
    return np.asarray(OPERATE(jnp.asarray(image), op, jnp.float32(value), jnp.float32(sign)))


OPERATE = jax.jit(policies.operate)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", ["brightness", "color", "contrast", "sharpness"])
def test_blends_agree_with_pillow(name, sign):
    image = photo()
    enhance = getattr(ImageEnhance, name.capitalize())(Image.fromarray(image))
    expected = np.asarray(enhance.enhance(1 + sign * 0.613)).astype(int)
    difference = np.abs(operate(name, image, 0.613, sign) - expected)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.01


@pytest.mark.parametrize(
    ("name", "value", "pillow"),
    [
        ("identity", 0, lambda x: x),
        ("posterize", 4, lambda x: ImageOps.posterize(x, 4)),
        ("posterize", 8, lambda x: x),
        ("solarize", 100, lambda x: ImageOps.solarize(x, 100)),
        ("autocontrast", 0, ImageOps.autocontrast),
        ("equalize", 0, ImageOps.equalize),
    ],
)
def test_tables_agree_with_pillow(name, value, pillow):
    image = photo(160, 160)[:, :, ::-1] // 2 + 40
    expected = np.asarray(pillow(Image.fromarray(image))).astype(int)
    assert np.abs(operate(name, image, value) - expected).max() <= (name == "autocontrast")


@pytest.mark.parametrize("constant", [0, 77, 255])
def test_a_uniform_image_survives_every_operation(constant):
    image = np.full((8, 8, 3), constant, np.uint8)
    for name in ("autocontrast", "equalize", "contrast", "color", "sharpness"):
        np.testing.assert_array_equal(operate(name, image, 0.3), image)


@pytest.mark.parametrize(
    ("name", "value", "matrix"),
    [
        ("shear_x", 0.21, (1, 0.21, 0, 0, 1, 0)),
        ("shear_y", 0.21, (1, 0, 0, 0.21, 1, 0)),
        ("translate_x", 5, (1, 0, 5, 0, 1, 0)),
        ("translate_y", 5, (1, 0, 0, 0, 1, 5)),
    ],
)
def test_warps_agree_with_pillow(name, value, matrix):
    image = photo()
    pillow = Image.fromarray(image)
    expected = pillow.transform(pillow.size, Image.Transform.AFFINE, matrix)
    assert (operate(name, image, value) == np.asarray(expected)).all(-1).mean() > 0.99


def test_rotation_agrees_with_pillow():
    image = photo()
    expected = np.asarray(Image.fromarray(image).rotate(25))
    same = max((operate("rotate", image, 25, sign) == expected).all(-1).mean() for sign in (1, -1))
    assert same > 0.99


def test_smoothing_agrees_with_pillow():
    image = photo()
    expected = np.asarray(Image.fromarray(image).filter(ImageFilter.SMOOTH)).astype(int)
    assert np.abs(np.asarray(policies.smooth(jnp.asarray(image))) - expected).max() <= 1


def test_policies_choose_every_operation():
    image = jnp.asarray(photo(16, 16))
    one = jax.jit(jax.vmap(lambda k: policies.apply(k, image, "trivialaugment", 1, 0)))
    results = np.asarray(one(jax.random.split(KEY, 600)))
    unchanged = (results == image).all((1, 2, 3)).mean()
    assert 1 / 14 < unchanged < 3 / 14  # the identity, and operations of strength 0
    assert len({r.tobytes() for r in results}) > 100


def test_policy_errors_name_the_argument():
    with pytest.raises(ValueError, match="no policy 'autoaugment'"):
        device.augment(KEY, batch(2), policy="autoaugment")
    with pytest.raises(ValueError, match="policy_magnitude is 31"):
        device.augment(KEY, batch(2), policy="randaugment", policy_magnitude=31)
    with pytest.raises(ValueError, match="need targets"):
        device.augment(KEY, batch(2), mixup=0.2)


def test_policies_take_grayscale():
    assert augment(batch(2, channels=1), policy="randaugment").shape == (2, 16, 16, 1)


def test_erasing_paints_one_rectangle_of_the_right_size():
    images = jnp.full((1000, 32, 32, 3), 255, jnp.uint8)
    erased = np.asarray(augment(images, erase=0.25, erase_fill=(1, 2, 3)))
    hit = (erased == (1, 2, 3)).all(-1)
    assert (hit | (erased == 255).all(-1)).all()
    share = hit.mean((1, 2))
    assert 0.2 < (share > 0).mean() < 0.3
    assert share[share > 0].min() > 0.015
    assert share.max() < 0.36
    # One rectangle: its rows times its columns is its area.
    assert (hit.any(2).sum(1) * hit.any(1).sum(1) == hit.sum((1, 2))).all()


def test_mixup_shares():
    images = jnp.zeros((2000, 2, 2, 1), jnp.uint8).at[::2].set(200)
    labels = jnp.arange(2000) % 2
    mixed, targets = augment(images, jnp.eye(2)[labels], mixup=0.4)
    np.testing.assert_allclose(targets.sum(1), 1, atol=1e-6)
    # Class 0 is the bright one, so its target is the brightness.
    np.testing.assert_allclose(np.asarray(mixed)[:, 0, 0, 0], 200 * targets[:, 0], atol=0.51)
    share = np.where(labels == 0, targets[:, 0], targets[:, 1])
    assert abs(share.mean() - 0.5) < 0.03
    assert abs(share.var() - 0.25 / (2 * 0.4 + 1)) < 0.01  # the variance of Beta(0.4, 0.4)


def test_cutmix_targets_are_the_areas():
    images = jnp.zeros((500, 20, 30, 1), jnp.uint8).at[::2].set(255)
    labels = jnp.arange(500) % 2
    mixed, targets = augment(images, jnp.eye(2)[labels], cutmix=1.0)
    np.testing.assert_allclose((mixed == 255).mean((1, 2, 3)), targets[:, 0], atol=1e-6)
    assert len(set(np.asarray(targets[:, 0]).round(3))) > 100


def test_only_the_given_share_is_mixed_and_both_kinds_occur():
    images = jnp.zeros((1000, 8, 8, 1), jnp.uint8).at[::2].set(200)
    mixed, targets = augment(
        images, jnp.eye(2)[jnp.arange(1000) % 2], mixup=1.0, cutmix=1.0, mix_probability=0.5
    )
    values = np.asarray(mixed).reshape(1000, -1)
    uniform = (values == values[:, :1]).all(1)
    plain = np.asarray((targets == jnp.eye(2)[jnp.arange(1000) % 2]).all(1))
    assert 0.4 < plain.mean() < 0.6
    assert 0.15 < (uniform & ~plain).mean() < 0.35  # mixup
    assert 0.15 < (~uniform).mean() < 0.35  # CutMix


def test_rectangles_are_cut_at_the_edges():
    mask = mixing.rectangle((4, 6), jnp.array([0.0, 5.0]), jnp.array([4.0, 2.0]))
    assert np.asarray(mask).sum() == 2 * 2


def test_the_key_alone_decides_on_any_devices():
    images, labels = jax.device_get((batch(16), jnp.arange(16)))
    run = jax.jit(lambda k, x, y: device.augment(k, x, jax.nn.one_hot(y, 16), **EVERYTHING))

    def on(count, key=KEY):
        mesh = Mesh(jax.devices()[:count], "data")
        put = jax.device_put((images, labels), NamedSharding(mesh, PartitionSpec("data")))
        out = run(key, *put)
        assert len(out[0].sharding.device_set) == count
        return jax.device_get(out)

    one, eight, other = on(1), on(8), on(1, jax.random.key(1))
    np.testing.assert_array_equal(one[0], eight[0])
    np.testing.assert_allclose(one[1], eight[1], atol=1e-6)
    assert (one[0] != other[0]).mean() > 0.5


def test_normalisation_by_a_value_range():
    images = jnp.asarray(np.arange(24, dtype=np.uint16).reshape(2, 2, 2, 3) * 300)
    got = device.normalize(images, (0.2, 0.4, 0.6), (0.5,), jnp.float32, (-1000, 4000))
    expected = ((np.asarray(images) + 1000) / 5000 - np.array([0.2, 0.4, 0.6])) / 0.5
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    scaled = device.scale(images, (-1000, 4000))
    again = device.normalize(scaled, (0.2, 0.4, 0.6), (0.5,), jnp.float32, (0.0, 1.0))
    np.testing.assert_allclose(again, expected, rtol=1e-5, atol=1e-6)


FLOAT_OPTIONS = {"flip": True, "pad": 2, "jitter": (0.4, 0.4, 0.4, 0.1), "erase": 0.5}


def test_floats_are_augmented_as_bytes_are():
    key, targets = jax.random.key(3), jnp.eye(8)
    images = np.random.default_rng(0).integers(0, 256, (8, 12, 12, 3)).astype(np.uint8)
    options = FLOAT_OPTIONS | {"mixup": 0.4, "cutmix": 1.0}
    whole, mixed = jax.jit(lambda x: device.augment(key, x, targets, **options))(images)
    floats = jnp.asarray(images, jnp.float32) / 255
    got, same = jax.jit(lambda x: device.augment(key, x, targets, **options))(floats)
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(mixed, same)
    # Bytes are rounded after each of five operations, and hue amplifies that.
    assert np.abs(np.asarray(got) * 255 - np.asarray(whole, float)).mean() < 1.5


@pytest.mark.parametrize("channels", [1, 2, 4, 13])
def test_any_number_of_channels_is_moved_brightened_and_mixed(channels):
    key, targets = jax.random.key(3), jnp.eye(4)
    options = FLOAT_OPTIONS | {"mixup": 0.4, "jitter": (0.4, 0.4, 0, 0)}
    for dtype in (jnp.uint8, jnp.float32):
        images = jnp.ones((4, 6, 6, channels), dtype)
        got, _ = device.augment(key, images, targets, **options)
        assert (got.shape, got.dtype) == (images.shape, dtype)
        assert bool(jnp.isfinite(got).all())
    with pytest.raises(ValueError, match="3 channels"):
        device.augment(key, images, targets, jitter=(0, 0, 0.5, 0))
