"""The table of all hyper-parameters: key, default, what it does, and the range of its values.

Each can be set on the command line, --config.optimizer.learning_rate=0.05, or in a configuration,
config.optimizer.learning_rate = 0.05.  The other configurations change some of them.

A duration is '5 epochs', '500 steps', '1e6 examples', or a share of the run from 0 to 1.
"""

from ml_collections import ConfigDict

from densenet_jax.configs._options import ABOVE_0, Option, to_config

COUNT = 2**31 - 1
RUN = (
    Option(
        *("seed", 0, "Seed of initialisation, order, crops, augmentation and dropout."),
        range=(0, 2**32 - 1),
    ),
    Option("batch_size", 256, "Examples in a training step, over all devices.", (1, 2**20)),
    Option(
        "eval_batch_size",
        256,
        "Examples in an evaluation step, over all devices; fewer if the split has fewer.",
        (1, 2**20),
    ),
    Option("total_epochs", 90.0, "Length of the run in epochs.", (ABOVE_0, 1e6)),
    Option("total_steps", None, "Length in steps, instead of total_epochs.", (1, COUNT), int),
    Option(
        "steps_per_dispatch",
        1,
        "Steps in one call of the device, for small networks on fast devices; the results are the "
        "same. Metrics are written and signals handled when the call ends; it also ends where an "
        "evaluation or a checkpoint is due. More than 1 needs data.in_memory.",
        range=(1, 10**5),
    ),
    Option(
        "task",
        "classification",
        "What the network is trained for: `classification`, one label for each example; "
        "`multilabel`, several, each present, absent or unknown; `regression`, numbers.",
    ),
    Option(
        "loss",
        "",
        "'': the first that is named here for the task. Classification: `cross_entropy`, `focal`, "
        "or `binary_cross_entropy`, a separate loss for each class, summed. Multilabel: "
        "`binary_cross_entropy` or `focal`. Regression: `huber` or `squared_error`.",
    ),
    Option(
        "class_weights",
        "",
        "Weights of the classes in the training loss, to strengthen rare ones: numbers, or `auto`, "
        "inversely proportional to their frequency. Multilabel: weights of each label where it is "
        "present; `auto` is the number of absent examples for each present one.",
        range=(ABOVE_0, 1e6),
        kind=object,
    ),
    Option(
        "best_metric",
        "",
        "The metric that chooses the best checkpoint. Classification: `top1`, `top5` or `loss`. "
        "Multilabel: `auroc`, `average_precision` or `loss`. Regression: `mae`, `rmse`, `r2` or "
        "`loss`. '': the first of the task.",
    ),
    Option(
        "early_stopping",
        0,
        "End the run after this many evaluations without a better one; 0: never.",
        range=(0, COUNT),
    ),
    Option(
        "label_smoothing",
        0.0,
        "Share of the target spread over all classes; of a label, over present and absent.",
        range=(0, 0.999),
    ),
    Option(
        "bce_threshold",
        0.0,
        "For binary_cross_entropy: a class with a greater share of a mixed image counts as fully "
        "present; 0: shares count as they are.",
        range=(0, 0.999),
    ),
    Option(
        "ema_decay",
        0.0,
        "Decay per step of moving averages of parameters and running statistics; 0: no averages. "
        "A run with averages uses them for evaluation, predictions and exports.",
        range=(0, 0.9999999),
    ),
    Option(
        "init_from",
        "",
        "Weights to start from: a published name (densenet121.ra_in1k), hf-hub:owner/name, a file "
        "of PyTorch, Keras, MindSpore or safetensors, or another run's directory.",
    ),
)

# None: the variant's own value.
MODEL = (
    Option("model.name", "densenet121", "The variant; `python main.py models` lists them."),
    Option("model.num_classes", None, "Outputs; None: the data's number.", (1, 10**6), int),
    Option(
        "model.dropout_rate",
        None,
        "Probability to drop a value after each convolution but the first.",
        range=(0, 0.999),
        kind=float,
    ),
    Option(
        "model.drop_path_rate",
        None,
        "Probability, per image, that the last layer of the network adds zeros (stochastic depth); "
        "it is lower for earlier layers, in proportion to their position.",
        range=(0, 0.999),
        kind=float,
    ),
    Option(
        "model.dtype",
        "float32",
        "Type of the computation: `float32`, `bfloat16`, `float16` (with a scale of the loss that "
        "follows the gradients), `float64`; `auto`: bfloat16 on TPUs and recent GPUs, float16 on "
        "NVIDIA GPUs before the A100's generation (T4, V100), float32 on CPUs. On CPUs `bfloat16` "
        "is the type of products where the processor multiplies in it; float32 runs elsewhere.",
    ),
    Option("model.param_dtype", "float32", "Type of parameters and statistics."),
    Option(
        "model.growth_rate",
        None,
        "Feature maps that a layer adds: one number, or one for each block.",
        range=(1, 4096),
        kind=object,
        whole=True,
    ),
    Option(
        "model.block_sizes",
        None,
        "Number of layers of each block.",
        range=(1, 512),
        kind=tuple,
        whole=True,
    ),
    Option(
        "model.bottleneck_width",
        None,
        "Width of the layers' 1x1 convolutions in growth rates; 0: layers without bottleneck.",
        range=(0, 64),
        kind=int,
    ),
    Option(
        "model.stem",
        None,
        "What precedes the blocks: `imagenet`, `imagenet_same`, `deep`, `deep_blur`, `cifar` or "
        "`cifar_half`.",
        kind=str,
    ),
    Option("model.stem_features", None, "Feature maps of the stem.", (1, 8192), int),
    Option(
        "model.compression",
        None,
        "Share of the feature maps that a transition keeps.",
        range=(0.01, 1),
        kind=float,
    ),
    Option(
        "model.freeze_statistics",
        None,
        "For fine-tuning: normalise with the statistics of the loaded weights, and do not update "
        "them; True, False, or parts of the network, ('stem', 'block1'). None: the parts in "
        "optimizer.frozen.",
        kind=object,
    ),
    Option(
        "model.activation",
        None,
        "The function after every norm: `relu`, `silu`, `gelu` or `leaky_relu`.",
        kind=str,
    ),
    Option(
        "model.global_pool",
        None,
        "The pooling of the last feature maps: `avg`, `max`, `avgmax` or `catavgmax`.",
        kind=str,
    ),
    Option(
        "model.implementation",
        None,
        "What computes dense blocks: `reference` (plain JAX, differentiated by JAX), `plain` (JAX "
        "with the gradient written by hand), `cpu` (kernels in C++), `cpu_bfloat16` (the same, "
        "with products in bfloat16), `gpu` (fused kernels for NVIDIA GPUs); None: the fastest that "
        "runs here.",
        kind=str,
    ),
    Option(
        "model.depth",
        None,
        "Only for the family densenet_cifar: its number of layers.",
        range=(5, 2000),
        kind=int,
    ),
    Option(
        "model.bottleneck",
        None,
        "Only for the family densenet_cifar: whether its layers have bottlenecks.",
        kind=bool,
    ),
)

# None: as the weights of init_from need it, or else as is usual for ImageNet.
DATA = (
    Option(
        "data.name",
        "imagenet2012",
        "A TFDS data set; `folder` for images in data_dir/SPLIT/CLASS/* or data_dir/CLASS/*; "
        "`table` for images that a .csv, .tsv or .parquet file lists; `digits`; "
        "`hf:OWNER/NAME` (Hugging Face); `synthetic[:SIZE[:CLASSES]]`, for benchmarks.",
    ),
    Option(
        "data.data_dir",
        "",
        "TFDS's data directory, the folder of images, or the table; '': TFDS's own.",
    ),
    Option("data.train_split", "train", "Name of the training split."),
    Option("data.eval_split", "validation", "Name of the split that evaluations are made on."),
    Option(
        "data.holdout",
        0.1,
        "Share of a folder or table without splits that becomes its validation split.",
        range=(ABOVE_0, 0.999),
    ),
    Option(
        "data.folds",
        0,
        "Cross-validation of a folder or table without splits: number of folds; 0: data.holdout.",
        range=(0, 10**6),
    ),
    Option("data.fold", 0, "The fold that is the validation split, from 0.", (0, 10**6)),
    Option(
        "data.group",
        "",
        "For folders: a regular expression on an image's path in data_dir; its first parenthesis, "
        "or else its match, is the image's group, such as a patient. No group is in two splits.",
    ),
    Option("data.path_column", "path", "For tables: the column of paths, in the table's folder."),
    Option(
        "data.label_columns",
        ("label",),
        "For tables, TFDS and Hugging Face: the labels. One column has a class, a number, or for "
        "multilabel a list such as A|B; several have 1, 0, -1 or blank for each label, or numbers.",
    ),
    Option(
        "data.uncertain",
        "ignore",
        "What -1 and a blank cell mean in multilabel: `ignore` (unknown: in no loss and no "
        "metric), `zero` or `one`.",
    ),
    Option(
        "data.split_column",
        "",
        "For tables: its values (train, val, test) name the splits; '': a hash divides the rows.",
    ),
    Option(
        "data.group_column",
        "",
        "For tables: the group of each row, such as its patient. No group is in two splits.",
    ),
    Option("data.classes", (), "Classes to use, which become labels 0, 1, ...; (): all."),
    Option(
        "data.examples_per_class",
        0,
        "Number of training examples of each class, the first of the split, for few-shot "
        "learning; 0: all.",
        range=(0, 10**9),
    ),
    Option(
        "data.balanced",
        False,
        "Draw every class equally often for training, rare ones repeatedly. Multilabel: every "
        "label equally often, and the examples without any label as often as a label.",
    ),
    Option(
        "data.target_mean",
        None,
        "Regression: mean of each number in the training split; None: measured.",
        range=(-1e30, 1e30),
        kind=tuple,
    ),
    Option(
        "data.target_std",
        None,
        "Regression: standard deviation of each number in the training split; None: measured.",
        range=(ABOVE_0, 1e30),
        kind=tuple,
    ),
    Option(
        "data.image_size",
        None,
        "Height and width of the model's input images, in pixels.",
        range=(1, 8192),
        kind=int,
    ),
    Option(
        "data.train_sizes",
        (),
        "Another size for training images: one, or several for equal parts of the run one after "
        "another, (128, 160, 192, 224); (): image_size.",
        range=(1, 8192),
        whole=True,
    ),
    Option(
        "data.channels",
        3,
        "Channels of the images: 1 (grey), 3 (RGB), 4 (RGBA), or those of .npy and TIFF files.",
        range=(1, 1024),
    ),
    Option(
        "data.dtype",
        None,
        "Type of the images' numbers, `uint8`, `uint16` or `float32`; None: that of the first.",
        kind=str,
    ),
    Option(
        "data.value_range",
        (),
        "The numbers of the images that become 0 and 1, such as (0, 4095) for 12 bits; (): the "
        "ends of the type. Images of float32 need it.",
        range=(-1e30, 1e30),
    ),
    Option("data.exif", False, "Turn photographs upright as their EXIF data say."),
    Option(
        "data.random_crop",
        True,
        "Train on random crops; False: on whole images, distorted to a square, or with bands "
        "beside them if data.fit is `pad`.",
    ),
    Option(
        "data.crop_scale",
        (0.08, 1.0),
        "Smallest and largest share of the area that a random crop has.",
        range=(ABOVE_0, 1),
    ),
    Option(
        "data.fit",
        None,
        "What evaluation and predictions show of an image that is not square: `crop`, its centre; "
        "`squash`, all of it, distorted; `pad`, all of it, with bands beside it.",
        kind=str,
    ),
    Option(
        "data.eval_crop",
        None,
        "For data.fit=crop the shorter side is resized to image_size / eval_crop, and the central "
        "square is cut out.",
        range=(0.01, 1),
        kind=float,
    ),
    Option("data.interpolation", None, "`bicubic` or `bilinear`.", kind=str),
    Option(
        "data.mean",
        None,
        "Mean of each channel, for images scaled to 0..1.",
        range=(-1e6, 1e6),
        kind=tuple,
    ),
    Option(
        "data.std",
        None,
        "Standard deviation of each channel, for images scaled to 0..1.",
        range=(ABOVE_0, 1e6),
        kind=tuple,
    ),
    Option(
        "data.workers",
        0,
        "Number of processes that decode; 0: threads of the training process decode.",
        range=(0, 1024),
    ),
    Option(
        "data.in_memory",
        False,
        "Read and decode a small data set once and hold it as one array, also on every device if "
        "it fits.",
    ),
    Option("data.strict", False, "Stop at an unreadable image instead of using another one."),
)

DISTILL = (
    Option(
        "distill.teacher",
        "",
        "Knowledge distillation: a teacher, given as in init_from, that sees the same images.",
    ),
    Option(
        "distill.logits",
        "",
        "Instead of a teacher: a file with its logits, which the command `logits` writes.",
    ),
    Option(
        "distill.weight",
        0.5,
        "Weight of the teacher in the loss; the labels have the rest.",
        range=(0, 1),
    ),
    Option(
        "distill.temperature",
        1.0,
        "Divides the logits before student and teacher are compared.",
        range=(1e-3, 1e3),
    ),
)

# Augmentation inside the training step, in this order.
AUGMENT = (
    Option("augment.flip", True, "Mirror left to right with probability 1/2."),
    Option(
        "augment.pad",
        0,
        "Pad by this many pixels of zeros and crop a random window of the original size.",
        range=(0, 4096),
    ),
    Option(
        "augment.jitter",
        (0.0, 0.0, 0.0, 0.0),
        "Strengths of random brightness, contrast, saturation and hue (torchvision's ColorJitter).",
        range=(0, 100),
    ),
    Option("augment.policy", "", "`randaugment` or `trivialaugment`; '': neither."),
    Option("augment.policy_ops", 2, "Operations per image of randaugment.", (1, 16)),
    Option("augment.policy_magnitude", 9, "Strength of randaugment.", (0, 30)),
    Option("augment.erase", 0.0, "Probability that a random rectangle is painted over.", (0, 1)),
    Option("augment.mixup", 0.0, "Alpha of mixup's Beta distribution; 0: off.", (0, 1e6)),
    Option("augment.cutmix", 0.0, "Alpha of CutMix's Beta distribution; 0: off.", (0, 1e6)),
    Option("augment.mix_probability", 1.0, "Share of the images that are mixed.", (0, 1)),
)

OPTIMIZER = (
    Option(
        "optimizer.name",
        "sgd",
        "`sgd` with momentum, `adamw`, `lamb`, `lars`, `lion` or `muon`.",
    ),
    Option(
        "optimizer.learning_rate",
        0.1,
        "The largest rate, for the whole batch; or for reference_batch_size, if it is set.",
        range=(0, 1e30),
    ),
    Option(
        "optimizer.reference_batch_size",
        None,
        "The batch size that learning_rate is for: the peak grows in proportion to batch_size "
        "(Goyal et al., 2017).",
        range=(1, 2**20),
        kind=int,
    ),
    Option(
        "optimizer.schedule",
        "step",
        "`cosine` falls to 0; `step` is multiplied by step_factor at the boundaries; `polynomial` "
        "falls to 0 with power 2; `constant`; `one_cycle` rises for `warmup` and falls for the "
        "rest; `warmup_stable_decay` is constant, then falls linearly to 0 over `decay`.",
    ),
    Option(
        "optimizer.step_boundaries",
        (1 / 3, 2 / 3),
        "Durations from the start of the run after which the schedule `step` drops.",
    ),
    Option("optimizer.step_factor", 0.1, "Factor of each drop of `step`.", (0, 1e6)),
    Option("optimizer.warmup", "0 epochs", "Duration of the linear warm-up from 0."),
    Option("optimizer.decay", "0.2", "Duration of the last phase of `warmup_stable_decay`."),
    Option(
        "optimizer.restarts",
        (),
        "Durations from the start of the run after which the schedule starts again at its peak, "
        "without a warm-up (Loshchilov and Hutter, 2017).",
    ),
    Option("optimizer.restart_factor", 1.0, "Factor of the peak at each restart.", (0, 1)),
    Option("optimizer.momentum", 0.9, "Momentum of sgd, lars and muon.", (0, 1)),
    Option("optimizer.nesterov", True, "Whether sgd, lars and muon use Nesterov's momentum."),
    Option(
        "optimizer.betas",
        None,
        "Decays of the moments of adamw, lamb, lion and the adamw in muon; None: the usual ones.",
        range=(0, 0.9999999),
        kind=tuple,
    ),
    Option(
        "optimizer.epsilon",
        None,
        "Added to the root of the second moment by adamw, lamb and the adamw in muon; None: the "
        "usual number.",
        range=(0, 1e6),
        kind=float,
    ),
    Option(
        "optimizer.weight_decay",
        1e-4,
        "Decay of kernels; scales and biases do not decay.",
        range=(0, 1e6),
    ),
    Option(
        "optimizer.clip_norm",
        0.0,
        "Largest L2 norm of all gradients of a step together; 0: no limit.",
        range=(0, 1e30),
    ),
    Option(
        "optimizer.layer_decay",
        1.0,
        "Factor of the learning rate from each part of the network (head and last norm, last "
        "block, ..., first block, stem) to the one before it, for fine-tuning.",
        range=(ABOVE_0, 1),
    ),
    Option(
        "optimizer.accumulate",
        1,
        "Number of micro-batches of a step, processed one after another: only one at a time needs "
        "memory, and gradients are averaged over all.",
        range=(1, 2**20),
    ),
    Option(
        "optimizer.frozen",
        (),
        "Parts that do not train and keep their running statistics, for fine-tuning: ('stem', "
        "'block1', ..., 'norm', 'head').",
    ),
)

DEVICES = (
    Option(
        "batch_norm.group_size",
        None,
        "Number of examples that share batch statistics; None: all that are processed at the same "
        "time, on any number of devices. See docs/large_batches.md.",
        range=(1, 2**20),
        kind=int,
    ),
    Option(
        "mesh.preset",
        "",
        "`gpu` or `tpu`: all devices, the state on each; `gpu_fsdp` or `tpu_fsdp`: the state split "
        "over all devices; '': mesh.data and mesh.model decide.",
    ),
    Option(
        "mesh.data",
        -1,
        "Devices along the axis that examples are split over; -1: all remaining.",
        range=(-1, 2**20),
    ),
    Option(
        "mesh.model",
        1,
        "Devices along the axis that examples and the state are split over; -1: all remaining.",
        range=(-1, 2**20),
    ),
    Option(
        "mesh.split_from",
        16384,
        "Smallest number of elements for which an array of the state is split.",
        range=(1, COUNT),
    ),
)

RECORDS = (
    Option(
        "loggers",
        (),
        "Loggers that also get metrics.jsonl: ('tensorboard', 'wandb'); each needs its package.",
    ),
    Option("log_every", 10, "Steps between lines of metrics.jsonl.", (1, COUNT)),
    Option(
        "eval_every_epochs",
        1.0,
        "Epochs between evaluations; each is followed by a checkpoint.",
        range=(ABOVE_0, 1e6),
    ),
    Option("checkpoint_every_steps", 1000, "Steps between further checkpoints.", (1, COUNT)),
    Option(
        "checkpoints_to_keep",
        2,
        "Latest checkpoints to keep, besides the best one.",
        range=(1, 10**4),
    ),
    Option(
        "nonfinite_limit",
        10,
        "A step whose loss or gradients are not finite changes nothing; after this many in a row "
        "the run stops and writes nonfinite.json, which says where the first such value arises.",
        range=(1, COUNT),
    ),
    Option(
        "nonfinite_rollbacks",
        0,
        "How often to go back to the last checkpoint instead, and continue with the data in "
        "another order.",
        range=(0, COUNT),
    ),
)

OPTIONS = (*RUN, *MODEL, *DATA, *DISTILL, *AUGMENT, *OPTIMIZER, *DEVICES, *RECORDS)


def get_config() -> ConfigDict:
    return to_config(OPTIONS)
