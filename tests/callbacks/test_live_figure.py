"""The picture below the cell of a notebook: in a made one for each rule, and in a real one."""

import textwrap

import pytest

from lightning_stiffness import LiveFigure, StiffnessError, StiffnessMonitor
from lightning_stiffness.callbacks import live_figure
from lightning_stiffness.figures import class_matrices
from tests.callbacks.modules import QUIET, Classifier, loader, trainer

pytestmark = QUIET


class Handle:
    def __init__(self):
        self.shown = []

    def update(self, data, raw):
        assert raw
        self.shown.append(data["image/png"])


@pytest.fixture
def handle(monkeypatch):
    place = Handle()
    monkeypatch.setattr(live_figure, "_display_handle", lambda: place)
    return place


@pytest.mark.slow
@pytest.mark.parametrize("with_monitor", [True, False])
def test_each_reading_is_drawn(handle, with_monitor):
    figure, drawn = LiveFigure(lambda history: drawn.append(len(history)) or class_matrices(history), seconds=0), []
    monitors = [StiffnessMonitor(probe_size=12)] if with_monitor else []
    trainer([figure, *monitors], max_epochs=3).fit(Classifier(), loader())
    assert drawn == [1, 2, 3, 4]
    assert all(picture.startswith(b"\x89PNG") for picture in handle.shown)


@pytest.mark.slow
def test_not_more_often_than_it_should_and_the_last_one_always(handle):
    drawn = []
    figure = LiveFigure(lambda history: drawn.append(len(history)) or class_matrices(history), seconds=1000)
    trainer([StiffnessMonitor(probe_size=12), figure], max_epochs=3).fit(Classifier(), loader())
    assert drawn == [1, 4]


def test_outside_a_notebook_it_says_so_and_does_nothing():
    with pytest.warns(UserWarning, match="this program is none"):
        trainer([LiveFigure()], max_epochs=1).fit(Classifier(), loader())


def test_the_time_must_not_be_negative():
    with pytest.raises(StiffnessError, match="0 or more; found -1"):
        LiveFigure(seconds=-1)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore:.*IPython")
def test_in_a_real_notebook():
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    code = """
        import lightning as L
        from lightning_stiffness import LiveFigure, StiffnessMonitor
        from tests.callbacks.modules import Classifier, loader
        trainer = L.Trainer(callbacks=[StiffnessMonitor(probe_size=12), LiveFigure(seconds=0)], max_epochs=2,
                            accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
        trainer.fit(Classifier(), loader())
    """
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(textwrap.dedent(code))])
    nbclient.NotebookClient(notebook, timeout=None, startup_timeout=600, kernel_name="python3").execute()
    outputs = notebook.cells[0].outputs
    pictures = [one for one in outputs if one.output_type == "display_data" and "image/png" in one.data]
    assert len(pictures) == 1
