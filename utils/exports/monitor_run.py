"""A run of monitor.py: texts in, their projections out, a line a text; a page and a figure where they are asked for."""

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.cli.progress import progress
from utils.errors import UserError
from utils.evaluation.words import describe, of_its_root
from utils.exports.drift import plot_drift
from utils.exports.lines import failed_line, measured_line
from utils.exports.measuring import WINDOW, Failed, Measured, as_bare, make_probe, measure_texts
from utils.exports.monitor_request import STANDARD, MonitorRequest, VectorSource, made_from
from utils.exports.reference import BAND, Reference, reference_of
from utils.exports.resuming import Lines, plain_lines, resumable_lines
from utils.exports.summary import Summary
from utils.exports.texts import MonitoredText, read_texts
from utils.figures.style import log_written
from utils.files.provenance import record_provenance
from utils.files.reading import load_vector
from utils.files.tables import with_suffix
from utils.files.writing import write_text
from utils.inside.readings import TokenProjections, Transcript
from utils.inside.token_pages import PageText, texts_page
from utils.inside.token_texts import texts_in_context
from utils.model import processes
from utils.model.chat_format import PromptTokens

if TYPE_CHECKING:
    from llama_wrapper import LlamaWrapper

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Monitor:
    """A model with vectors to measure along."""

    model: "LlamaWrapper"
    request: MonitorRequest
    sources: Sequence[VectorSource]

    @cached_property
    def probes(self) -> list[Any]:
        return [make_probe(one.layer, load_vector(one.path, self.model.d_model)) for one in self.sources]

    @cached_property
    def _neutral(self) -> list[MonitoredText]:
        path = self.request.neutral_texts
        texts = []
        for text in read_texts(path):
            if isinstance(text, UserError):
                raise UserError(f"{path}, {text}") from text
            if text.turns[-1].role == "assistant":
                texts.append(text)
        if len(texts) < 2:
            raise UserError(f"{path}: fewer than 2 questions with answers; percentiles need neutral texts")
        return texts

    @cached_property
    def answers(self) -> Reference:
        """Neutral answers behind their questions."""
        return self._reference(self._neutral)

    @cached_property
    def bare(self) -> Reference:
        """The same answers, by themselves."""
        return self._reference([as_bare(text) for text in self._neutral])

    def reference(self, text: MonitoredText) -> Reference:
        """Neutral texts of the same form."""
        return self.bare if text.is_bare else self.answers

    def _reference(self, texts: Sequence[MonitoredText]) -> Reference:
        measured = []
        for one in measure_texts(self.model, texts, self.probes, self.request.batch_size):
            if isinstance(one, Failed):
                raise UserError(f"{self.request.neutral_texts}, {one.reason}")
            measured.append(one)
        return reference_of(measured)

    @property
    def forms(self) -> list[str]:
        """The forms of neutral texts that texts have been compared with so far."""
        return [name for name in ("answers", "bare") if name in self.__dict__]

    def measure(self, file: Path, n_done: int = 0, until: int | None = None) -> Iterator[Measured | Failed]:
        """The texts of a file, but for the first `n_done`, and but for those from `until` on."""
        texts = islice(read_texts(file), until)
        return measure_texts(self.model, texts, self.probes, self.request.batch_size, n_done)


@of_its_root
def monitor_files(request: MonitorRequest, sources: Sequence[VectorSource], model: "LlamaWrapper") -> int:
    """Measure every file; returns how many texts could not be measured.

    Raises:
        UserError: If a file is not JSON, or the neutral texts cannot be measured.
    """
    if processes.count() > 1:
        raise UserError("monitor.py runs in one process; start it without a launcher, on parts of the texts")
    monitor = Monitor(model, request, sources)
    return sum(_monitor_file(monitor, file) for file in request.files)


def _monitor_file(monitor: Monitor, file: Path) -> int:
    request, output = monitor.request, monitor.request.output_of(file)
    facts: dict[str, Any] = {}
    if STANDARD not in (file, output):
        facts = {**made_from(request, file, list(monitor.sources)), **monitor.model.provenance()}
        record_provenance(output.parent, [output.name], {**facts, "command": request.command})
    with _opened(file, output, {**facts, "batch_size": request.batch_size}) as lines:
        summary = _write_lines(monitor, file, lines)
    for line in summary_lines(monitor, summary, file):
        (log.info if output == STANDARD else _say)(line)
    if output != STANDARD:
        log.info("wrote %s: %d texts", output, summary.texts.n)
        _write_beside(monitor, file, summary)
    return summary.n_failed


def _write_lines(monitor: Monitor, file: Path, lines: Lines) -> Summary:
    """Write the lines that are missing; what all of them have in common.

    Raises:
        UserError: If no text can be measured.
    """
    tokenizer = monitor.model.tokenizer if monitor.request.tokens else None
    summary = Summary.of_state(lines.state["summary"]) if lines.state else Summary()
    for form in lines.state.get("forms", ()):
        getattr(monitor, form)
    with progress(desc=f"{file}: texts", unit="text", initial=lines.n_texts) as bar:
        for one in monitor.measure(file, lines.n_texts):
            if isinstance(one, Failed):
                summary.n_failed += 1
                lines.write(failed_line(one))
                log.warning("%s, %s", file, one.reason)
            else:
                reference = monitor.reference(one.text)
                summary.add(one, reference)
                lines.write(measured_line(one, monitor.sources, reference, tokenizer))
            if (one.index + 1) % WINDOW == 0:
                lines.keep(one.index + 1, {"summary": summary.state(), "forms": monitor.forms})
            bar.update()
    if not summary.texts.n:
        raise UserError(f"{file}: none of its {summary.n_failed} texts can be measured; see above")
    return summary


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")


@contextmanager
def _opened(file: Path, output: Path, facts: dict[str, Any]) -> Iterator[Lines]:
    if output == STANDARD:
        yield Lines(sys.stdout.buffer)
        sys.stdout.buffer.flush()
        return
    with plain_lines(output) if file == STANDARD else resumable_lines(output, facts) as lines:
        yield lines


def summary_lines(monitor: Monitor, summary: Summary, file: Path) -> list[str]:
    """What the texts have in common along each vector."""
    lines = []
    halves = summary.texts.half_width()
    slopes = summary.slopes.half_width() if summary.slopes.n else None
    for probe, source in enumerate(monitor.sources):
        n, mean, half = summary.texts.n, float(summary.texts.mean[probe]), float(halves[probe])
        neutral = " and ".join(f"{getattr(monitor, name).texts[probe].mean:.3g} ({name})" for name in monitor.forms)
        interval = f" [{mean - half:.3g}, {mean + half:.3g}]" if n > 1 else ""
        line = (
            f"{file.name}: {source.behavior}, layer {source.layer}: mean projection {mean:.3g}{interval} over {n} "
            f"texts; neutral texts {neutral}; {float(summary.above[probe]) / n:.0%} above their {BAND[1]:.0%} quantile"
        )
        if slopes is not None:
            drift, wide = float(summary.slopes.mean[probe]), float(slopes[probe])
            of = f" [{drift - wide:.3g}, {drift + wide:.3g}]" if summary.slopes.n > 1 else ""
            line += f"; drift {drift:+.3g}{of} a turn over {summary.slopes.n} conversations"
        lines.append(line)
    return lines


# --- page and figure -------------------------------------------------------------------------------


def _write_beside(monitor: Monitor, file: Path, summary: Summary) -> None:
    request, stem = monitor.request, monitor.request.stem_of(file)
    if summary.slopes.n:
        drift = stem.with_name(f"{stem.name}_drift")
        log_written(plot_drift(summary, monitor.sources, monitor.answers, drift, file.name))
    if not request.page_texts:
        return
    shown = [one for one in monitor.measure(file, until=request.page_texts) if isinstance(one, Measured)]
    if shown:
        page = with_suffix(stem, ".html")
        write_text(page, _page(monitor, file, shown, summary.texts.n))
        log.info("wrote %s", page)
    else:
        log.warning("%s: none of the first %d texts can be measured: no page", file, request.page_texts)


def _page(monitor: Monitor, file: Path, shown: Sequence[Measured], n_texts: int) -> str:
    sources = monitor.sources
    start = sources[0].key
    label = monitor.model.label
    neutral = monitor.reference(shown[0].text)
    subtitle = (
        f"{file.name}, the first {len(shown)} of {n_texts} texts; {label} without steering. Dot products are with the "
        f"vector scaled to length 1; percentiles are among {neutral.n_texts} neutral texts."
    )
    texts = [_page_text(monitor, one) for one in shown]
    behaviors = {source.behavior: describe(source.behavior) for source in sources}
    return texts_page(texts, start, "Texts along steering vectors", subtitle, behaviors)


def _page_text(monitor: Monitor, measured: Measured) -> PageText:
    ids = measured.encoded.ids
    first = next(turn for turn in measured.encoded.measured if len(turn))
    n_prompt = 0 if measured.text.is_bare else first.start
    tokens = PromptTokens(ids, max(0, n_prompt - 1))
    transcript = Transcript(tokens, n_prompt, texts_in_context(monitor.model.tokenizer, ids))
    reference = monitor.reference(measured.text)
    found, notes = {}, {}
    for probe, source in enumerate(monitor.sources):
        values, cosines = measured.projections.values[probe], measured.projections.cosines[probe]
        found[source.key] = TokenProjections(transcript, cosines, values)
        mean = float(measured.means[probe])
        percentile = float(reference.texts[probe].percentiles(mean))
        notes[source.key] = f"mean projection {mean:+.3g}, percentile {percentile:.0f}"
    name = measured.text.id or f"text {measured.index}"
    return PageText(name, found, notes)
