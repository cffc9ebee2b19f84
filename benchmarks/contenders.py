"""The networks that `compare.py` compares, each ready to be timed.

Each contender is made by a function that imports the libraries it needs, because each runs in an
interpreter of its own that may lack the libraries of the others.  All functions take the same
options: {"mode": "train" or "inference", "batch", "size", "blocks": layers of each block, "dtype":
"float32", "bfloat16" or "int8", "device": "cpu" or "gpu", "compile_mode": of torch.compile,
"threads", "files": folder that `engine_files.py` wrote, or ""}.  With files, those that can have
this project's weights have them, and everybody's images are the same.
"""

import concurrent.futures
import dataclasses
import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent


@dataclasses.dataclass
class Contender:
    """A network ready to be timed.

    Attributes:
      step: starts a training step or an inference on a fixed batch that lies on the device.
      wait: returns when all steps are finished.
      device: name of the device.
      parameters: number of trainable parameters.
      compile: compiles the program; a contender may leave that to the first call of `step`.
      peak_bytes: returns the peak of device memory so far; None: the process's own peak counts.
      release: releases memory that is only kept for the next step.
      temporary_bytes: returns the program's memory apart from arguments and results; None if
        unknown.
      batches: how many batches a step is.
      logits: returns the logits of the images; None if the weights are others.
      machine: measures the device; returns {"flops": operations per second, "bandwidth": bytes per
        second, "limit": the largest possible images per second of the network}.
    """

    step: Callable[[], Any]
    wait: Callable[[], Any]
    device: str
    parameters: int
    compile: Callable[[], Any] = lambda: None
    peak_bytes: Callable[[], int] | None = None
    release: Callable[[], Any] = lambda: None
    temporary_bytes: Callable[[], int | None] = lambda: None
    batches: int = 1
    logits: Callable[[], Any] | None = None
    machine: Callable[[], dict[str, float]] = dict


def _jax_program(
    options: dict, state: Any, inference: Any, train_step: Any, params: Any
) -> Contender:
    """Returns a contender that runs jitted functions.

    Args:
      options: see the module.
      state: the initial training state, or what inference needs.
      inference: jitted, maps (state, {"image", "label"}) to logits.
      train_step: jitted, maps (state, {"image", "label"}) to (state, metrics).
      params: the parameters, to be counted.
    """
    import jax
    import jax.numpy as jnp

    held: dict[str, Any] = {}
    training = options["mode"] == "train"
    batch = {
        "image": jnp.asarray(_images(options), options["dtype"]),
        "label": jnp.arange(options["batch"], dtype=jnp.int32),
    }
    parameters = sum(leaf.size for leaf in jax.tree.leaves(params))

    def compile_program():
        function = train_step if training else inference
        held["compiled"] = function.lower(state, batch).compile()
        held["state"] = state

    def step():
        result = held["compiled"](held["state"], batch)
        held["result"] = result
        if training:
            held["state"], held["result"] = result

    return Contender(
        step=step,
        wait=lambda: jax.block_until_ready(held["result"]),
        device=jax.devices()[0].device_kind,
        parameters=parameters,
        compile=compile_program,
        peak_bytes=_jax_peak(),
        temporary_bytes=lambda: held["compiled"].memory_analysis().temp_size_in_bytes,
        logits=None if training else lambda: np.asarray(held["compiled"](state, batch)),
    )


def _jax_peak() -> Callable[[], int] | None:
    """Returns a function that reads the device's peak of memory; None on a CPU."""
    import jax

    device = jax.local_devices()[0]
    return None if device.platform == "cpu" else lambda: device.memory_stats()["peak_bytes_in_use"]


def _optimizer() -> Any:
    """Returns SGD with Nesterov momentum and weight decay, as optax has it."""
    import optax

    return optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(0.1, momentum=0.9, nesterov=True))


def densenet_jax(options: dict, implementation: str = "auto") -> Contender:
    """Returns this project's model and training step.

    Args:
      options: see the module.
      implementation: of the dense blocks, see `densenet_jax.create_model`.
    """
    import jax
    import jax.numpy as jnp

    sys.path.insert(0, str(HERE.parent))
    import densenet_jax as package
    from densenet_jax.benchmark import limits
    from densenet_jax.tasks.classification import Classification
    from densenet_jax.tasks.losses import make_loss
    from densenet_jax.training import state, step

    # Where others compute in int8, this is their float32 peer.
    options = {**options, "dtype": options["dtype"].replace("int8", "float32")}
    model = package.create_model(
        "densenet121",
        block_sizes=tuple(options["blocks"]),
        dtype=jnp.dtype(options["dtype"]),
        implementation=implementation,
    )
    optimizer = _optimizer()
    start = jax.jit(lambda: state.initial_state(model, optimizer, 0, (64, 64, 3)))()
    task = Classification()
    train = step.make_train_step(
        model,
        optimizer,
        lambda _: 0.1,
        lambda _, images, labels: (images, task.targets(labels, model.num_classes)),
        task=task,
        loss=make_loss("cross_entropy"),
    )
    inference = jax.jit(lambda variables, batch: model.apply(variables, batch["image"]))
    params, state_or_variables = start.params, start
    if options["mode"] != "train":
        state_or_variables = package.prepare(model, start.variables, options["batch"])

    def machine():
        rates = limits.measure_rates(model.dtype)
        work = limits.work(model, options["size"])[options["mode"] == "train"]
        limit = limits.images_per_second(work, rates)
        return {"flops": rates.flops, "bandwidth": rates.bytes, "limit": limit}

    contender = _jax_program(options, state_or_variables, inference, train, params)
    return dataclasses.replace(contender, machine=machine)


def densenet_jax_callers(options: dict) -> Contender:
    """Returns this project's inference called by as many Python threads as there are cores.

    This is what OpenVINO's throughput mode does, and what a server does under load.
    """
    if options["mode"] == "train":
        sys.exit("does not train")
    single, count = densenet_jax(options), options["threads"]
    callers = concurrent.futures.ThreadPoolExecutor(count)
    calls: list[concurrent.futures.Future] = []

    def step():
        calls.extend(callers.submit(single.logits) for _ in range(count))

    def wait():
        for call in calls:
            call.result()
        calls.clear()

    return dataclasses.replace(single, step=step, wait=wait, batches=count)


def densenet_jax_plain(options: dict) -> Contender:
    """Returns this project's model and training step without fused kernels."""
    return densenet_jax(options, implementation="plain")


def flax(options: dict) -> Contender:
    """Returns `plain_flax.DenseNet` with the training step of Flax's examples."""
    import jax
    import jax.numpy as jnp
    import optax
    import plain_flax
    from flax.training import train_state

    class State(train_state.TrainState):
        batch_stats: Any

    _no_int8(options)
    model = plain_flax.DenseNet(tuple(options["blocks"]), dtype=jnp.dtype(options["dtype"]))

    def initial():
        variables = model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
        return State.create(apply_fn=model.apply, tx=_optimizer(), **variables)

    def train(state, batch):
        def loss_fn(params):
            logits, updates = state.apply_fn(
                {"params": params, "batch_stats": state.batch_stats},
                batch["image"],
                train=True,
                mutable=["batch_stats"],
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
            return losses.mean(), updates

        (loss, updates), gradients = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        state = state.apply_gradients(grads=gradients, batch_stats=updates["batch_stats"])
        return state, loss

    def inference(state, batch):
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        return state.apply_fn(variables, batch["image"])

    train = jax.jit(train, donate_argnums=0)
    start = jax.jit(initial)()
    program = _jax_program(options, start, jax.jit(inference), train, start.params)
    return dataclasses.replace(program, logits=None)  # its weights are others


def torch_eager(options: dict, compiled: bool = False) -> Contender:
    """Returns torchvision's DenseNet, channels last, with mixed precision unless float32.

    Args:
      options: see the module.
      compiled: whether to use `torch.compile`.
    """
    import torch
    import torchvision

    _no_int8(options)
    on_gpu = options["device"] == "gpu"
    device = torch.device("cuda" if on_gpu else "cpu")
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(0)
    model = torchvision.models.DenseNet(32, tuple(options["blocks"]), 64)
    if options["files"]:
        with np.load(pathlib.Path(options["files"]) / "weights.npz") as weights:
            tensors = {name: torch.from_numpy(weights[name]) for name in weights}
        model.load_state_dict(tensors, strict=False)  # but for num_batches_tracked
    model = model.to(device, memory_format=torch.channels_last)
    images = torch.from_numpy(_images(options)).permute(0, 3, 1, 2).to(device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.arange(options["batch"], device=device)
    mixed = torch.autocast(
        device.type, torch.bfloat16, enabled=options["dtype"] != "float32", cache_enabled=True
    )
    optimizer = torch.optim.SGD(
        model.parameters(), 0.1, momentum=0.9, weight_decay=1e-4, nesterov=True
    )
    training = options["mode"] == "train"
    model.train(training)
    network = torch.compile(model, mode=options["compile_mode"]) if compiled else model

    def train():
        optimizer.zero_grad(set_to_none=True)
        with mixed:
            loss = torch.nn.functional.cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()

    def inference():
        with torch.inference_mode(), mixed:
            return network(images)

    return Contender(
        step=train if training else inference,
        wait=torch.cuda.synchronize if on_gpu else lambda: None,
        device=torch.cuda.get_device_name() if on_gpu else "cpu",
        parameters=sum(p.numel() for p in model.parameters()),
        peak_bytes=torch.cuda.max_memory_allocated if on_gpu else None,
        release=torch.cuda.empty_cache if on_gpu else lambda: None,
        logits=None
        if training or not options["files"]
        else lambda: inference().float().cpu().numpy(),
    )


def torch_compile(options: dict) -> Contender:
    """Returns torchvision's DenseNet with `torch.compile`."""
    return torch_eager(options, compiled=True)


def keras(options: dict) -> Contender:
    """Returns Keras applications' DenseNet on JAX, timed by train_on_batch and predict_on_batch."""
    os.environ["KERAS_BACKEND"] = "jax"
    import jax
    import jax.numpy as jnp
    import keras as library

    _no_int8(options)
    if options["dtype"] != "float32":
        library.mixed_precision.set_global_policy(f"mixed_{options['dtype']}")
    from keras.src.applications import densenet  # the public module has no general DenseNet

    shape = (options["size"], options["size"], 3)
    model = densenet.DenseNet(
        options["blocks"], weights=None, input_shape=shape, classifier_activation=None
    )
    loss = library.losses.SparseCategoricalCrossentropy(from_logits=True)
    sgd = library.optimizers.SGD(0.1, momentum=0.9, nesterov=True, weight_decay=1e-4)
    model.compile(optimizer=sgd, loss=loss)
    images = jax.random.normal(jax.random.key(1), (options["batch"], *shape), jnp.float32)
    labels = jnp.arange(options["batch"], dtype=jnp.int32)
    training = options["mode"] == "train"
    return Contender(
        step=lambda: (
            model.train_on_batch(images, labels) if training else model.predict_on_batch(images)
        ),
        wait=lambda: None,  # both return numbers on the host
        device=jax.devices()[0].device_kind,
        parameters=sum(weight.value.size for weight in model.trainable_weights),
        peak_bytes=_jax_peak(),
    )


def onnxruntime(options: dict) -> Contender:
    """Returns ONNX Runtime on this project's ONNX file."""
    import onnxruntime as library

    if options["dtype"] == "bfloat16":
        sys.exit("ONNX Runtime has no bfloat16 on a CPU")
    settings = library.SessionOptions()
    settings.intra_op_num_threads = options["threads"]
    path, images = _onnx_file(options), _images(options)
    session = library.InferenceSession(path, settings, providers=["CPUExecutionProvider"])

    def step():
        return session.run(None, {"images": images})[0]

    return Contender(step, lambda: None, "cpu", parameters=0, logits=step)


def openvino(options: dict, hint: str = "LATENCY") -> Contender:
    """Returns OpenVINO on this project's ONNX file.

    Args:
      options: see the module.
      hint: "LATENCY", one batch at a time, or "THROUGHPUT", as many as OpenVINO thinks best.
    """
    import openvino as library

    core, types = library.Core(), {"float32": "f32", "int8": "f32", "bfloat16": "bf16"}
    capabilities = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if options["dtype"] == "bfloat16" and "BF16" not in capabilities:
        sys.exit("this processor has no bfloat16")
    images = _images(options)
    model = core.read_model(_onnx_file(options))
    model.reshape(list(images.shape))
    settings = {
        "PERFORMANCE_HINT": hint,
        "INFERENCE_NUM_THREADS": options["threads"],
        "INFERENCE_PRECISION_HINT": types[options["dtype"]],
    }
    compiled = core.compile_model(model, "CPU", settings)
    request = compiled.create_infer_request()

    def logits():
        return request.infer({0: images})[0]

    if hint == "LATENCY":
        return Contender(logits, lambda: None, "cpu", parameters=0, logits=logits)
    count = compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
    queue = library.AsyncInferQueue(compiled, count)

    def step():
        for _ in range(count):
            queue.start_async({0: images})

    return Contender(step, queue.wait_all, "cpu", parameters=0, batches=count, logits=logits)


def openvino_throughput(options: dict) -> Contender:
    """Returns OpenVINO, hinted to make many images a second rather than one soon."""
    return openvino(options, "THROUGHPUT")


def _onnx_file(options: dict) -> str:
    if options["mode"] == "train":
        sys.exit("does not train")
    return str(
        pathlib.Path(options["files"]) / f"{options['dtype']}.onnx".replace("bfloat16", "float32")
    )


def _images(options: dict) -> np.ndarray:
    """Returns the images [B, H, W, C] in float32."""
    if options["files"]:
        return np.load(pathlib.Path(options["files"]) / "images.npy")
    shape = (options["batch"], options["size"], options["size"], 3)
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def _no_int8(options: dict) -> None:
    if options["dtype"] == "int8":
        sys.exit("has no int8 network")


# {name: (packages whose versions are recorded, function that makes the contender)}
CONTENDERS = {
    "densenet_jax": (("jax", "jaxlib", "flax", "optax"), densenet_jax),
    "densenet_jax_callers": (("jax", "jaxlib", "flax", "optax"), densenet_jax_callers),
    "densenet_jax_plain": (("jax", "jaxlib", "flax", "optax"), densenet_jax_plain),
    "flax": (("jax", "jaxlib", "flax", "optax"), flax),
    "torch_compile": (("torch", "torchvision"), torch_compile),
    "torch": (("torch", "torchvision"), torch_eager),
    "keras": (("keras", "jax", "jaxlib"), keras),
    "onnxruntime": (("onnxruntime",), onnxruntime),
    "openvino": (("openvino",), openvino),
    "openvino_throughput": (("openvino",), openvino_throughput),
}
