"""The page of a run: what it says, what it refuses, and how a real browser lays it out."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from memfit.cli import main
from memfit.errors import ArgumentError
from memfit.records import (
    Budget,
    Consumer,
    Estimate,
    Event,
    Levers,
    Moment,
    Plan,
    Profile,
    Reading,
    Remat,
    RunReport,
    Segment,
)
from memfit.reporting import advice, icicle, page
from memfit.timeline import Sample, Timeline

GIB, MIB = 2**30, 2**20
BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)


def report(num_samples: int = 50) -> RunReport:
    budget = Budget(2 * GIB, "asked for")
    peak = Estimate(1500 * MIB, 100 * MIB, "graph liveness", Moment("backward", "net/conv_1", "Conv2DBackprop"))
    layers = tuple(Consumer(f"net/block_{n // 4}/conv_{n}", "Conv2D", (40 - n) * 8 * MIB) for n in range(40))
    profile = Profile(
        "torch", "cpu", 64, 90 * MIB, 90 * MIB, 180 * MIB, 30 * MIB, layers, Reading(600 * MIB, None, ""), peak
    )
    events = (Event(0.1, "plan", "as Keras"), Event(6.0, "mark", "host memory <b>reached</b> 80%"))
    samples = tuple(
        Sample(1 + n / 4, "validation" if n % 10 > 7 else "train", n // 10, n % 10, (600 + 17 * n) * MIB, 0, 900 * MIB)
        for n in range(num_samples)
    )
    plan = Plan(64, 16, budget, peak, reasons=("the whole batch takes 3 GiB",), relative_time=1.3)
    return RunReport(plan, profile, events, Reading(1450 * MIB, None, "RssAnon"), 20.0, 1.0, Timeline(samples, 0.002))


class Parsed(HTMLParser):
    """What would reach out of the page, and what it says."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.feed(document)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [str(value) for name, value in attrs if name in ("src", "href", "srcset")]


def test_the_page_needs_no_network_and_no_scripts_and_escapes_what_it_shows() -> None:
    document = page.of_run(report())
    parsed = Parsed(document)
    assert "script" not in parsed.tags
    assert not parsed.links
    assert "url(" not in document
    assert "@import" not in document
    assert "<b>" not in document
    assert "host memory &lt;b&gt;reached&lt;/b&gt; 80%" in document


def test_the_page_says_it_all() -> None:
    document = page.of_run(report())
    for text in (
        "Memory over time",
        "host budget: 2 GiB",
        "predicted peak: 1.5 GiB",
        "-3.3% beside the prediction",
        "backward of net/conv_1",
        "block_0",
        "the whole batch takes 3 GiB",
        "What to try next",
        "allow={&#x27;precision&#x27;}",
    ):
        assert text in document


def test_the_bytes_by_layer_are_those_of_the_step_that_was_trained_or_it_says_whose_they_are() -> None:
    run = report()
    assert run.profile is not None
    plain_only = page.of_run(run)
    assert (
        "This is the plain step, not the one that was trained, whose bytes were not predicted (each batch of 64 goes"
        in plain_only
    )
    assert "net/<wbr>block_<wbr>0/<wbr>conv_<wbr>0" in plain_only
    assert "<td>Conv2D" in plain_only
    assert "320 MiB" in plain_only
    parts = tuple(dataclasses.replace(layer, bytes=layer.bytes // 4) for layer in run.profile.layers)
    planned = dataclasses.replace(run.profile, batch_size=16, layers=parts)
    document = page.of_run(dataclasses.replace(run, planned=planned))
    assert "The step that was trained, with one micro-batch of 16 in it." in document
    assert "80 MiB" in document
    assert "320 MiB" not in document
    levers = Levers(remat=Remat((Segment(0, 4),)), precision="mixed_float16")
    whole = dataclasses.replace(run.plan, micro_batch_size=None, levers=levers)
    document = page.of_run(dataclasses.replace(run, plan=whole, planned=planned))
    assert "with the whole batch in it, 1 segment recomputed in the backward pass, computed in float16" in document
    assert "that is shown which is there at the peak" in document
    as_keras = dataclasses.replace(whole, levers=Levers())
    document = page.of_run(dataclasses.replace(run, plan=as_keras, planned=run.profile))
    assert "The step that was trained: the plain one at batch size 64." in document


def test_outputs_of_layers_that_are_a_small_part_are_drawn_by_themselves_too() -> None:
    run = report()
    assert run.profile is not None
    assert "by themselves" not in page.of_run(run)
    base = Reading(60 * GIB, None, "")
    document = page.of_run(dataclasses.replace(run, profile=dataclasses.replace(run.profile, base=base)))
    assert document.count("outputs of layers: ") == 2 * page.of_run(run).count("outputs of layers: ")
    assert "by themselves" in document


def test_the_plan_is_not_told_twice_and_later_ones_keep_their_lines() -> None:
    run = report()
    plans = (Event(1.0, "plan", str(run.plan)), Event(2.0, "retry", "first\n  second"))
    document = page.of_run(dataclasses.replace(run, events=plans))
    assert document.count("the whole batch takes 3 GiB") == 1
    assert "first\n  second" in document


def test_a_run_of_hours_makes_a_small_page() -> None:
    assert len(page.of_run(report(4000))) < 120_000


def test_a_run_without_prediction_profile_or_timeline_has_a_page() -> None:
    bare = dataclasses.replace(report(), profile=None, timeline=None, events=())
    bare = dataclasses.replace(bare, plan=Plan(None, None, Budget(GIB, "", 4 * GIB, "")))
    assert "Nothing was predicted" in page.of_run(bare)


def test_layers_are_grouped_by_their_paths_and_blocks_hold_their_parts() -> None:
    blocks = icicle.blocks_of(report().profile)  # type: ignore[arg-type]
    outputs = next(block for block in blocks if block.name == "outputs of layers")
    assert {part.name for part in outputs.parts} >= {"block_0", "block_5"}
    assert all(sum(part.bytes for part in block.parts) <= block.bytes for block in blocks)


def test_what_to_try_names_what_happened() -> None:
    over = dataclasses.replace(report(), peak=Reading(3 * GIB, None, ""))
    assert "more than was predicted" in advice.of_run(over)[0]
    assert over.plan.peak is not None
    left_out = dataclasses.replace(over.plan.peak, left_out=3 * GIB)
    within = dataclasses.replace(over, plan=dataclasses.replace(over.plan, peak=left_out))
    assert not any("more than was predicted" in sentence for sentence in advice.of_run(within))
    fits = dataclasses.replace(report(), plan=Plan(64, None, Budget(2 * GIB, "")), profile=None)
    assert advice.of_run(fits)[0].startswith("Nothing: the run fitted, with")


def test_a_report_goes_to_a_file_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert RunReport.from_json(dataclasses.replace(report(), planned=report().profile).to_json()).planned is not None
    path = report().save(tmp_path / "run.json")
    assert RunReport.from_json(path.read_text()) == report()
    assert main(["report", str(path)]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "run.html")
    assert (tmp_path / "run.html").read_text() == page.of_run(report())
    assert report().report(tmp_path / "own.html").read_text() == page.of_run(report())


def test_a_monitors_file_has_a_page() -> None:
    timeline = report().timeline
    assert timeline is not None
    document = {"format": "memfit timeline 1", "events": [], "timeline": timeline.as_fields()}
    assert "Memory over time" in page.of_document(json.dumps(document))


@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, 0.999])
def test_a_file_that_was_cut_short_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kept: float
) -> None:
    document = report().to_json()
    path = tmp_path / "run.json"
    path.write_text(document[: int(kept * len(document)) if isinstance(kept, float) else kept])
    assert main(["report", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "Write it again" in error
    assert [one.name for one in tmp_path.iterdir()] == ["run.json"]


def test_a_report_of_another_version_is_refused() -> None:
    fields = {**json.loads(report().to_json()), "format": "memfit run report 9"}
    with pytest.raises(ArgumentError, match=r"another version of memfit\. Received: format='memfit run report 9'"):
        RunReport.from_json(json.dumps(fields))


@pytest.mark.parametrize("document", ["[]", "3", "null", '{"format": "memfit timeline 1"}', '{"format": 1}', "\x00"])
def test_what_is_no_report_is_refused(document: str) -> None:
    with pytest.raises(ArgumentError):
        page.of_document(document)


def test_a_file_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "/nowhere/run.json"]) == 2
    assert "cannot be read" in capsys.readouterr().err


_PROBE = (
    "<script>addEventListener('load', () => { const style = getComputedStyle(document.body);"
    "document.title = JSON.stringify({wide: document.documentElement.scrollWidth, inner: innerWidth,"
    "paper: style.backgroundColor, ink: style.color,"
    "chart: document.querySelector('.chart').getBoundingClientRect().width,"
    "path: document.querySelector('path.host').getBoundingClientRect().height}); })</script>"
)
"""Only in the test's copy: the page itself has no script. It looks from inside of frames of the wanted width."""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [360, 1280])
def test_a_real_browser_lays_the_page_out(tmp_path: Path, width: int, dark: bool) -> None:
    document = page.of_run(report()).replace("</head>", _PROBE + "</head>")
    (tmp_path / "page.html").write_text(document)
    holder = (
        f"<iframe src='page.html' style='width:{width}px;height:2000px;border:0;color-scheme:{'dark' if dark else 'light'}'>"
        "</iframe>"
    )
    # A headless window is no narrower than 500 pixels; a frame is. The frame reads the scheme from the page around it.
    (tmp_path / "holder.html").write_text(
        f"<meta name='color-scheme' content='{'dark' if dark else 'light'}'>{holder}<script>addEventListener('load', () =>"
        "document.body.dataset.found = document.querySelector('iframe').contentDocument.title)</script>"
    )
    assert BROWSER is not None
    run = subprocess.run(
        [
            BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files",
            f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1400,2100", "--virtual-time-budget=3000",
            "--dump-dom", (tmp_path / "holder.html").as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    match = re.search(r'data-found="([^"]*)"', run.stdout)
    assert match is not None, run.stdout[:2000]
    found = json.loads(match[1].replace("&quot;", '"'))
    assert found["inner"] == width
    assert found["wide"] <= width  # nothing has to be scrolled sideways
    assert found["chart"] > 0.8 * min(width, 1024)
    assert found["path"] > 50
    paper = sum(map(int, re.findall(r"\d+", found["paper"])[:3]))
    ink = sum(map(int, re.findall(r"\d+", found["ink"])[:3]))
    assert (paper < 150 and ink > 600) if dark else (paper > 700 and ink < 150)
