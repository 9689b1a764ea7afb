"""The numbers of `eosin doctor` as rows of text: the terminal and the page show the same ones."""

from __future__ import annotations

from typing import NamedTuple

from eosin.report.doctor import Diagnosis, ScaleReport, SlideReport
from eosin.report.doctor_machine import Machine
from eosin.report.page import number
from eosin.slides.anatomy import HALVED_WORK, Serving, StoredLevel
from eosin.tiles.speed import ScaleSpeed
from eosin.training.starvation import SPARE, Starvation

Line = tuple[str, str]


class Rows(NamedTuple):
    """A table: its head, its rows, which columns are numbers."""

    head: list[str]
    rows: list[list[str]]
    numeric: tuple[int, ...]


def share(value: float) -> str:
    """A share as percent, "–" where there is none."""
    return "–" if value != value else f"{value:.0%}"


def times(value: float) -> str:
    """A factor, "–" where there is none."""
    return "–" if value != value else f"{value:.1f}×"


def slide_lines(slide: SlideReport) -> list[Line]:
    """What the file is."""
    told = slide.anatomy
    wide, high = slide.width * slide.mpp_x / 1000, slide.height * slide.mpp_y / 1000
    square = abs(slide.mpp_x / slide.mpp_y - 1) < 1e-3
    mpp = f"{slide.mpp_x:.4g}" if square else f"{slide.mpp_x:.4g} × {slide.mpp_y:.4g}"
    doubt = "doubtful" if told.doubts else "believable"
    size = "" if slide.bytes is None else f", {_bytes(slide.bytes)}"
    power = f"; objective {told.power:g}×" if told.power else ""
    return [
        ("format", f"{told.vendor}{size}"),
        ("size", f"{slide.width:,} × {slide.height:,} px, {wide:.1f} × {high:.1f} mm"),
        (
            "scale",
            f"{mpp} µm/px by {told.mpp_source}, {doubt}" + power,
        ),
        ("reader", f"{told.reader}: {told.why_reader}"),
        ("tissue", f"{slide.tissue_mm2:.3g} mm², {slide.tissue_share:.0%} of the slide"),
    ]


def level_rows(levels: tuple[StoredLevel, ...]) -> Rows:
    """The stored levels."""
    head = ["level", "px", "µm/px", "tiles", "compression", "bits a px"]
    rows = [
        [
            str(level.number),
            f"{level.width:,} × {level.height:,}",
            f"{level.mpp:.4g}",
            "not in tiles" if level.tile is None else "{} × {}".format(*level.tile),
            " ".join(word for word in (level.compression, level.subsampling) if word),
            number(level.bits, 2),
        ]
        for level in levels
    ]
    return Rows(head, rows, (0, 2, 5))


def scale_rows(scales: list[ScaleReport]) -> Rows:
    """What each wanted scale is read from, and what that costs."""
    head = ["tiles at µm/px", "read from", "stored tiles", "decoding", "side by side"]
    rows = []
    for scale in scales:
        how = scale.serving
        touched = number(how.touched, 2)
        rows.append([f"{how.mpp:g}", read_from(how), touched, times(how.cost), number(scale.side_by_side, 9)])
    return Rows(head, rows, (0, 2, 3, 4))


def read_from(how: Serving) -> str:
    """The level that serves a scale, in words."""
    if how.level is None:
        return "not offered: the slide is coarser"
    exact = abs(how.read_mpp / how.mpp - 1) < 0.05
    words = "" if exact else ", resampled"
    if how.halved:
        return f"{how.read_mpp:.4g} µm/px, decoded at half size{words}"
    return f"level {how.level}, {how.read_mpp:.4g} µm/px{words}"


def speed_rows(scales: list[ScaleReport], visit_tiles: int) -> Rows:
    """How fast a core reads them, and where its time goes."""
    head = [
        "tiles at µm/px",
        "tiles/s a core",
        "decoding",
        "HSV passes",
        "for training/s",
        f"{visit_tiles} of a place/s",
    ]
    rows = [
        [f"{scale.serving.mpp:g}", *_speed(scale.one), number(scale.visits.kept_per_core, 3)]
        if scale.one.tiles
        else [f"{scale.serving.mpp:g}", scale.one.why or "not measured", "", "", "", ""]
        for scale in scales
    ]
    return Rows(head, rows, (0, 1, 2, 3, 4, 5))


def _speed(one: ScaleSpeed) -> list[str]:
    return [number(one.per_core, 3), share(one.decode_share), share(one.acceptance), number(one.kept_per_core, 3)]


def how_measured(told: Diagnosis) -> str:
    """The conditions of the measured numbers, in a sentence or two."""
    config = told.tiles
    rule = "no HSV rule" if config.hsv_share is None else f"the HSV rule at {config.hsv_share:g}"
    return (
        f"Measured: {config.size_px} px tiles at random places with {config.min_foreground:.0%} foreground, {rule}, "
        "cold caches, tiles a second of CPU time of one core; decoding is its share of that time. Several tiles of one "
        "place that is decoded (tiles.tiles_per_visit) save decoding."
    )


def how_served(config_px: int) -> str:
    """How to read `scale_rows`."""
    return (
        f"For tiles of {config_px} px: stored tiles that one touches on average, decoding work over that of a level "
        f"stored at the scale (half-size JPEG counts {HALVED_WORK:g}), and how many fit on "
        "the tissue without overlap."
    )


def starvation_lines(fate: Starvation) -> list[Line]:
    """The prediction, its parts and its marks."""
    lines = [("recipe", f"{fate.recipe}, {fate.network}")]
    if fate.need.why:
        return [*lines, ("prediction", f"none: {fate.need.why}"), *_given(fate)]
    verdicts = {
        "fed": f"{fate.gpus} × {fate.gpu} is kept busy",
        "tight": f"{fate.gpus} × {fate.gpu} is fed with less than {SPARE - 1:.0%} to spare",
        "starved": f"{fate.gpus} × {fate.gpu} waits for tiles: it works {share(fate.busy)} of the time",
    }
    prediction = verdicts.get(fate.verdict or "", "none: no tile could be measured")
    lines += [
        ("prediction", prediction),
        ("needed", f"{number(fate.need.tiles_s, 3)} tiles/s on {fate.gpus} × {fate.gpu}"),
        ("", fate.need.basis),
    ]
    return [*lines, *_given(fate)]


def _given(fate: Starvation) -> list[Line]:
    lines = []
    if fate.per_core == fate.per_core:
        scales = ", ".join(f"{mpp:g}" for mpp in fate.measured)
        lines.append(("a core gives", f"{number(fate.per_core, 3)} tiles/s for training, measured at {scales} µm/px"))
    if fate.per_core_visits == fate.per_core_visits:
        words = f"with tiles.tiles_per_visit={fate.visit_tiles}, so many tiles of each place that is decoded"
        lines.append(("", f"{number(fate.per_core_visits, 3)} {words}"))
    processes = "one reading process" if fate.workers == 1 else f"{fate.workers} reading processes"
    lines.append(("cores here", f"{fate.cores}; a run starts {processes} by itself"))
    if fate.cores_needed:
        visits = fate.cores_needed_visits
        more = f"; {visits} with tiles.tiles_per_visit={fate.visit_tiles}" if visits else ""
        lines.append(("cores needed", f"{fate.cores_needed} for reading, with {SPARE - 1:.0%} to spare{more}"))
    return lines


def machine_lines(here: Machine) -> list[Line]:
    """The machine."""
    gpus = ", ".join(f"{name} ({memory:.0f} GB)" for name, memory in here.gpus) or "none"
    memory = f"{number(here.memory_free_gb, 3)} of {number(here.memory_gb, 3)} GB free"
    shm = f"{number(here.shm_free_gb, 3)} of {number(here.shm_gb, 3)} GB free"
    load = "" if here.load is None else f", load {here.load:.1f}"
    return [
        ("cores", f"{here.cores}{load}"),
        ("GPUs", gpus),
        ("memory", memory),
        ("/dev/shm", shm),
        ("disk", f"{number(here.disk_free_gb, 3)} GB free at {here.disk}"),
        ("decoders", ", ".join(f"{name} {version}" for name, version in here.decoders.items())),
        ("versions", ", ".join(f"{name} {here.versions[name]}" for name in ("eosin", "python", "torch", "numpy"))),
    ]


def counted(counts: dict[str, int], most: int = 6) -> str:
    """ "120 aperio, 3 philips"; the rarest ones in one word."""
    named = list(counts.items())
    rest = sum(count for _, count in named[most:])
    return ", ".join(f"{count:,} {name}" for name, count in named[:most]) + (f", {rest:,} others" if rest else "")


def cohort_lines(told: Diagnosis) -> list[Line]:
    """Counts of a cohort."""
    facts = told.cohort
    assert facts is not None
    lines = [
        ("slides", counted(facts.status)),
        ("formats", counted(facts.vendors)),
        ("readers", counted(facts.readers)),
        ("tissue", f"{number(facts.tissue_mm2, 4)} mm²"),
        ("patients", _patients(told)),
        ("sites", counted(facts.sites) or "not given"),
    ]
    if facts.stains:
        lines.append(("stains", counted(facts.stains)))
    lines.append(("cohort hash", facts.hash))
    return lines


def _patients(told: Diagnosis) -> str:
    facts = told.cohort
    assert facts is not None
    if not facts.patients:
        return "not given"
    gaps = f", {facts.without_patient:,} slides without" if facts.without_patient else ""
    return f"{facts.patients:,}, up to {facts.most_of_one_patient} slides each{gaps}"


def offer_rows(told: Diagnosis) -> Rows:
    """Slides that offer each scale, and the mean speed of the sample."""
    facts = told.cohort
    assert facts is not None
    head = ["tiles at µm/px", "slides", "tissue mm²", "side by side, about", "tiles/s a core", "decoding", "HSV passes"]
    rows = []
    for offer in facts.offers:
        ones = [scale.one for slide in told.slides for scale in slide.scales if scale.serving.mpp == offer.mpp]
        known = [one for one in ones if one.tiles]
        tiles, cpu = sum(one.tiles for one in known), sum(one.cpu_s for one in known)
        told_of = [one for one in known if one.decode_s is not None]
        decode = sum(one.decode_s or 0.0 for one in told_of) / (sum(one.cpu_s for one in told_of) or 1.0)
        rows.append(
            [
                f"{offer.mpp:g}",
                number(offer.slides, 9),
                number(offer.tissue_mm2, 4),
                number(offer.tiles, 9),
                number(tiles / cpu, 3) if cpu else "–",
                share(min(decode, 1.0)) if told_of else "–",
                share(sum(one.kept for one in known) / tiles) if tiles else "–",
            ]
        )
    return Rows(head, rows, (0, 1, 2, 3, 4, 5, 6))


def sample_rows(told: Diagnosis) -> Rows:
    """One line a measured slide: tiles/s a core at each scale."""
    mpps = [scale.serving.mpp for scale in told.slides[0].scales] if told.slides else []
    head = ["slide", "format", "reader", "µm/px", "tissue mm²", *(f"at {mpp:g}" for mpp in mpps)]
    rows = [
        [
            slide.name,
            slide.anatomy.vendor,
            slide.anatomy.reader,
            f"{max(slide.mpp_x, slide.mpp_y):.4g}",
            f"{slide.tissue_mm2:.3g}",
            *(number(scale.one.per_core, 3) for scale in slide.scales),
        ]
        for slide in told.slides
    ]
    return Rows(head, rows, tuple(range(3, 5 + len(mpps))))


def _bytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
