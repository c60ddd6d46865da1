"""The weights that the authors have published: addresses, download and checksums.

Files are kept in the folder in which timm keeps its own (``torch.hub``'s). ``FREPRO_WEIGHTS_URL`` names a mirror, a
folder on the web (``https://...``) or on disk with files of the same names, as written by ``frepro weights fetch``:
downloads then come from there.

A file's SHA-256 is stored next to it when the file is first seen, in the form of ``sha256sum``, and compared at each
later use. The authors publish no checksums.
"""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, unquote, urlsplit
from urllib.request import Request, urlopen

import timm
from timm.models._hub import get_cache_dir
from tqdm import tqdm

from frepro.errors import FreproError, one_line, printable, unknown
from frepro.models.official import read

MIRROR = "FREPRO_WEIGHTS_URL"
TAG = "in1k"  # timm's for training on ImageNet-1K alone, which all of these are
CHUNK = 1 << 20
TIMEOUT = 60  # seconds without an answer
PATIENCE = 5  # the same, where only the size of a file is asked for

_DFFORMER = "https://github.com/okojoalg/dfformer/releases/download/weights"
_SPANET = "https://github.com/DoranLyong/SPANet-official/releases/download/ImageNet-pretrained"
_VIMF = "https://github.com/yws-wxs/Vim-F/releases/download"
_HUB = "https://huggingface.co"
_HUB_FILE = "model.safetensors"
_VIM = f"{_HUB}/hustvl"

# Model -> address of its weights.
URLS = {
    **{
        f"{family}_{size}": f"{_DFFORMER}/{family}_{size}.pth"
        for family in ("dfformer", "cdfformer")
        for size in ("s18", "s36", "m36", "b36")
    },
    **{
        f"spanet_{size.lower()}": f"{_SPANET}/spanet-{size}.pth"
        for size in ("small", "medium", "mediumX", "base", "baseX")
    },
    "vimf_v1_tiny": f"{_VIMF}/v1.0.0.2/Ti_pre_checkpoint.pth",
    "vimf_v1_small": f"{_VIMF}/v1.0.0.2/S_pre_checkpoint.pth",
    "vimf_v2_tiny": f"{_VIMF}/v1.0.0.3/v2-ti-f-ckp.pth",
    "vim_tiny": f"{_VIM}/Vim-tiny-midclstok/resolve/main/vim_t_midclstok_76p1acc.pth",
    "vim_small": f"{_VIM}/Vim-small-midclstok/resolve/main/vim_s_midclstok_80p5acc.pth",
    # Fine-tuned with half the stride, "Vim-tiny+" and "Vim-small+" in the README.
    "vim_tiny_stride8": f"{_VIM}/Vim-tiny-midclstok/resolve/main/vim_t_midclstok_ft_78p3acc.pth",
    "vim_small_stride8": f"{_VIM}/Vim-small-midclstok/resolve/main/vim_s_midclstok_ft_81p6acc.pth",
}

# Model of a paper -> models of the code that the authors released for it, which differ from the paper's description.
RELEASES = {"vimf_tiny_h": ("vimf_v1_tiny", "vimf_v2_tiny"), "vimf_small_h": ("vimf_v1_small",)}

# Prefix of models -> what their authors offer instead of files that can be downloaded by address.
ELSEWHERE = {"gfnet_": "only on cloud drives, with links in the README of https://github.com/raoyongming/GFNet"}


@dataclass(frozen=True)
class Published:
    """What the authors published for a model.

    Attributes:
        model: Name of the model that the weights fit, which may be a release of the model asked for.
        url: Address; ``None`` if no weights can be downloaded.
        said: The address in words, or why there is none.
    """

    model: str
    url: str | None
    said: str

    @property
    def file(self) -> str | None:
        return None if self.url is None else file_name(self.url)


def of_model(model: str) -> list[Published]:
    """Return what the authors of a frepro model published for it; one entry without address if that is nothing."""
    if model in RELEASES:
        return [Published(name, URLS[name], URLS[name]) for name in RELEASES[model]]
    if model in URLS:
        return [Published(model, URLS[model], URLS[model])]
    said = next((said for prefix, said in ELSEWHERE.items() if model.startswith(prefix)), "not published")
    return [Published(model, None, said)]


def of_timm(model: str, tag: str) -> Published:
    """Return the weights of one of timm's models, by tag; ``model`` of the result includes the tag.

    Raises:
        FreproError: timm has no such weights.
    """
    name = f"{model}.{tag}"
    if name not in timm.list_pretrained(f"{model}.*"):
        raise unknown("weights of timm", name, timm.list_pretrained(f"{model}.*"))
    config: Any = timm.get_pretrained_cfg(name)
    url = config.url
    if config.hf_hub_id:
        url = f"{_HUB}/{config.hf_hub_id}/resolve/main/{config.hf_hub_filename or _HUB_FILE}"
    return Published(name, url, url)


def model_of(file: str) -> str | None:
    """Return the model whose weights are published as a file of this name; ``None`` for any other name."""
    return next((model for model, url in URLS.items() if file_name(url) == file), None)


def unavailable(model: str) -> FreproError:
    """Return the error for a model whose weights cannot be downloaded."""
    (found, *others) = of_model(model)
    if found.url is not None:
        names = " or ".join(f"{each.model}.{TAG}" for each in (found, *others))
        return FreproError(f"the authors' weights for {model} fit the code that they released: use {names}")
    way = f'give a file with frepro.load_official("{model}", "{model}.pth"), or use pretrained=False'
    return FreproError(f"no weights of {model} can be downloaded ({found.said}): {way}")


def file_name(url: str) -> str:
    """Return the name of the file at an address.

    timm's files on the hub all have the same name; they take the name of their repository, "convnext_tiny.fb_in1k".
    """
    path = PurePosixPath(unquote(urlsplit(url).path))
    return f"{path.parts[2]}{path.suffix}" if path.name == _HUB_FILE and len(path.parts) > 2 else path.name


def cached(url: str) -> Path:
    """Return the path at which timm's folder of weights has the file of an address, once it has been downloaded."""
    return Path(get_cache_dir()) / file_name(url)


def address(url: str) -> str:
    """Return the address that a file is downloaded from: its own, or that in the mirror."""
    mirror = os.environ.get(MIRROR, "").rstrip("/")
    if mirror and "://" not in mirror:
        mirror = Path(mirror).absolute().as_uri()
    return f"{mirror}/{quote(file_name(url))}" if mirror else url


def size(url: str) -> int | None:
    """Return the size of a published file in bytes, as the server states it; ``None`` if it does not answer."""
    try:
        request = Request(address(url), headers={"User-Agent": "frepro"}, method="HEAD")
        with urlopen(request, timeout=PATIENCE) as answer:
            length = answer.headers.get("Content-Length") or ""
    except (OSError, HTTPException, ValueError):
        return None
    return int(length) if length.isdigit() else None


def fetch(model: str, url: str, folder: str | Path | None = None) -> Path:
    """Return the path of a file of weights, which is downloaded unless it is there already.

    Args:
        model: Name of the model, for messages.
        url: Published address of the file.
        folder: Folder of the file; ``None`` for that of timm.

    Raises:
        FreproError: The file cannot be downloaded completely or stored, holds no readable weights, or is not the one
            whose checksum was recorded.
    """
    try:
        folder = Path(get_cache_dir() if folder is None else folder)
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / file_name(url)
        if not file.exists():
            _download(model, url, file)
        _check(file, url)
    except OSError as error:
        raise FreproError(f"{folder} cannot hold weights: {one_line(error)}: give another folder") from error
    return file


def _download(model: str, url: str, file: Path) -> None:
    """Download a file under a temporary name, and give it its own only if it is complete and readable."""
    source, way = address(url), _way(model, file.name)
    # Another process may download the same file. The suffix tells ``read`` the format.
    number, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.stem}.", suffix=file.suffix)
    try:
        with os.fdopen(number, "wb") as target:
            for chunk in _chunks(source, file.name, way):
                target.write(chunk)
        try:
            read(temporary)
        except FreproError as error:
            said = str(error).replace(temporary, "the file")
            raise FreproError(f"{file.name} from {source} is unusable ({said}), nothing was kept: {way}") from error
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp gives access to the user alone
        os.replace(temporary, file)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _way(model: str, name: str) -> str:
    return (
        f'download it elsewhere and give its path, frepro.load_official("{model}", "{name}") or '
        f"CHECKPOINT=/path/to/{name}, or set {MIRROR} to the address of a mirror"
    )


class NoAnswerError(FreproError):
    """A host cannot be reached."""


def no_answer(model: str, url: str) -> NoAnswerError:
    """Return the error for a file on a host that has just not answered a request for another one."""
    name = file_name(url)
    return NoAnswerError(f"{name} cannot be downloaded from {address(url)} (no answer before): {_way(model, name)}")


def _chunks(source: str, name: str, way: str) -> Iterator[bytes]:
    """Yield the content of a file at an address, and show progress on a terminal.

    Raises:
        FreproError: The connection fails or ends early. The message ends with ``way``.
    """
    received, expected = 0, None
    try:
        request = Request(source, headers={"User-Agent": "frepro"})
        with urlopen(request, timeout=TIMEOUT) as answer:
            length = answer.headers.get("Content-Length") or ""
            expected = int(length) if length.isdigit() else None
            with tqdm(total=expected, desc=name, unit="B", unit_scale=True, disable=None, leave=False) as bar:
                while chunk := answer.read(CHUNK):
                    received += len(chunk)
                    bar.update(len(chunk))
                    yield chunk
        if expected not in (None, received):
            raise ConnectionError(f"the transfer ended after {received:,} of {expected:,} bytes")
    except (OSError, HTTPException, ValueError) as error:  # ValueError: not an address
        reason = error.reason if isinstance(error, URLError) and not isinstance(error, HTTPError) else error
        said = printable(reason) if reason is not error or isinstance(error, OSError) else one_line(error)
        is_silent = received == 0 and isinstance(error, URLError | TimeoutError) and not isinstance(error, HTTPError)
        kind = NoAnswerError if is_silent and urlsplit(source).netloc else FreproError
        raise kind(f"{name} cannot be downloaded from {source} ({said}): {way}") from error


def _check(file: Path, url: str) -> None:
    """Record the checksum of a file that is seen for the first time; compare that of any other."""
    record = file.with_name(f"{file.name}.sha256")
    with file.open("rb") as content:
        found = hashlib.file_digest(content, "sha256").hexdigest()
    if not record.exists():
        record.write_text(f"{found}  {file.name}\n", encoding="utf-8")
        return
    known = record.read_text(encoding="utf-8", errors="replace").split(maxsplit=1)
    if known[:1] != [found]:
        raise FreproError(
            f"{file}, from {address(url)}, has SHA-256 {found[:16]}..., not the recorded "
            f"{printable(known[0] if known else 'nothing')[:16]}...: delete it to download it again, "
            f"and {record.name} too if the new file is to be trusted, or give a file by path (frepro.load_official)"
        )
