"""Defines every hyper-parameter once; the other configurations change some of them.

Any of them can be set on the command line: --config.optimizer.learning_rate=0.05
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    config = ConfigDict()
    # Seed of initialisation, order, crops, augmentation and dropout.
    config.seed = 0
    # Examples in a training step and in an evaluation step, over all devices.
    config.batch_size = 256
    config.eval_batch_size = 256
    # Length of the run: epochs, or steps if `total_steps` is set.
    config.total_epochs = 90.0
    config.total_steps = placeholder(int)
    # Steps in one call of the device, for small networks on fast devices; the results are the same.
    # Metrics are written and signals handled when the call ends; it also ends where an evaluation
    # or a checkpoint is due. More than 1 needs `data.in_memory`.
    config.steps_per_dispatch = 1
    # What the network is trained for: `classification`, one label for each example.
    config.task = "classification"
    # `cross_entropy`, or `binary_cross_entropy`: a separate loss for each class, summed; "": the
    # task's own.
    config.loss = "cross_entropy"
    # The metric that chooses the best checkpoint: `top1`, `top5` or `loss`; "": the task's own.
    config.best_metric = ""
    # Share of the target spread evenly over all classes.
    config.label_smoothing = 0.0
    # For binary_cross_entropy: a class with a greater share of a mixed image counts as fully
    # present; 0: shares count as they are.
    config.bce_threshold = 0.0
    # Decay per step of moving averages of parameters and running statistics; 0: no averages.
    # A run with averages uses them for evaluation, predictions and exports.
    config.ema_decay = 0.0

    # The model: its name, and fields of its module; None: the variant's value.
    config.model = model = ConfigDict()
    model.name = "densenet121"
    # None: the number of classes in the data.
    model.num_classes = placeholder(int)
    # Probability to drop a value after each convolution but the first.
    model.dropout_rate = placeholder(float)
    # Probability, per image, that the network's last layer adds zeros (stochastic depth); it is
    # lower for earlier layers, in proportion to their position.
    model.drop_path_rate = placeholder(float)
    # Type of the computation; parameters and statistics have `param_dtype`.
    model.dtype = "float32"
    model.param_dtype = "float32"
    # Fields of any DenseNet: feature maps that a layer adds (one number, or one for each block),
    # number of layers of each block, width of bottlenecks in growth rates (0: none), the stem
    # (`imagenet`, `deep`, `deep_blur`, `cifar`, `cifar_half`) and its feature maps, share of
    # feature maps that a transition keeps.
    model.growth_rate = placeholder(object)
    model.block_sizes = placeholder(tuple)
    model.bottleneck_width = placeholder(int)
    model.stem = placeholder(str)
    model.stem_features = placeholder(int)
    model.compression = placeholder(float)
    # For fine-tuning: normalise with the statistics of the loaded weights, and do not update them.
    model.freeze_statistics = placeholder(bool)
    # The function after every norm (`relu`, `silu`, `gelu`, `leaky_relu`), and the pooling of the
    # last feature maps (`avg`, `max`, `avgmax`, `catavgmax`).
    model.activation = placeholder(str)
    model.global_pool = placeholder(str)
    # What computes dense blocks: `reference` (plain JAX, differentiated by JAX), `plain` (JAX with
    # the gradient written by hand), `cpu` (kernels in C++), `gpu` (fused kernels for NVIDIA GPUs);
    # None: the fastest that runs here.  `native` and `kernels` are earlier names of `cpu` and
    # `gpu`.
    model.implementation = placeholder(str)
    # Only for the family `densenet_cifar`: number of layers, and whether they have bottlenecks.
    model.depth = placeholder(int)
    model.bottleneck = placeholder(bool)

    # Weights to start from: a published name (densenet121.ra_in1k), hf-hub:owner/name, a file of
    # PyTorch, Keras, MindSpore or safetensors, or another run's directory.
    config.init_from = ""

    # The data.  If they are None, image_size, eval_crop, interpolation, mean and std are those of
    # the weights in `init_from`, or else the usual ones for ImageNet.
    config.data = data = ConfigDict()
    # A TFDS data set; `folder` for images in data_dir/SPLIT/CLASS/* or data_dir/CLASS/*; `digits`;
    # `hf:OWNER/NAME` (Hugging Face); `synthetic[:SIZE[:CLASSES]]`, for benchmarks.
    data.name = "imagenet2012"
    # TFDS's data directory, or the folder of images; "": TFDS's default.
    data.data_dir = ""
    data.train_split = "train"
    data.eval_split = "validation"
    # Share of a folder without splits that becomes its validation split.
    data.holdout = 0.1
    # Names of the classes to use, which become labels 0, 1, ...; (): all.
    data.classes = ()
    # Number of training examples of each class, the first of the split, for few-shot learning;
    # 0: all.
    data.examples_per_class = 0
    # Height and width of the model's input images, in pixels.
    data.image_size = placeholder(int)
    # Another size for training images: one, or several for equal parts of the run one after
    # another, (128, 160, 192, 224).  (): image_size.
    data.train_sizes = ()
    data.channels = 3
    # Training images: a random region of this share of the area, or (False) the whole image.
    data.random_crop = True
    data.crop_scale = (0.08, 1.0)
    # Evaluation images: shorter side resized to image_size / eval_crop, then the central square.
    data.eval_crop = placeholder(float)
    # `bicubic` or `bilinear`.
    data.interpolation = placeholder(str)
    # Per channel, for images scaled to 0..1.
    data.mean = placeholder(tuple)
    data.std = placeholder(tuple)
    # Number of processes that decode; 0: threads of the training process decode.
    data.workers = 0
    # Read and decode a small data set once and hold it as one array; on every device, if it fits.
    data.in_memory = False
    # Stop at an image that cannot be read, instead of counting it and using another.
    data.strict = False

    # Knowledge distillation: a teacher, given as in `init_from`, that sees the same images; or a
    # file with its logits, which the command `logits` writes.
    config.distill = distill = ConfigDict()
    distill.teacher = ""
    distill.logits = ""
    # Weight of the teacher in the loss; the labels have the rest.
    distill.weight = 0.5
    # Divides the logits before student and teacher are compared.
    distill.temperature = 1.0

    # Augmentation inside the training step, in this order.
    config.augment = augment = ConfigDict()
    # Mirror left to right with probability 1/2.
    augment.flip = True
    # Pad by this many pixels of zeros and crop a random window of the original size.
    augment.pad = 0
    # Strengths of random brightness, contrast, saturation and hue (torchvision's ColorJitter).
    augment.jitter = (0.0, 0.0, 0.0, 0.0)
    # `randaugment` (policy_ops operations per image, strength 0 to 30) or `trivialaugment`.
    augment.policy = ""
    augment.policy_ops = 2
    augment.policy_magnitude = 9
    # Probability that a random rectangle is painted over.
    augment.erase = 0.0
    # Alpha of the Beta distributions of mixup and CutMix; 0: off. Share of the images they mix.
    augment.mixup = 0.0
    augment.cutmix = 0.0
    augment.mix_probability = 1.0

    # `sgd` with momentum, `adamw`, `lamb`, `lars`, `lion` or `muon`.
    config.optimizer = optimizer = ConfigDict()
    optimizer.name = "sgd"
    # The peak, for the whole batch; or for the reference batch size, if it is set: the peak then
    # grows in proportion to batch_size (Goyal et al., 2017).
    optimizer.learning_rate = 0.1
    optimizer.reference_batch_size = placeholder(int)
    # `cosine`: to 0; `step`: times step_factor at the boundaries; `polynomial` of power 2 to 0;
    # `constant`; `one_cycle`: up for `warmup`, down for the rest; `warmup_stable_decay`: constant,
    # then linear to 0 over `decay`.
    # A duration is '5 epochs', '500 steps', '1e6 examples', or a share of the run from 0 to 1.
    optimizer.schedule = "step"
    optimizer.step_boundaries = (1 / 3, 2 / 3)
    optimizer.step_factor = 0.1
    # Duration of the linear warm-up from 0.
    optimizer.warmup = "0 epochs"
    # Duration of the last phase of `warmup_stable_decay`.
    optimizer.decay = "0.2"
    # For sgd, lars and muon.
    optimizer.momentum = 0.9
    optimizer.nesterov = True
    # For adamw, lamb, lion and the adamw in muon: decays of the moments, and the number added to
    # the root of the second moment; None: the usual values.
    optimizer.betas = placeholder(tuple)
    optimizer.epsilon = placeholder(float)
    # Applies to kernels only, not to scales and biases.
    optimizer.weight_decay = 1e-4
    # Largest L2 norm of all gradients of a step together; 0: no limit.
    optimizer.clip_norm = 0.0
    # Factor of the learning rate from each part of the network (head and last norm, last block,
    # ..., first block, stem) to the one before it, for fine-tuning.
    optimizer.layer_decay = 1.0
    # Micro-batches of a step, one after another: memory for one, gradients averaged over all.
    optimizer.accumulate = 1
    # Parts that do not train, for fine-tuning: ("stem", "block1", ..., "norm", "head").
    optimizer.frozen = ()

    # Number of examples that share batch statistics; None: all that are processed at the same
    # time, on any number of devices.  See docs/large_batches.md.
    config.batch_norm = ConfigDict({"group_size": placeholder(int)})

    # The mesh of devices.  A preset (`gpu` or `tpu`: all of them, the state on each; `gpu_fsdp` or
    # `tpu_fsdp`: the state split over all of them) or the number of devices along each axis; -1:
    # all remaining. Examples are split over both axes, the state over `model`.
    config.mesh = mesh = ConfigDict()
    mesh.preset = ""
    mesh.data = -1
    mesh.model = 1
    # Smallest number of elements for which an array of the state is split over `model`.
    mesh.split_from = 16384

    # Loggers that also get metrics.jsonl: ("tensorboard", "wandb"); each needs its package.
    config.loggers = ()
    # How often: steps between lines of metrics.jsonl, epochs between evaluations (each is followed
    # by a checkpoint), steps between further checkpoints.
    config.log_every = 10
    config.eval_every_epochs = 1.0
    config.checkpoint_every_steps = 1000
    # Latest checkpoints to keep, besides the best by top-1.
    config.checkpoints_to_keep = 2
    # A step whose loss or gradients are not finite changes nothing; after this many in a row the
    # run stops and writes nonfinite.json, which says where the first such value arises.  1: at
    # once.
    config.nonfinite_limit = 10
    # How often to go back to the last checkpoint instead, and continue with the data in another
    # order.
    config.nonfinite_rollbacks = 0
    return config
