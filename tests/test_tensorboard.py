"""TensorBoard: what is written is read back, by the library and by the real server's pages."""

from __future__ import annotations

import io
import json
import math
import re
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from agents.chart import Row, interval_chart
from agents.tensorboard import HISTOGRAM_BUCKETS, TensorBoard
from letta_gym.errors import LettaGymError

LOADERS = ["auto", "false"]  # the server's fast loader, where there is one, and the Python loader
CHART = interval_chart([Row("learned", 1, 0, 2, True)], "Return", "return per session")
HPARAMS: Mapping[str, bool | int | float | str | None] = {
    "learning_rate": 3e-4,
    "num_envs": 64,
    "anneal_lr": True,
    "suite": "mock",
    "target_kl": None,
}


def read(run_dir: Path) -> EventAccumulator:
    events = EventAccumulator(str(run_dir), size_guidance={"scalars": 0, "images": 0})
    return events.Reload()


def steps_and_values(run_dir: Path, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in read(run_dir).Scalars(tag)]


class Server:
    """The data endpoints of a running server."""

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str, **query: str) -> Any:
        return json.loads(self.bytes(path, **query))

    def bytes(self, path: str, **query: str) -> bytes:
        url = f"{self.url}/data/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=10) as response:
            content: bytes = response.read()
        return content

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        request = urllib.request.Request(
            f"{self.url}/data/{path}",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=10) as response:
            return json.loads(response.read())

    def scalars(self, run: str, tag: str) -> list[tuple[int, Any]]:
        points = self.get("plugin/scalars/scalars", run=run, tag=tag)
        return [(step, value) for _, step, value in points]

    def wait_for(self, ready: Callable[[], bool]) -> None:
        """Wait for the loader, which runs beside the server."""
        deadline = time.monotonic() + 60
        while not ready():
            assert time.monotonic() < deadline, "the server has not loaded the events"
            time.sleep(0.1)


@contextmanager
def serve(logdir: Path, loader: str) -> Iterator[Server]:
    options = ["--host", "127.0.0.1", "--port", "0", "--load_fast", loader]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logdir), *options]
    log_path = logdir.parent / f"server-{loader}.log"
    with log_path.open("w") as log, subprocess.Popen(command, stderr=log) as process:
        try:
            deadline = time.monotonic() + 60
            while not (url := re.search(r"http://127\.0\.0\.1:\d+", log_path.read_text())):
                assert process.poll() is None, log_path.read_text()
                assert time.monotonic() < deadline, log_path.read_text()
                time.sleep(0.1)
            yield Server(url[0])
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def logdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one run of everything, one that was resumed, and one that diverged."""
    logdir = tmp_path_factory.mktemp("tensorboard") / "runs"
    rng = np.random.default_rng(0)
    with TensorBoard(logdir / "whole") as board:
        for step in range(5):
            board.scalars({"losses/entropy": 1 / (step + 1), "charts/SPS": 1e4 + step}, step)
            board.histogram("weights", rng.normal(size=1000), step)
        board.histogram("constant", [2.0, 2.0, 2.0], 0)
        board.image("evaluation", CHART, 4)
        board.text("config", "**bold**, <script>alert(1)</script>", 0)
        board.hparams(HPARAMS, {"eval/return": 12.5, "eval/regret": math.nan})
    write_interrupted_run(logdir / "resumed")
    with TensorBoard(logdir / "diverged") as board:
        for step, value in enumerate([1.0, math.nan, math.inf, -math.inf]):
            board.scalar("losses/value_loss", value, step)
    return logdir


def write_interrupted_run(run_dir: Path) -> None:
    """Write steps 0 to 5, then, as from a checkpoint at step 3, steps 3 to 7."""
    with TensorBoard(run_dir) as board:
        for step in range(6):
            board.scalar("losses/entropy", step, step)
            board.image("evaluation", CHART, step)
    with TensorBoard(run_dir, purge_step=3) as board:
        for step in range(3, 8):
            board.scalar("losses/entropy", 100 + step, step)
            board.image("evaluation", CHART, step)


@pytest.fixture(scope="module", params=LOADERS)
def server(request: pytest.FixtureRequest, logdir: Path) -> Iterator[Server]:
    with serve(logdir, request.param) as server:
        runs = {"whole", "resumed", "diverged"}
        server.wait_for(lambda: set(server.get("plugin/scalars/tags")) == runs)
        server.wait_for(lambda: len(server.get("plugin/scalars/tags")["whole"]) == 4)
        server.wait_for(lambda: server.scalars("resumed", "losses/entropy")[-1][0] == 7)
        yield server


RESUMED = [(0, 0), (1, 1), (2, 2), (3, 103), (4, 104), (5, 105), (6, 106), (7, 107)]


def test_the_page_shows_the_scalars(server: Server) -> None:
    points = server.scalars("whole", "losses/entropy")
    assert points == [(step, pytest.approx(1 / (step + 1))) for step in range(5)]


def test_the_page_shows_each_step_of_a_resumed_run_once(server: Server) -> None:
    assert server.scalars("resumed", "losses/entropy") == RESUMED
    images = server.get("plugin/images/images", run="resumed", tag="evaluation", sample="0")
    assert [image["step"] for image in images] == list(range(8))


def test_the_page_shows_numbers_that_are_not_finite(server: Server) -> None:
    values = [value for _, value in server.scalars("diverged", "losses/value_loss")]
    assert values == [1.0, "NaN", "Infinity", "-Infinity"]


def test_the_page_shows_the_histograms(server: Server) -> None:
    histograms = server.get("plugin/histograms/histograms", run="whole", tag="weights")
    assert [step for _, step, _ in histograms] == list(range(5))
    for _, _, buckets in histograms:
        lefts, rights, counts = np.array(buckets).T
        assert counts.sum() == 1000
        assert (lefts < rights).all()
    constant = server.get("plugin/histograms/histograms", run="whole", tag="constant")
    assert constant[0][2] == [[2, 2, 3]]


def test_the_page_shows_the_image_pixel_for_pixel(server: Server) -> None:
    (entry,) = server.get("plugin/images/images", run="whole", tag="evaluation", sample="0")
    assert entry["step"] == 4
    png = server.bytes(f"plugin/images/individualImage?{entry['query']}&")
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png))), CHART)


def test_the_page_shows_the_text_as_markdown_without_html(server: Server) -> None:
    (entry,) = server.get("plugin/text/text", run="whole", tag="config")
    assert "<strong>bold</strong>" in entry["text"]
    assert "<script>" not in entry["text"]


def test_the_page_shows_the_hyper_parameters_with_the_final_metrics(server: Server) -> None:
    experiment = server.post("plugin/hparams/experiment", {})
    types = {info["name"]: info["type"] for info in experiment["hparamInfos"]}
    assert types == {
        "learning_rate": "DATA_TYPE_FLOAT64",
        "num_envs": "DATA_TYPE_FLOAT64",
        "anneal_lr": "DATA_TYPE_BOOL",
        "suite": "DATA_TYPE_STRING",
    }
    metrics = [info["name"]["tag"] for info in experiment["metricInfos"]]
    assert metrics == ["eval/return", "eval/regret"]

    request = {"startIndex": 0, "sliceSize": 10, "allowedStatuses": ["STATUS_SUCCESS"]}
    (row,) = server.post("plugin/hparams/session_groups", request)["sessionGroups"]
    assert row["name"] == "whole"
    assert row["hparams"] == {key: value for key, value in HPARAMS.items() if value is not None}
    values = {metric["name"]["tag"]: metric["value"] for metric in row["metricValues"]}
    assert values == {"eval/return": 12.5, "eval/regret": "NaN"}


def test_scalars_are_read_back_with_their_steps(tmp_path: Path) -> None:
    with TensorBoard(tmp_path) as board:
        board.scalar("losses/entropy", np.float32(0.5), 0)
        board.scalars({"losses/entropy": 0.25, "charts/SPS": 18_000}, np.int64(2**40))
    assert steps_and_values(tmp_path, "losses/entropy") == [(0, 0.5), (2**40, 0.25)]
    assert steps_and_values(tmp_path, "charts/SPS") == [(2**40, 18_000)]


def test_not_finite_scalars_are_read_back_as_they_are(tmp_path: Path) -> None:
    with TensorBoard(tmp_path) as board:
        board.scalars({"nan": math.nan, "inf": math.inf, "low": -math.inf}, 0)
    assert math.isnan(steps_and_values(tmp_path, "nan")[0][1])
    assert steps_and_values(tmp_path, "inf") == [(0, math.inf)]
    assert steps_and_values(tmp_path, "low") == [(0, -math.inf)]


def test_a_histogram_is_read_back_with_its_moments(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(3, 2, size=(10, 20)).astype(np.float32)
    with TensorBoard(tmp_path) as board:
        board.histogram("weights", values, 7)
    (event,) = read(tmp_path).Histograms("weights")
    histogram = event.histogram_value
    counts, edges = np.histogram(values.astype(np.float64), bins=HISTOGRAM_BUCKETS)
    assert event.step == 7
    assert (histogram.min, histogram.max, histogram.num) == (values.min(), values.max(), 200)
    assert histogram.sum == pytest.approx(values.sum(), rel=1e-5)
    assert histogram.sum_squares == pytest.approx((values**2).sum(), rel=1e-5)
    assert histogram.bucket == counts.tolist()
    np.testing.assert_allclose(histogram.bucket_limit, edges[1:])


def test_nearly_equal_values_still_have_a_histogram(tmp_path: Path) -> None:
    with TensorBoard(tmp_path) as board:
        board.histogram("weights", [1.0, np.nextafter(1.0, 2.0)], 0)
    (event,) = read(tmp_path).Histograms("weights")
    assert event.histogram_value.bucket == [2]


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf], [1e300]])
def test_a_histogram_of_nothing_or_of_infinite_values_is_refused(
    tmp_path: Path, values: list[float]
) -> None:
    with TensorBoard(tmp_path) as board, pytest.raises(LettaGymError, match="weights: a histogram"):
        board.histogram("weights", values, 0)


def test_an_image_is_read_back_pixel_for_pixel(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    with TensorBoard(tmp_path) as board:
        board.image("picture", image, 3)
    (event,) = read(tmp_path).Images("picture")
    assert (event.step, event.height, event.width) == (3, 20, 30)
    decoded = Image.open(io.BytesIO(event.encoded_image_string))
    np.testing.assert_array_equal(np.asarray(decoded), image)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4, 3)),
        np.zeros((4, 4), dtype=np.uint8),
        np.zeros((4, 4, 4), dtype=np.uint8),
        np.zeros((0, 4, 3), dtype=np.uint8),
    ],
)
def test_an_array_that_is_no_picture_is_refused(tmp_path: Path, image: Any) -> None:
    with TensorBoard(tmp_path) as board, pytest.raises(LettaGymError, match=r"uint8.*\(H, W, 3\)"):
        board.image("picture", image, 0)


def test_text_is_read_back_in_any_language(tmp_path: Path) -> None:
    with TensorBoard(tmp_path) as board:
        board.text("config", "# \u00fcber \u6587", 1)
    (event,) = read(tmp_path).Tensors("config")
    assert event.step == 1
    assert [text.decode() for text in event.tensor_proto.string_val] == ["# \u00fcber \u6587"]


def test_final_metrics_are_scalars_at_the_last_step(tmp_path: Path) -> None:
    with TensorBoard(tmp_path) as board:
        board.scalar("losses/entropy", 1, 640)
        board.hparams({"seed": np.int64(1)}, {"eval/return": 2.5})
    assert steps_and_values(tmp_path, "eval/return") == [(640, 2.5)]


@pytest.mark.parametrize("value", [math.nan, math.inf, [64, 64], {"a": 1}, np.zeros(2)])
def test_a_hyper_parameter_that_the_page_cannot_show_is_refused(tmp_path: Path, value: Any) -> None:
    with TensorBoard(tmp_path) as board, pytest.raises(LettaGymError, match="parameter hidden"):
        board.hparams({"seed": 1, "hidden": value}, {"eval/return": 2.5})
    assert read(tmp_path).Tags()["scalars"] == []  # nothing half written


def test_a_resumed_run_has_each_step_once(tmp_path: Path) -> None:
    write_interrupted_run(tmp_path)
    assert steps_and_values(tmp_path, "losses/entropy") == RESUMED
    assert [image.step for image in read(tmp_path).Images("evaluation")] == list(range(8))
    assert len(list(tmp_path.iterdir())) == 2


def test_a_run_that_starts_over_forgets_everything(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        with TensorBoard(tmp_path, purge_step=0) as board:
            board.scalar("losses/entropy", value, 0)
    assert steps_and_values(tmp_path, "losses/entropy") == [(0, 2.0)]


def test_a_folder_opened_without_a_purge_keeps_what_is_there(tmp_path: Path) -> None:
    for step in range(3):
        with TensorBoard(tmp_path) as board:
            board.scalar("losses/entropy", step, step)
    assert steps_and_values(tmp_path, "losses/entropy") == [(0, 0), (1, 1), (2, 2)]


def test_event_files_of_one_second_keep_their_order(tmp_path: Path) -> None:
    names: set[str] = set()
    last = ""
    for _ in range(3):
        TensorBoard(tmp_path).close()
        (new,) = {path.name for path in tmp_path.iterdir()} - names
        assert new.split(".")[3] > last
        names.add(new)
        last = new.split(".")[3]


def test_events_from_the_future_are_named(tmp_path: Path) -> None:
    future = tmp_path / f"events.out.tfevents.{int(time.time()) + 3600}.host.1.0"
    future.touch()
    with pytest.raises(LettaGymError, match="in the future"):
        TensorBoard(tmp_path)


@pytest.mark.parametrize("step", [-1, 1.5, "3", None])
def test_a_step_that_is_no_count_is_refused(tmp_path: Path, step: Any) -> None:
    with TensorBoard(tmp_path) as board, pytest.raises(LettaGymError, match="whole number"):
        board.scalar("losses/entropy", 1, step)


@pytest.mark.parametrize("step", [-1, 1.5])
def test_a_purge_step_that_is_no_count_is_refused(tmp_path: Path, step: Any) -> None:
    with pytest.raises(LettaGymError, match="whole number"):
        TensorBoard(tmp_path, purge_step=step)
    assert not list(tmp_path.iterdir())


def test_an_empty_tag_is_refused(tmp_path: Path) -> None:
    with TensorBoard(tmp_path) as board, pytest.raises(LettaGymError, match="must not be empty"):
        board.scalar("", 1, 0)


def test_flushed_events_are_on_the_disk_before_the_end(tmp_path: Path) -> None:
    with TensorBoard(tmp_path) as board:
        board.scalar("losses/entropy", 1, 0)
        board.flush()
        assert steps_and_values(tmp_path, "losses/entropy") == [(0, 1)]


def test_events_survive_an_exception(tmp_path: Path) -> None:
    def train() -> None:
        with TensorBoard(tmp_path) as board:
            board.scalar("losses/entropy", 1, 0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train()
    assert steps_and_values(tmp_path, "losses/entropy") == [(0, 1)]


def test_writing_after_the_end_is_refused_and_closing_twice_is_not(tmp_path: Path) -> None:
    board = TensorBoard(tmp_path)
    board.close()
    board.close()
    with pytest.raises(LettaGymError, match="closed"):
        board.scalar("losses/entropy", 1, 0)
    with pytest.raises(LettaGymError, match="closed"):
        board.flush()


def test_neither_torch_nor_tensorflow_is_imported() -> None:
    code = (
        "import sys, agents.tensorboard, agents.chart; "
        "print(sorted({'torch', 'tensorflow', 'matplotlib'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout == "[]\n"
