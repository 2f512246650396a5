"""Large models behind one interface: whatever can say what each target layer of a batch would say."""

from vlsi_cli.engine.teachers.compare import LayerDivergences, layer_divergences
from vlsi_cli.engine.teachers.live import LiveTeacher
from vlsi_cli.engine.teachers.teacher import Teacher, TeacherStates

__all__ = ["LayerDivergences", "LiveTeacher", "Teacher", "TeacherStates", "layer_divergences"]
