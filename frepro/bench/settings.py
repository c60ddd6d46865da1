"""The extent of the benchmark."""

from dataclasses import dataclass

from frepro.bench import scaling
from frepro.bench.results import PEERS

OTHERS = (
    "convformer_s18",
    "deit_small_patch16_224",
    "swin_tiny_patch4_window7_224",
    "convnext_tiny",
)


@dataclass(frozen=True)
class Settings:
    """What is timed, and how often.

    Attributes:
        rounds: Number of timed turns of each side after its warm-up.
        training_rounds: The same for training steps, which take most of the time.
        batch_size: Batch size of operations and models.
        img_size: Image size of operations and models, in pixels.
        least: Minimum duration in seconds of an operation's turn.
        maps: Height, width and channels of the stages whose operations are timed.
        scan: Channels, length and state of the selective scan; also used for its convolution.
        product: Rows and columns of the matrices that measure the machine's matrix multiplication speed.
        copied: Bytes that are copied to measure memory bandwidth; more than fit in the caches.
        ours: Our models.
        others: Models from timm in addition to their peers.
        compiled: Models that are also timed compiled, and on a CPU in bfloat16; compiling takes a minute each.
        by_resolution: Models that are timed at all ``resolutions``, with ``resolution_batch`` images at a time.
    """

    rounds: int = 5
    training_rounds: int = 3
    batch_size: int = 8
    img_size: int = 224
    least: float = 0.05
    maps: tuple[tuple[int, int, int], ...] = ((56, 56, 64), (28, 28, 128), (14, 14, 320), (7, 7, 512))
    scan: tuple[int, int, int] = (384, 197, 16)
    product: int = 2048
    copied: int = 2**28
    ours: tuple[str, ...] = (*PEERS, "gfnet_h_ti")
    others: tuple[str, ...] = OTHERS
    compiled: tuple[str, ...] = (
        *("dfformer_s18", "spanet_small", "caformer_s18"),
        *("vimf_tiny_h", "deit_tiny_patch16_224"),
    )
    by_resolution: tuple[str, ...] = (*scaling.MODELS, *scaling.VIM)
    resolutions: tuple[int, ...] = (224, 384, 512, 768, 1024)
    resolution_batch: int = 1


def full(device: str) -> Settings:
    """Return the settings of the complete benchmark, which takes minutes.

    On a GPU, they follow DFFormer's Figures 5 and 6, with larger batches and matrices.
    """
    if device == "cpu":
        return Settings()
    resolutions = (224, 384, 512, 768, 1024, 1280, 1536, 2048)
    return Settings(batch_size=64, product=8192, copied=2**31, resolutions=resolutions, resolution_batch=4)


SMOKE = Settings(
    rounds=2,
    training_rounds=2,
    batch_size=1,
    img_size=64,
    least=0.0,
    maps=((14, 14, 16),),
    scan=(8, 17, 4),
    product=64,
    copied=2**16,
    ours=("dfformer_s18", "vim_tiny"),
    others=(),
    compiled=("deit_tiny_patch16_224",),
    by_resolution=(
        *("dfformer_s18", "cdfformer_s18", "caformer_s18", "convformer_s18"),
        *("vim_tiny", "deit_tiny_patch16_224"),
    ),
    resolutions=(32, 64),
)
