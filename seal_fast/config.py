"""The configuration of a run: one flat frozen dataclass whose fields are the flags of `python -m seal_fast.train`."""

from __future__ import annotations

import tomllib
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from seal_fast.methods import METHODS
from seal_fast.utils.errors import UsageError, did_you_mean
from seal_fast.utils.files import read_text

if TYPE_CHECKING:
    Method = str
else:
    Method = Literal[(*METHODS, "timeline")]  # the last: what --timeline names


@dataclass(frozen=True)
class Config:
    """Everything that decides a run. Defaults are the papers' shared recipe (SEAL, arXiv 2304.04858)."""

    method: Method = "seal"
    """Training method; `python -m seal_fast timeline --method M` explains it and its options."""
    option: str = ""
    """Options of the method, such as keep=0.5,anew=true; may be given several times."""
    timeline: Path | None = None
    """TOML file with a timeline to train in place of a method; a run's timeline.toml is one."""
    model: str = "resnet18"
    """Network: resnet18, resnet34, resnet50, wrn-D-K (wrn-28-10), densenet-bc-D-K (densenet-bc-100-12), densenet121,
    densenet169, vgg16-bn, convnext-tiny, vit-tiny, or package.module:factory(option=value) of your own."""
    width: float = 1.0
    """Factor on the channels of a registered network."""
    stem: Literal["imagenet", "small"] = "imagenet"
    """First layers of ResNets, densenet121 and -169, ConvNeXt and ViT: imagenet (of stride 4; ViT: 16) or small (of
    stride 1; ConvNeXt: 2; ViT: 4) for small images. The others have their papers' layers."""
    data: str = "auto"
    """auto (Tiny-ImageNet in $SEAL_FAST_DATA or ./data, else digits), digits, a folder or .tar of a data set, or
    a pattern such as '{train,val}-{000..012}.tar' of WebDataset shards or parquet files."""
    image_size: int | None = None
    """Side of the square input in pixels; default: the images' own if all agree, else 64."""
    input: Literal["auto", "resident", "stream"] = "auto"
    """resident (decoded once, kept on the device), stream (decoded every epoch), or auto (by size)."""
    generations: int = 10
    """Number of generations."""
    epochs: int = 160
    """Epochs a generation."""
    ascent_epochs: float = 0.25
    """Length of the ascent in epochs, or below 1 as a fraction of a generation."""
    ascent_scale: float = 0.01
    """Factor on the learning rate of the ascending group (the paper's S)."""
    ascent_weight_decay: float = 0.0
    """Weight decay of the ascending group; may be negative."""
    layer_threshold: str = "layer3"
    """First module of the late group; every parameter before it in forward order is early. `python -m seal_fast layers`
    lists the modules."""
    reinit: Literal["kaiming-uniform", "he-normal"] = "kaiming-uniform"
    """What new weights are drawn from by LLF, KE, DNR, RIFLE, fc-reset and perturb: kaiming-uniform (their released
    code's) or he-normal (the initial weights')."""
    lr: float = 0.1
    """Peak learning rate."""
    lr_curve: str = "cosine"
    """Learning rate after the warm-up: cosine (to zero at the end of a generation), constant, or steps such as
    0.1@80,120 (times 0.1 from epoch 80 of the generation on, and again from 120 on)."""
    momentum: float = 0.9
    """SGD momentum."""
    weight_decay: float = 5e-4
    """Weight decay on every parameter."""
    warmup_epochs: float = 0.125
    """Linear warm-up in epochs, or below 1 as a fraction of a generation (the papers' 20 of 160)."""
    batch_size: int = 32
    """Images a step, over all processes."""
    accumulate: int = 1
    """Compute each step in so many parts, to fit in memory; BatchNorm then sees a part at a time."""
    sync_batchnorm: bool = False
    """Under torchrun, BatchNorm statistics over all processes: the numbers of one process, for more communication."""
    ema: float = 0.0
    """Keep averages of weights and BatchNorm statistics with this factor on the old average, updated every step from
    the initial values on; they are evaluated (val_ema_*) and saved (*-ema.safetensors) beside the others. 0: none."""
    label_smoothing: float = 0.1
    """Label smoothing of the cross entropy, in training and evaluation."""
    dropout: float = 0.0
    """Set this share of the features before the classifier to zero in training (registered networks only)."""
    mixup: float = 0.0
    """Train on mixtures of two images and their labels, in shares drawn each step from Beta(A, A), A being this number;
    0: none. train_loss and train_top1 are then of the mixtures."""
    seed: int = 0
    """Decides initial weights, data order, augmentation and re-initialisation."""
    amp: bool = False
    """Run the network under autocast."""
    amp_dtype: Literal["bfloat16", "float16"] = "bfloat16"
    """Type that autocast computes in; float16 brings a gradient scaler."""
    compile: bool = False
    """Compile the step with torch.compile: two graphs for the whole run."""
    dtype: Literal["float32", "float64"] = "float32"
    """Type of parameters and, without --amp, of the computation; float64 is for verification."""
    augmentation: Literal["auto", "none", "pad-crop", "resized-crop"] = "auto"
    """none, pad-crop, resized-crop (torchvision's), with flips where the set allows; auto: resized-crop from 128 px."""
    shuffle: bool = True
    """A new order every epoch; --no-shuffle feeds the images in sorted path order."""
    init_weights: Path | None = None
    """Start from these weights, a .safetensors file with torchvision's names."""
    init_fc: bool = True
    """Take the last layer from --init-weights too; --no-init-fc starts with a fresh one, for other classes."""
    eval_every: int = 2
    """Evaluate every so many epochs; the last epoch of a phase is always evaluated."""
    eval_batch_size: int | None = None
    """Images an evaluation step; default: the larger of the batch size and 256, on a GPU 1024 at up to 64 pixels."""
    holdout: float = 0.0
    """Choose the best epoch on this share of each class's training images, left out of training; the test set is then
    evaluated once a generation only. 0: choose it on the test set, as the papers do."""
    per_class: int | None = None
    """Train on this many images of each class, drawn once for all seeds."""
    limit_train: int | None = None
    """Train on this many images, evenly spaced over the sorted paths."""
    label_noise: float = 0.0
    """Give this share of the training images a wrong label, drawn once for all seeds."""
    on_bad_image: Literal["error", "skip"] = "error"
    """What to do with an image that cannot be decoded: stop and name it, or skip, count and list it."""
    out: Path | None = None
    """Run folder; default runs/<data>-<model>-<method>-<time>."""
    resume: Literal["auto", "never"] = "auto"
    """auto continues the run found in --out; never refuses to touch an existing run."""
    keep: Literal["generations", "ascents", "none"] = "generations"
    """Weights to keep: at each generation's end, at each ascent's end too, or only last and best."""
    checkpoint_seconds: float = 60.0
    """Checkpoint at least this often, in seconds, and at every generation's end."""
    log_every: int = 50
    """Read the training counters from the device every so many steps."""
    log_norms: bool = False
    """Log squared norms by group, each the mean over the epoch's steps: grad_norm2_GROUP of the gradient (unscaled,
    before weight decay), update_norm2_GROUP of the weights' change. A step that the gradient scaler skips is zero."""
    record_examples: bool = False
    """Record of every training example when it is learnt, how often it is forgotten, and its margins; a file for each
    generation in examples/, which the analysis `examples` reads."""
    hessian_every: int = 0
    """Log the Hessian's extreme eigenvalues every so many generations, at the end of each phase; 0: never."""
    hessian_images: int = 128
    """Training images for --hessian-every, evenly spaced and not augmented."""
    profile: bool = False
    """Write a profiler trace of a few steps, for TensorBoard's PyTorch Profiler plugin."""
    wandb: bool = False
    """Also log to Weights & Biases (needs the wandb extra)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto takes CUDA when there is one."""
    deterministic: bool = False
    """On a GPU, the same bits in every run and after every resume, for some of the speed; a CPU gives them anyway."""
    kernels: Literal["auto", "reference", "native", "triton"] = "auto"
    """Implementation of the update and the augmentation (which has no native one); auto takes the device's best."""
    threads: int | None = None
    """CPU threads; default: as many as the process may run on, shared with torchrun's other processes."""
    dist_timeout: float = 300.0
    """Under torchrun, seconds to wait for another process before giving up."""

    def selection(self) -> dict[str, Any]:
        """Which images and labels the run trains on: the arguments of `seal_fast.data.select`."""
        return {n: getattr(self, n) for n in ("holdout", "per_class", "limit_train", "label_noise")}

    @property
    def chosen_on(self) -> str:
        """The images on which the best epoch is chosen."""
        return "held-out training images" if self.holdout else "the test set"

    def ascent(self) -> int:
        """Length of the ascent phase in epochs."""
        return _epochs(self.ascent_epochs, self.epochs)

    def warmup(self) -> int:
        """Length of the warm-up in epochs."""
        return _epochs(self.warmup_epochs, self.epochs)


_TYPES = get_type_hints(Config)
# Flags that say where and how a run executes, not what it computes: a resumed run may change them.
EXECUTION = frozenset(
    "out resume keep checkpoint_seconds log_every log_norms hessian_every hessian_images profile wandb threads "
    "dist_timeout deterministic data init_weights on_bad_image timeline".split()
)


def _epochs(value: float, generation: int) -> int:
    """Epochs as given, or a fraction of a generation: the nearest whole number, but neither none nor all of it."""
    if value == 0 or value >= 1:
        return int(value)
    return min(max(1, round(value * generation)), generation - 1)


def flag(name: str) -> str:
    """A field's name as typed on the command line."""
    return "--" + name.replace("_", "-")


def to_dict(config: Config) -> dict[str, Any]:
    """Plain values by field name, unset ones left out: what config.toml holds."""
    values = {name: str(v) if isinstance(v, Path) else v for name, v in asdict(config).items()}
    return {name: v for name, v in values.items() if v is not None}


def override(base: Config, values: dict[str, Any], source: str) -> Config:
    """`base` with some fields replaced; UsageError, which `source` begins, for an unknown field or a wrong value."""
    changed: dict[str, Any] = {}
    for name, value in values.items():
        key = name.replace("-", "_")
        if key == "augment" and isinstance(value, bool):  # its name in older runs
            key, value = "augmentation", "auto" if value else "none"
        if key not in _TYPES:
            raise UsageError(f"{source}: unknown setting {name}{did_you_mean(key, _TYPES)}")
        changed[key] = _typed(_TYPES[key], value, f"{source}: {name} = {value!r}")
    return replace(base, **changed)


def _typed(hint: Any, value: Any, what: str) -> Any:
    """A TOML value as the type that a field declares."""
    if get_origin(hint) is UnionType:
        hint = next(a for a in get_args(hint) if a is not type(None))
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise UsageError(f"{what} must be one of {', '.join(get_args(hint))}")
        return value
    accepts = {float: (int, float), Path: str}.get(hint, hint)
    if not isinstance(value, accepts) or (isinstance(value, bool) and hint is not bool):
        kind = {bool: "true or false", int: "a whole number", float: "a number"}.get(hint, "a string")
        raise UsageError(f"{what} must be {kind}")
    return hint(value)


def load(path: Path, base: Config) -> Config:
    """A configuration file over `base`; UsageError if it is missing, not TOML, or holds an unknown setting."""
    try:
        values = tomllib.loads(read_text(path))
    except OSError as error:
        raise UsageError(f"--config {path}: cannot be read ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"--config {path}: not a TOML file ({error})") from None
    if isinstance(values.get("timeline"), str):  # a run's config.toml names the file beside it
        values["timeline"] = str(path.parent / values["timeline"])
    return override(base, values, f"--config {path}")


def dumps(config: Config) -> str:
    """The configuration as TOML that runs again as it is; where it ran is left out."""
    import tomli_w

    return tomli_w.dumps(to_dict(replace(config, out=None, resume="auto")))


def difference(old: Config, new: Config) -> list[str]:
    """The settings that make two configurations different trainings, as `flag: old -> new`.

    A new value of auto, or no size, is no contradiction: it resolves to what the old run resolved it to. More
    generations are none either: a run may go on, if its timeline says the same about what is trained
    (`Timeline.extends`).
    """
    pairs = [(f.name, getattr(old, f.name), getattr(new, f.name)) for f in fields(Config) if f.name not in EXECUTION]
    return [
        f"{flag(name)}: {before} -> {after}"
        for name, before, after in pairs
        if before != after
        and after != "auto"
        and not (name in ("image_size", "eval_batch_size") and after is None)
        and not (name == "generations" and after > before)
    ]
