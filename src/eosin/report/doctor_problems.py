"""Problems that `eosin doctor` names, in plain words, each with what to do; those that stop a run come first."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from eosin.report.doctor_cohort import MOST_TISSUE, NAMED, CohortFacts
from eosin.slides.reader import HOW_TO_STATE_MPP

if TYPE_CHECKING:
    from eosin.report.doctor import Diagnosis, ScaleReport, SlideReport

Weight = Literal["stops", "slow", "look"]
ORDER: tuple[Weight, ...] = ("stops", "slow", "look")
MEANING = {"stops": "has to be mended", "slow": "costs speed", "look": "worth a look"}

COSTLY = 1.5
LITTLE_PASSES = 0.3
LEAST_TILES = 8  # read, before something is said of how many of them pass
WAITING = 2.0  # wall over CPU time: the reader waits for storage, or the machine for its other work
PREFETCHED = 2  # batches that each reading process holds ready


class Problem(NamedTuple):
    """weight: "stops" a run or spoils it, "slow", or "look". what: in a sentence; remedy: what to do about it."""

    weight: Weight
    what: str
    remedy: str


def problems_of(told: Diagnosis, batch: int | None) -> list[Problem]:
    """All problems, the most important first. batch: tiles of a step, for the room in /dev/shm."""
    found = list(_of_speed(told))
    if told.cohort is not None:
        found += _of_cohort(told.cohort, told)
        found += _of_sample(told)
    else:
        found += _of_slide(told.slides[0])
    found += _of_machine(told, batch)
    return sorted(found, key=lambda problem: ORDER.index(problem.weight))


def _of_slide(slide: SlideReport) -> Iterator[Problem]:
    for doubt in slide.anatomy.doubts:
        yield Problem(
            "stops", f"The scale is doubtful: {doubt}.", f"Look at the scanner's own value; {HOW_TO_STATE_MPP}."
        )
    if slide.tissue_mm2 <= 0:
        yield Problem(
            "stops",
            "No tissue was found on the slide, so no tile is drawn from it.",
            "Look at its picture; if there is tissue, the stain is paler than the foreground rule expects.",
        )
    elif slide.tissue_share > MOST_TISSUE:
        yield Problem(
            "look",
            f"{slide.tissue_share:.0%} of the slide count as tissue, so there is hardly any bare glass.",
            "Look at its picture: a crop of a slide is like that, a scan of a whole slide is not.",
        )
    yield from _of_scales(slide)
    if slide.anatomy.reader == "image":
        yield Problem(
            "slow",
            "It is a plain image: every process that reads it decodes it whole and holds it in memory.",
            "Convert it to a tiled pyramidal TIFF.",
        )
    elif any(level.compression.startswith("JPEG 2000") for level in slide.anatomy.levels):
        yield Problem(
            "slow",
            "It is stored as JPEG 2000, which takes several times the work of JPEG to decode.",
            "Take several tiles of each place that is decoded (tiles.tiles_per_visit=4), or convert it to JPEG tiles.",
        )


def _of_scales(slide: SlideReport) -> Iterator[Problem]:
    coarse = [scale.serving.mpp for scale in slide.scales if scale.serving.level is None]
    if coarse and len(coarse) == len(slide.scales):
        yield Problem(
            "stops",
            f"It has {max(slide.mpp_x, slide.mpp_y):.4g} µm/px at its finest and offers none of {_list(coarse)}.",
            "Ask for coarser tiles (tiles.mpp).",
        )
    elif coarse:
        yield Problem(
            "look",
            f"It is too coarse for {_list(coarse)} µm/px and gives tiles of the other scales only.",
            "Nothing, if other slides offer it; else set tiles.mpp, or tiles.drop_empty_mpp=true.",
        )
    for scale in slide.scales:
        mpp, speed = scale.serving.mpp, scale.one
        if missed := scale.serving.near_miss:
            yield Problem(
                "slow",
                f"Its level of {missed:.4g} µm/px is just too coarse for {mpp:g} µm/px, so a finer one is read: "
                f"{scale.serving.cost:.1f} times the decoding.",
                f"Ask for a scale that it has: tiles.mpp {_no_finer(missed):g} in the place of {mpp:g}.",
            )
        if speed.errors:
            yield Problem(
                "stops",
                f"{len(speed.errors)} of {len(speed.errors) + speed.tiles} tiles could not be read at {mpp:g} µm/px: "
                f"{speed.errors[0]}",
                "Copy the file again; if the source is the same, leave it out (eosin index --exclude).",
            )
        elif speed.why and scale.serving.level is not None and slide.tissue_mm2 > 0:
            yield Problem("look", f"No tile could be drawn at {mpp:g} µm/px: {speed.why}.", "Take smaller tiles.")
    yield from _of_acceptance(slide)
    yield from _of_missing_levels(slide.scales)


def _of_acceptance(slide: SlideReport) -> Iterator[Problem]:
    """Said of scales at which enough tiles were read to say it."""
    read = [scale for scale in slide.scales if scale.one.tiles >= LEAST_TILES]
    never = [scale.serving.mpp for scale in read if scale.one.kept == 0]
    seldom = [(scale.serving.mpp, scale.one.acceptance) for scale in read if 0 < scale.one.acceptance < LITTLE_PASSES]
    if never:
        yield Problem(
            "stops" if len(never) == len(read) else "look",
            f"The HSV rule rejects every tile tried at {_list(never)} µm/px.",
            "Look at the stain: the rule is for H&E; loosen or drop it (tiles.hsv_share=0.3 or null).",
        )
    if seldom:
        told = ", ".join(f"{passing:.0%} at {mpp:g} µm/px" for mpp, passing in seldom)
        yield Problem(
            "look",
            f"Few tiles pass the HSV rule: {told}; the rest is read for nothing.",
            "Look at the stain and the foreground; loosen tiles.hsv_share if good tissue is rejected.",
        )


def _no_finer(mpp: float) -> float:
    """`mpp` rounded up to three digits, so that a level of `mpp` still serves it."""
    step = 10 ** (math.floor(math.log10(mpp)) - 2)
    return round(math.ceil(mpp / step - 1e-9) * step, 6)


def _of_missing_levels(scales: Sequence[ScaleReport]) -> Iterator[Problem]:
    costly = [scale.serving for scale in scales if scale.serving.cost >= COSTLY and not scale.serving.near_miss]
    if costly:
        told = ", ".join(f"{how.mpp:g} µm/px {how.cost:.1f} times" for how in costly)
        yield Problem(
            "slow",
            f"Levels are missing; finer ones are decoded in their place, more work than the tiles need: {told}.",
            "Store slides with a level at every factor of 2, or take several tiles of each place that is decoded "
            "(tiles.tiles_per_visit=4).",
        )


def _of_cohort(facts: CohortFacts, told: Diagnosis) -> Iterator[Problem]:
    usable = facts.status.get("ok", 0)
    if facts.missing:
        yield Problem(
            "stops",
            f"{_slides(len(facts.missing))} of {usable} are not where they were indexed, first {facts.missing[0]}.",
            "Bring them back, or run eosin index again.",
        )
    for offer in facts.offers:
        if offer.slides == 0:
            yield Problem(
                "stops",
                f"No slide offers {offer.mpp:g} µm/px.",
                "Change tiles.mpp, or set tiles.drop_empty_mpp=true to go without it.",
            )
        elif offer.slides < 0.1 * usable:
            yield Problem(
                "look",
                f"Only {_slides(offer.slides)} of {usable} offer {offer.mpp:g} µm/px; all tiles of it come from them.",
                "Lower its weight (tiles.mpp_weights) or leave the scale out.",
            )
    for group in facts.errors:
        verb = group.words if group.number > 1 else _singular(group.words)
        yield Problem(
            "stops",
            f"{_slides(group.number)} {verb}: {_named(group.slides, group.number)}.",
            f"{_upper(group.remedy)}.",
        )
    if facts.duplicates:
        extra = sum(len(names) - 1 for names in facts.duplicates)
        yield Problem(
            "look",
            f"{_slides(extra)} seem{'s' if extra == 1 else ''} to be in the cohort twice, first "
            f"{' = '.join(facts.duplicates[0][:3])}.",
            "Leave the copies out (eosin index --exclude): they count double, and may lie on both sides of a split.",
        )
    if facts.without_tissue:
        names = facts.without_tissue
        yield Problem(
            "look",
            f"{_slides(len(names))} without any tissue: {_named(names[:NAMED], len(names))}.",
            "Look at them with eosin index --html; nothing is drawn from them.",
        )
    if facts.all_tissue:
        names = facts.all_tissue
        yield Problem(
            "look",
            f"{_slides(len(names))} with more than {MOST_TISSUE:.0%} tissue, so hardly any glass: "
            f"{_named(names[:NAMED], len(names))}.",
            "Look at them with eosin index --html: pen, a dirty scan, or crops of slides.",
        )
    yield from _of_gaps(facts, usable)


def _of_gaps(facts: CohortFacts, usable: int) -> Iterator[Problem]:
    if facts.without_patient:
        yield Problem(
            "look",
            f"{_slides(facts.without_patient)} of {usable} have no patient, so shares and splits are by slide there.",
            "Give a column patient with eosin index --metadata FILE.",
        )
    if facts.sites and facts.without_site:
        yield Problem(
            "look",
            f"{_slides(facts.without_site)} of {usable} have no site, the others have.",
            "Fill the column site of the metadata.",
        )


def _of_sample(told: Diagnosis) -> Iterator[Problem]:
    """Of the slides measured: what is common to some of them, each said once."""
    for line in told.unread[:NAMED]:
        yield Problem("stops", f"A slide that was indexed cannot be read: {line}.", "Run eosin index again.")
    said: dict[tuple[str, str], list[tuple[Problem, str]]] = {}
    for slide in told.slides:
        for problem in _of_slide(slide):
            if problem.what.startswith("It is too coarse") or "count as tissue" in problem.what:
                continue  # told of the whole cohort already
            said.setdefault((problem.weight, problem.remedy), []).append((problem, slide.name))
    for alike in said.values():
        problem, count = alike[0][0], len(told.slides)
        of = f"All {count} slides measured" if len(alike) == count else f"{len(alike)} of the {count} slides measured"
        names = [name for _, name in alike[:3]]
        yield Problem(problem.weight, f"{of} ({_named(names, len(alike))}): {_lower(problem.what)}", problem.remedy)


def _of_speed(told: Diagnosis) -> Iterator[Problem]:
    fate = told.starvation
    if fate is not None and fate.verdict in ("starved", "tight"):
        has = "would wait for tiles" if fate.verdict == "starved" else "is fed with nothing to spare"
        yield Problem(
            "slow",
            f"{fate.gpus} x {fate.gpu} {has}: a step of {fate.recipe} takes {fate.need.tiles_s:,.0f} tiles/s "
            f"(estimate), {_processes(fate.workers)} {fate.busy * fate.need.tiles_s:,.0f}"
            + (f", so it works {fate.busy:.0%} of the time." if fate.verdict == "starved" else "."),
            f"{_upper('; or '.join(fate.advice))}.",
        )
    slow = [scale.one for slide in told.slides for scale in slide.scales if scale.one.tiles >= 16]
    wall, cpu = sum(one.wall_s for one in slow), sum(one.cpu_s for one in slow)
    if cpu > 0 and wall > WAITING * cpu and (told.machine.load or 0) < told.machine.cores:
        yield Problem(
            "slow",
            f"Reading waits: of its time only {cpu / wall:.0%} is work, the rest is for storage.",
            "Put the slides on a faster disk, or read with more processes than cores (run.workers).",
        )


def _of_machine(told: Diagnosis, batch: int | None) -> Iterator[Problem]:
    here, fate = told.machine, told.starvation
    if here.shm_free_gb is not None and fate is not None and batch:
        each = batch / fate.gpus * told.tiles.size_px**2 * 3 / 1e9
        wanted = fate.workers * PREFETCHED * each
        if wanted > here.shm_free_gb:
            yield Problem(
                "slow",
                f"/dev/shm has {here.shm_free_gb:.2g} GB free, the reading processes want {wanted:.2g} GB; what "
                "does not fit goes through a pipe, slowly.",
                f"Start the container with --shm-size={max(round(2 * wanted), 1)}g.",
            )
    if here.disk_free_gb is not None and here.disk_free_gb < 5:
        yield Problem(
            "look",
            f"{here.disk} has {here.disk_free_gb:.1f} GB free.",
            "Write runs and features elsewhere: a checkpoint of ViT-L takes some GB.",
        )


def _processes(count: int) -> str:
    return "one reading process gives" if count == 1 else f"{count} reading processes give"


def _slides(count: int) -> str:
    return f"{count:,} slide{'' if count == 1 else 's'}"


def _named(names: Sequence[str], count: int) -> str:
    return ", ".join(names) + (f" and {count - len(names):,} more" if count > len(names) else "")


def _list(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _lower(text: str) -> str:
    return text if text[1:2].isupper() else text[:1].lower() + text[1:]


def _singular(words: str) -> str:
    for many, one in (("do not say their", "does not say its"), ("are empty files", "is an empty file")):
        words = words.replace(many, one)
    for many, one in (("are ", "is "), ("have ", "has "), ("state ", "states "), ("make ", "makes ")):
        words = one + words.removeprefix(many) if words.startswith(many) else words
    return words
