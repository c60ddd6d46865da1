"""Evidence from the benchmark on speed and memory against resolution.

The claim of DFFormer's Figures 5 and 6 is that, with growing resolution, CAFormer loses throughput and needs memory far
more than ConvFormer does, whereas DFFormer and CDFFormer do not. Each model is therefore expressed relative to
ConvFormer at each resolution, and the change of this ratio from the lowest resolution to the highest is tested. Vim,
whose cost is linear in the number of tokens, is compared with DeiT-Ti at each resolution.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from frepro import papers
from frepro.bench.results import Found, Line, folders, read
from frepro.experiment.claims import Outcome
from frepro.experiment.statistics import paired

BASE, ATTENTION, DEIT = "convformer_s18", "caformer_s18", "deit_tiny_patch16_224"
# The models of DFFormer's figures, and those whose cost is linear in the number of tokens next to transformers.
MODELS = ("dfformer_s18", "cdfformer_s18", "gfformer_s18", ATTENTION, BASE)
VIM = ("vim_tiny", "vimf_tiny_h", DEIT, "deit_small_patch16_224")


def machines(profile: str, log: Callable[[str], None] = print) -> dict[str, Found]:
    """Return the results of DFFormer's models by machine: for each instruction set of a CPU, and a GPU, as measured.

    If there are none, and in profile smoke, a tiny benchmark runs on this machine's CPU. It shows that everything
    works, but says nothing about larger images.
    """
    stored = folders() if profile != "smoke" else []
    found = [read(source) for source in stored if (source / "resolution.csv").exists()]
    if not found:
        from frepro.bench import run  # torch takes seconds

        found = [run.run("cpu", only="resolution/*former_*", smoke=True, log=log)[0]]
    return {each.machine: only(each, MODELS) for each in found}


def only(found: Found, models: Sequence[str]) -> Found:
    """Return the results by resolution of some models."""
    rounds = {key: times for key, times in found.rounds.items() if key.section == "resolution" and key.name in models}
    return Found([line for line in found.section("resolution") if line.name in models], rounds, found.provenance)


def lines(machines: Mapping[str, Found]) -> dict[str, list[Line]]:
    """Return the rows by resolution of each machine."""
    return {machine: found.section("resolution") for machine, found in machines.items()}


def throughput(machines: Mapping[str, Found]) -> list[dict[str, Any]]:
    """Return images per second of every model at every resolution, median and range over the rounds, as plain rows."""
    return [
        {
            "machine": machine,
            "model": line.name,
            "resolution": int(line.size),
            "batch": line.images,
            "images_per_second": line.images_per_second,
            "least": line.least_images_per_second,
            "greatest": line.greatest_images_per_second,
            "rounds": line.rounds,
        }
        for machine, of_machine in lines(machines).items()
        for line in of_machine
    ]


def memory(machines: Mapping[str, Found]) -> list[dict[str, Any]]:
    """Return the memory of every model at every resolution in MiB, as plain rows."""
    return [
        {
            "machine": machine,
            "model": line.name,
            "resolution": int(line.size),
            "batch": line.images,
            "weights_mib": line.weights_mib,
            "forward_mib": line.forward_mib,
            "peak_mib": line.peak_mib,
        }
        for machine, of_machine in lines(machines).items()
        for line in of_machine
    ]


def sources(machines: Mapping[str, Found]) -> list[dict[str, Any]]:
    """Return how each machine's results were measured, for an illustration's origin."""
    return [
        {
            "machine": machine,
            "measured": found.provenance["time"],
            "commit": str(found.provenance["commit"])[:12],
            "threads": found.provenance["device"]["threads"],
            "batch": found.provenance["settings"]["resolution_batch"],
            "rounds": found.provenance["settings"]["rounds"],
        }
        for machine, found in machines.items()
    ]


def stands_in(machines: Mapping[str, Found]) -> str:
    """Return which machines replace the paper's."""
    said = [f"{source['machine']} (batches of {source['batch']})" for source in sources(machines)]
    return f"{' and '.join(said)} for the paper's V100 (batches of 4)"


def faster(found: Found, better: str, worse: str) -> list[Outcome]:
    """Return for each resolution how much more throughput a model has than another, tested round by round.

    The verdicts are on the claim that ``better`` is faster; ``published`` selects those that the paper makes.
    """
    table = papers.load("dfformer").tables[2]  # for the names of the models

    def label(model: str) -> str:
        return str(table.value(row, "label")) if (row := table.row(model)) else model

    rows = label(better), label(worse)
    others = {line.size: line for line in found.section("resolution", name=worse)}
    outcomes = []
    for line in found.section("resolution", name=better):
        other, images = others.get(line.size), line.images
        if other is None or images is None:
            continue
        times = [found.rounds.get(each.key, ()) for each in (line, other)]
        if not all(times):
            continue
        rates = [[images / seconds for seconds in values] for values in times]
        claim = papers.Claim(better, worse, f"{rows[0]} is faster at {line.size} pixels.", "throughput")
        outcomes.append(Outcome(claim, rows, "img/s", None, *paired(rates[0], rates[1]), len(rates[0]), found.machine))
    return outcomes


def published(found: Found, model: str) -> list[Outcome]:
    """Return the outcomes for what the paper claims about one of its own models and CAFormer, in the paper's direction.

    At 224 pixels, the lowest resolution, CAFormer is faster (Table 2, "Advantages at Higher Resolutions"). At high
    resolution, for which the highest measured one is tested, the paper's own model is.
    """
    slower, quicker = faster(found, ATTENTION, model), faster(found, model, ATTENTION)
    return [*slower[:1], *quicker[-1:]] if len(quicker) > 1 else slower[:1]


def overtakes(outcomes: Sequence[Outcome]) -> str:
    """Return the resolution from which a model is faster, in words; ``outcomes`` are in order of resolution."""
    count = 0
    while count < len(outcomes) and outcomes[-1 - count].verdict == "agrees":
        count += 1
    if count == 0:
        return "not faster at the greatest resolution measured"
    where = outcomes[-count].claim.text.partition(" is faster ")[2].rstrip(".")
    return f"faster {where} and beyond" if count < len(outcomes) else f"faster at all resolutions, {where} already"


@dataclass(frozen=True)
class Share:
    """A multiple of ConvFormer's value: median, minimum and maximum over the rounds (``None`` if measured once)."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def limits(self) -> tuple[float, float] | None:
        """Minimum and maximum; ``None`` if it was measured once."""
        return None if self.low is None or self.high is None else (self.low, self.high)


def shares(found: Found, quantity: str) -> dict[str, dict[int, Share]]:
    """Return model -> resolution -> "throughput" or "memory" as a multiple of ConvFormer's, if both were measured."""
    of_section = found.section("resolution")
    base = {line.size: line for line in of_section if line.name == BASE}
    result: dict[str, dict[int, Share]] = {}
    for line in of_section:
        if line.size in base and (share := _share(found, line, base[line.size], quantity)):
            result.setdefault(line.name, {})[int(line.size)] = share
    return result


def _share(found: Found, line: Line, base: Line, quantity: str) -> Share | None:
    if quantity == "memory":
        return None if line.peak_mib is None or base.peak_mib is None else Share(line.peak_mib / base.peak_mib)
    if line.key not in found.rounds or base.key not in found.rounds:
        return None
    ratios = [b / a for a, b in zip(found.rounds[line.key], found.rounds[base.key], strict=True)]
    return Share(median(ratios), min(ratios), max(ratios))


def change(first: Share, last: Share) -> Share:
    """Return the factor by which a share has changed; the range uses the rounds that are farthest apart."""
    value = last.value / first.value
    if first.limits is None or last.limits is None:
        return Share(value)
    (first_low, first_high), (last_low, last_high) = first.limits, last.limits
    return Share(value, last_low / first_high, last_high / first_low)


def stays_closer(mine: Share, attention: Share, quantity: str) -> str:
    """Return the verdict on the claim that throughput falls less, or memory grows less, than with attention.

    The arguments are results of ``change``.
    """
    better, worse = (attention, mine) if quantity == "memory" else (mine, attention)
    if better.limits is None or worse.limits is None:
        return "undecided"
    (better_low, better_high), (worse_low, worse_high) = better.limits, worse.limits
    if better_low > worse_high:
        return "agrees"
    return "disagrees" if better_high < worse_low else "undecided"


def written_out(resolutions: Sequence[int]) -> list[dict[str, Any]]:
    """Return the memory in MiB that a forward pass of CAFormer adds on this machine's CPU, for one image.

    It is measured with attention as computed by torch, and with the complete attention matrix in memory.
    """
    from frepro.analysis.memory import forward_memory  # torch takes seconds

    return [
        {
            "resolution": size,
            "a tile at a time (MiB)": forward_memory(ATTENTION, size, 1, "cpu")["forward"],
            "written out (MiB)": forward_memory(ATTENTION, size, 1, "cpu", fused_attn=False)["forward"],
        }
        for size in resolutions
    ]
