"""A run's TensorBoard events, written without torch or TensorFlow.

Scalars are written as ``simple_value``, histograms and images as the summary fields that go with
it: both the page and ``EventAccumulator`` read those, the latter under ``Scalars``, ``Histograms``
and ``Images``. Text and hyper-parameters belong to plugins and are known by their metadata.
"""

from __future__ import annotations

import io
import math
import operator
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, SupportsFloat, SupportsIndex, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.histogram_pb2 import HistogramProto
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2
from tensorboard.plugins.hparams import metadata as hparams_metadata
from tensorboard.plugins.text import metadata as text_metadata
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from tensorboard.util.tensor_util import make_tensor_proto

from letta_gym.errors import LettaGymError

HParam: TypeAlias = bool | int | float | str | None

FLUSH_SECS = 2  # events reach the disk, and so whoever follows the run, at least this often
HISTOGRAM_BUCKETS = 30  # as many as the page draws

_EVENT_FILES = "events.out.tfevents.*"
_MAX_CLOCK_LAG = 10  # seconds


class TensorBoard:
    """Writes events to a run folder; a context manager.

    Each instance adds one event file. Opened again, the folder continues; ``purge_step`` tells the
    page to forget what an interrupted process wrote from that step on, and the steps that are done
    again then show once. (The page's fast loader forgets a tag's when the tag is written again.)

    Steps are whole numbers of at least 0, and tags are not empty. A "/" in a tag groups: the page
    shows ``losses/entropy`` in the section ``losses``. Values are stored as float32.

    Args:
        run_dir: folder of the run; made if missing
        purge_step: first step that will be written again; None to keep all that is there

    Raises:
        LettaGymError: ``purge_step`` is no step, or the folder holds events from the future.
        OSError: the folder cannot be written. Failures of the disk may surface at a later write.
    """

    def __init__(self, run_dir: Path | str, *, purge_step: SupportsIndex | None = None) -> None:
        start_step = None if purge_step is None else check_step(purge_step)
        self.run_dir = Path(run_dir)
        newest = newest_event_file(self.run_dir)
        if newest is None:
            # The page's Python loader takes the first START of a run for its beginning, and purges
            # only at the next one. So a run begins with one, or its first resumption would be lost.
            start_step = start_step or 0
        else:
            wait_until_later(newest)
        self._start_time = time.time()
        self._last_step = start_step or 0
        self._closed = False
        self._writer = EventFileWriter(str(self.run_dir), flush_secs=FLUSH_SECS)
        if start_step is not None:
            start = SessionLog(status=SessionLog.START)
            self._add_event(Event(session_log=start, step=start_step))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def scalar(self, tag: str, value: SupportsFloat, step: SupportsIndex) -> None:
        """Write one number.

        NaN and infinities are written as they are, for a loss that diverges is news: the page
        breaks the curve there, and marks NaN with triangles.
        """
        self.scalars({tag: value}, step)

    def scalars(self, values: Mapping[str, SupportsFloat], step: SupportsIndex) -> None:
        """Write one number for each tag, all with one wall time; see :meth:`scalar`."""
        self._write(
            step,
            *(
                Summary.Value(tag=check_tag(tag), simple_value=float(value))
                for tag, value in values.items()
            ),
        )

    def histogram(self, tag: str, values: ArrayLike, step: SupportsIndex) -> None:
        """Write the distribution of ``values``, array-like of any shape, in equal-width buckets.

        Raises:
            LettaGymError: there are no values, or some are not finite.
        """
        with np.errstate(over="ignore"):  # beyond float32 is infinite, and said so
            stored = np.asarray(values, dtype=np.float64).astype(np.float32)
        histo = histogram_proto(stored.ravel().astype(np.float64), tag)
        self._write(step, Summary.Value(tag=check_tag(tag), histo=histo))

    def image(self, tag: str, image: NDArray[np.uint8], step: SupportsIndex) -> None:
        """Write an RGB picture, array, shape (H, W, 3), as PNG.

        Raises:
            LettaGymError: the array has another type or shape, or no pixels.
        """
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise LettaGymError(
                f"{tag}: expected a uint8 array of shape (H, W, 3) with at least one pixel; "
                f"got {image.dtype} of shape {image.shape}"
            )
        png = io.BytesIO()
        Image.fromarray(image).save(png, format="png")
        height, width, channels = image.shape
        encoded = Summary.Image(
            height=height, width=width, colorspace=channels, encoded_image_string=png.getvalue()
        )
        self._write(step, Summary.Value(tag=check_tag(tag), image=encoded))

    def text(self, tag: str, markdown: str, step: SupportsIndex) -> None:
        """Write a text; the page renders its Markdown, and no HTML in it."""
        metadata = text_metadata.create_summary_metadata(display_name=tag, description="")
        tensor = make_tensor_proto([markdown.encode()])
        self._write(step, Summary.Value(tag=check_tag(tag), metadata=metadata, tensor=tensor))

    def hparams(
        self, hparams: Mapping[str, HParam | np.generic], metrics: Mapping[str, SupportsFloat]
    ) -> None:
        """Write the run's row of the HPARAMS table, once, at its end.

        The page takes the columns from one run of the folder it shows, and of a run that wrote its
        row twice the first: give all runs the same names.

        Args:
            hparams: name to value; one that is None leaves its cell empty
            metrics: tag to final value. Each is written as a scalar too, at the last step of this
                instance, because the table reads it from there

        Raises:
            LettaGymError: a hyper-parameter is not finite, or neither a number, bool nor string.
        """
        values = {name: to_hparam(name, value) for name, value in hparams.items()}
        infos = {name: value for name, value in values.items() if value is not None}
        experiment = api_pb2.Experiment(
            time_created_secs=self._start_time,
            hparam_infos=[
                api_pb2.HParamInfo(name=check_tag(name), type=hparam_type(value))
                for name, value in infos.items()
            ],
            metric_infos=[
                api_pb2.MetricInfo(name=api_pb2.MetricName(tag=check_tag(tag))) for tag in metrics
            ],
        )
        start = plugin_data_pb2.SessionStartInfo(start_time_secs=self._start_time)
        for name, value in infos.items():
            set_hparam(start.hparams[name], value)
        end = plugin_data_pb2.SessionEndInfo(
            status=api_pb2.STATUS_SUCCESS, end_time_secs=time.time()
        )
        self.scalars(metrics, self._last_step)
        self._write(
            0,
            hparams_value(hparams_metadata.EXPERIMENT_TAG, experiment=experiment),
            hparams_value(hparams_metadata.SESSION_START_INFO_TAG, session_start_info=start),
            hparams_value(hparams_metadata.SESSION_END_INFO_TAG, session_end_info=end),
        )

    def flush(self) -> None:
        """Wait until all that was written is in the event file."""
        self._check_open()
        self._writer.flush()

    def close(self) -> None:
        """Flush and close the event file; closing twice is allowed."""
        self._closed = True
        self._writer.close()

    def _write(self, step: SupportsIndex, *values: Summary.Value) -> None:
        step = check_step(step)
        self._last_step = max(self._last_step, step)
        if values:
            self._add_event(Event(summary=Summary(value=values), step=step))

    def _add_event(self, event: Event) -> None:
        self._check_open()
        event.wall_time = time.time()
        self._writer.add_event(event)

    def _check_open(self) -> None:
        if self._closed:
            raise LettaGymError(
                f"the events of {self.run_dir} are closed; open the folder with TensorBoard again"
            )


def newest_event_file(run_dir: Path) -> Path | None:
    """Return the event file that is read last, or None; names order the files."""
    return max(run_dir.glob(_EVENT_FILES), default=None)


def wait_until_later(event_file: Path) -> None:
    """Return when an event file made now will be read after ``event_file``.

    Files are read in the order of their names, which hold the second they were made in. Two of one
    second could change places, and a purge would then hit the wrong one.

    Raises:
        LettaGymError: that would take longer than the clocks of one system differ.
    """
    stamp = event_file.name.removeprefix(_EVENT_FILES.rstrip("*")).partition(".")[0]
    wait = int(stamp) + 1 - time.time() if stamp.isdigit() else 0.0
    if wait > _MAX_CLOCK_LAG:
        raise LettaGymError(
            f"{event_file} was made {wait:.0f} s in the future; events written now would be read "
            "before it. Set the clock, or move the file away"
        )
    time.sleep(max(0.0, wait))


def histogram_proto(values: NDArray[np.float64], tag: str) -> HistogramProto:
    """Return the histogram of values, array, shape (N,), between their extremes.

    Equal values get one bucket of width 0: the page's fast loader draws empty ones beside it.

    Raises:
        LettaGymError: there are no values, or some are not finite.
    """
    if not values.size or not np.isfinite(values).all():
        finite = np.count_nonzero(np.isfinite(values))
        raise LettaGymError(
            f"{tag}: a histogram needs at least one value and only finite ones; "
            f"got {values.size} values, {finite} of them finite"
        )
    low, high = values.min(), values.max()
    if low == high:
        counts, edges = np.array([values.size]), np.array([low, high])
    else:
        counts, edges = np.histogram(values, bins=HISTOGRAM_BUCKETS)
    return HistogramProto(
        min=low,
        max=high,
        num=values.size,
        sum=values.sum(),
        sum_squares=values @ values,
        bucket=counts,
        bucket_limit=edges[1:],
    )


def to_hparam(name: str, value: object) -> HParam:
    """Return a hyper-parameter's value as a Python scalar.

    Raises:
        LettaGymError: it is not finite, or neither a number, bool, string nor None.
    """
    scalar = value.item() if isinstance(value, np.generic) else value
    if scalar is None or isinstance(scalar, bool | str):
        return scalar
    if not isinstance(scalar, int | float):
        raise LettaGymError(
            f"hyper-parameter {name}: expected a number, bool, string or None; "
            f"got {type(value).__name__}. Flatten mappings, and join lists to a string"
        )
    if not math.isfinite(scalar):  # the page's server would answer every request with an error
        raise LettaGymError(f"hyper-parameter {name}: expected a finite number; got {scalar}")
    return scalar


def hparam_type(value: HParam) -> int:
    """Return the page's data type of a hyper-parameter; all numbers are float64."""
    if isinstance(value, bool):
        return int(api_pb2.DATA_TYPE_BOOL)
    return int(api_pb2.DATA_TYPE_STRING if isinstance(value, str) else api_pb2.DATA_TYPE_FLOAT64)


def set_hparam(field: Any, value: HParam) -> None:
    """Write a hyper-parameter into a protobuf ``Value``."""
    if isinstance(value, bool):
        field.bool_value = value
    elif isinstance(value, str):
        field.string_value = value
    else:
        field.number_value = value


def hparams_value(tag: str, **content: Any) -> Summary.Value:
    """Return a summary value whose metadata carries ``content`` for the hparams plugin."""
    data = plugin_data_pb2.HParamsPluginData(**content)
    return Summary.Value(
        tag=tag,
        metadata=hparams_metadata.create_summary_metadata(data),
        tensor=hparams_metadata.NULL_TENSOR,
    )


def check_tag(tag: str) -> str:
    """Return the tag.

    Raises:
        LettaGymError: it is empty.
    """
    if not tag:
        raise LettaGymError("a tag must not be empty; name what is written, as 'losses/entropy'")
    return tag


def check_step(step: SupportsIndex) -> int:
    """Return the step as a Python integer.

    Raises:
        LettaGymError: it is not a whole number, or negative.
    """
    try:
        number = operator.index(step)
    except TypeError:
        number = -1
    if number < 0:
        raise LettaGymError(f"a step must be a whole number of at least 0; got {step!r}")
    return number
