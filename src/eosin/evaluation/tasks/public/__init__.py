"""Public tasks: what each is, one short file a data set; `PUBLIC` has them by name.

Switches are the same words everywhere: `eva.choose_on_reported` (no split of its own for choices),
`eva.report_val` (val is reported though there is a test split), `eva.test_is_val` (eva's val is the official
test split). Facts follow the data sets' owners and eva 0.4.5's public documentation and code.
"""

from __future__ import annotations

from eosin.evaluation.tasks.layout import PublicTask
from eosin.evaluation.tasks.public import (
    bach,
    bcss,
    bracs,
    breakhis,
    camelyon16,
    consep,
    crc,
    gleason,
    hest,
    mhist,
    monusac,
    panda,
    pathorob,
    pcam,
    tcga_tp53,
    unitopatho,
)

PUBLIC: dict[str, PublicTask] = {
    task.name: task
    for task in (
        *(bach.TASK, bracs.TASK, breakhis.TASK, crc.TASK, gleason.TASK, mhist.TASK),
        *(pcam.TASK, pcam.TEN_SHOT, unitopatho.TASK, tcga_tp53.TASK),
        *(camelyon16.TASK, camelyon16.SMALL, panda.TASK, panda.SMALL),
        *(consep.TASK, monusac.TASK, bcss.TASK),
        *hest.TASKS,
        *pathorob.TASKS,
    )
}
