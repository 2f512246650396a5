"""Large models behind one interface: whatever can say what each target layer of a batch would say."""

from vlsi_cli.engine.teachers.cached import CachedTeacher
from vlsi_cli.engine.teachers.compare import LayerDivergences, layer_divergences
from vlsi_cli.engine.teachers.live import LiveTeacher
from vlsi_cli.engine.teachers.teacher import Teacher, TeacherStates, TopKStates

__all__ = [
    "CachedTeacher",
    "LayerDivergences",
    "LiveTeacher",
    "Teacher",
    "TeacherStates",
    "TopKStates",
    "layer_divergences",
]
