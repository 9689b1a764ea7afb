"""How parameters move: schedules, parameter groups, the moving average that is the teacher."""

from eosin.optim.config import OptimConfig
from eosin.optim.ema import update_teacher
from eosin.optim.groups import clip_gradients, forget_last_layer, parameter_groups, set_step_values
from eosin.optim.schedules import Schedules, SchedulesConfig, make_schedules

__all__ = [
    "OptimConfig",
    "Schedules",
    "SchedulesConfig",
    "clip_gradients",
    "forget_last_layer",
    "make_schedules",
    "parameter_groups",
    "set_step_values",
    "update_teacher",
]
