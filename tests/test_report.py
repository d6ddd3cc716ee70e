"""The page: what is in the file, and what it does in a browser."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import numpy as np
import pytest

from sru_asr.breakdown import divide
from sru_asr.evaluation import Evaluation, evaluate
from sru_asr.report import write_html
from sru_asr.report.players import find_recordings
from sru_asr.score import WordErrorRate
from sru_asr.transcripts import TranscriptError

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
HOSTILE = "<script>window.hacked=1</script>"
CLOSING = "</script><img/src=x/onerror=window.hacked=1>"

REFERENCE = {
    "a-1": "the cat sat",
    "a-2": "the dog sat on the mat",
    "b-10": "go north",
    "b-9": f"say {HOSTILE} now",
    CLOSING: "&lt;b&gt; @DATA@ it",
}
GOOD = REFERENCE | {"a-1": "the cat sit", "b-9": f"say {CLOSING} now"}
BAD = REFERENCE | {
    "a-1": "the cat sit",
    "a-2": "the dog sit on mat",
    "b-10": "go far north",
    "b-9": "",
}


def evaluated(reference: dict[str, str], **systems: dict[str, str]) -> Evaluation:
    scored = {}
    for name, hypothesis in systems.items():
        metric = WordErrorRate(bootstrap=200)
        metric.append(list(reference), [hypothesis[one] for one in reference], reference.values())
        scored[name] = metric.utterances()
    words = {one: str(len(text.split())) for one, text in reference.items()}
    return evaluate(scored, "ref.txt", "single spaces", {"length": divide(words)}, 200)


def data_of(page: Path) -> dict:
    text = page.read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text)
    assert found
    return json.loads(found[1])


def test_page_is_one_file_that_asks_for_nothing(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    write_html(page, evaluated(REFERENCE, good=GOOD, bad=BAD))
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"https?://|@import|url\(|<link", text)
    assert text.count("<script") == 2 and text.count("</script>") == 2
    assert "default-src 'none'" in text
    script = text.rsplit("<script>", 1)[1].split("</script>")[0]
    assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in text
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b", script)
    for placeholder in ("@HASH@", "@TITLE@", "@STYLE@", "@SCRIPT@"):
        assert placeholder not in text
    rows = data_of(page)["utterances"]
    assert rows[-1] == [CLOSING, REFERENCE[CLOSING], [0, 0], [0, 0], 0]
    assert rows[1] == ["a-2", REFERENCE["a-2"], [0, BAD["a-2"]], [0, "==S=D="], 0]


def test_page_of_2000_utterances_is_small(tmp_path: Path) -> None:
    vocabulary = np.array([f"word{i}" for i in range(500)])
    generator = np.random.default_rng(0)
    reference = {
        f"speaker-{i % 40}-{i:04d}": " ".join(generator.choice(vocabulary, 20)) for i in range(2000)
    }
    wrong = {
        name: " ".join(w if generator.random() > 0.1 else "wrong" for w in text.split())
        for name, text in reference.items()
    }
    page = tmp_path / "page.html"
    write_html(page, evaluated(reference, one=wrong))
    texts = sum(map(len, [*reference, *reference.values(), *wrong.values()]))
    assert page.stat().st_size < 1.25 * texts + 50_000 < 1_000_000


def test_players(tmp_path: Path) -> None:
    audio = tmp_path / "some audio"
    audio.mkdir()
    for name in ("a-1.flac", "a-1.wav", "a-2.mp3", "b-10.txt"):
        (audio / name).write_bytes(b"sound")
    found = find_recordings(REFERENCE, audio)
    assert {name: file.name for name, file in found.items()} == {"a-1": "a-1.wav", "a-2": "a-2.mp3"}
    page = tmp_path / "pages" / "page.html"
    write_html(page, evaluated(REFERENCE, good=GOOD), found)
    links = {row[0]: row[4] for row in data_of(page)["utterances"]}
    assert links == dict.fromkeys(REFERENCE, 0) | {
        "a-1": "./../some%20audio/a-1.wav",
        "a-2": "./../some%20audio/a-2.mp3",
    }
    write_html(page, evaluated(REFERENCE, good=GOOD), found, embed=True)
    assert data_of(page)["utterances"][1][4] == "data:audio/mpeg;base64,c291bmQ="

    named = {"a-1": str(audio / "a-2.mp3"), "a-2": str(audio / "missing.wav")}
    assert find_recordings(REFERENCE, None, named) == {"a-1": audio / "a-2.mp3"}
    assert set(find_recordings(REFERENCE, audio, named)) == {"a-1", "a-2"}


def test_players_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(TranscriptError, match=r"--audio-root .*nowhere: No such file"):
        find_recordings(["a"], tmp_path / "nowhere")
    with pytest.raises(TranscriptError, match=r"found none of the recordings, expected a\.wav"):
        find_recordings(["a"], tmp_path)
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.wav").touch()
    with pytest.raises(TranscriptError, match="found a twice"):
        find_recordings(["a"], tmp_path)


# What a user does, by the elements that a user sees; each step adds to what it found.
STEPS = """
const found = {};
const $ = (selector) => document.querySelector(selector);
const all = (selector) => [...document.querySelectorAll(selector)];
const ids = () => all("#list tbody th").map((cell) => cell.firstChild.textContent);
const head = (label) => all("#list thead button").find((one) => one.textContent === label);
const enter = async (selector, value) => {
  $(selector).value = value;
  $(selector).dispatchEvent(new Event("input", { bubbles: true }));
  await new Promise((done) => setTimeout(done, 300));
};
const confusion = (text) => all("button.confusion").find((one) => one.textContent.startsWith(text));

found.start = ids();
found.count = $("#count").textContent;
found.confusions = all("button.confusion").map((one) => one.textContent);
head("Utterance").click();
found.byId = ids();
head("Utterance").click();
found.byIdDown = ids();
found.ariaSort = all("#list thead th").map((one) => one.getAttribute("aria-sort"));
found.focused = document.activeElement.textContent;
head("WER").click();
found.byWer = ids();

await enter("#search", "CAT");
found.search = ids();
await enter("#search", "");
await enter("#id", "b-");
found.idFilter = ids();
await enter("#id", "");
await enter("#wer-from", "40");
found.werFrom = ids();
await enter("#wer-from", "");
await enter("#words-to", "2");
found.wordsTo = ids();
await enter("#words-to", "");

confusion("sat → sit").click();
found.confusion = ids();
found.pressed = confusion("sat → sit").getAttribute("aria-pressed");
found.chips = all("#chips button").map((one) => one.textContent);
$("#chips button").click();
found.released = [ids().length, confusion("sat → sit").getAttribute("aria-pressed")];
all("button.group").find((one) => one.textContent === "2").click();
found.group = ids();
$("#filters button[type=reset]").click();
await new Promise((done) => setTimeout(done, 300));
found.reset = ids().length;

await enter("#system", "0");
found.oneSystem = [head("Spread") === undefined, $("#count").textContent];
found.alignment = all("#list tbody tr").map((row) => [...row.querySelectorAll(".s, .d, .i")]
  .map((one) => one.textContent));
await enter("#system", "all");
found.marks = [...new Set(all("#list .s, #list .d, #list .i").map((one) =>
  [one.className, getComputedStyle(one, "::before").content].join()))].sort();
found.text = $("#list").textContent;
found.hacked = window.hacked;
found.elements = [all("img").length, all("main script").length];
found.unreachable = all("button, input, select, summary, audio").filter((one) => one.tabIndex < 0)
  .length;
found.verdicts = all("#comparisons .verdict").map((one) => one.textContent);
found.groups = all("button.group").map((one) => one.textContent);
found.wide = document.documentElement.scrollWidth > innerWidth;
found.audio = all("audio").map((one) => one.getAttribute("src"));
found.errors = window.problems;
document.body.replaceChildren(Object.assign(document.createElement("pre"),
  { id: "found", textContent: JSON.stringify(found) }));
"""
LISTEN = """
window.problems = [];
addEventListener("error", (event) => window.problems.push(String(event.message)));
addEventListener("securitypolicyviolation", (event) =>
  window.problems.push(event.violatedDirective));
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What `STEPS` sees in Chromium, on a narrow screen."""
    if CHROMIUM is None:
        pytest.skip("Chromium is not here; it comes with: apt-get install chromium")
    folder = tmp_path_factory.mktemp("page")
    (folder / "a-1.wav").touch()
    page = folder / "page.html"
    recordings = find_recordings(REFERENCE, folder)
    write_html(page, evaluated(REFERENCE, good=GOOD, bad=BAD), recordings)
    text = page.read_text(encoding="utf-8")
    steps = f"addEventListener('load', async () => {{ {STEPS} }});"
    hashes = [base64.b64encode(hashlib.sha256(s.encode()).digest()) for s in (LISTEN, steps)]
    allowed = " ".join(f"'sha256-{one.decode()}'" for one in hashes)
    text = text.replace("script-src ", f"script-src {allowed} ", 1)
    text = text.replace("<title>", f"<script>{LISTEN}</script><title>", 1)
    text = text.replace("</body>", f"<script>{steps}</script></body>")
    page.write_text(text, encoding="utf-8")
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--window-size=500,900")
    done = subprocess.run(
        [CHROMIUM, *options, f"--user-data-dir={folder / 'profile'}", "--enable-logging=stderr"]
        + ["--virtual-time-budget=20000", "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=300,
    )
    dumped = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert dumped, console or done.stdout[-2000:] + done.stderr[-2000:]
    return json.loads(unescape(dumped[1])) | {"console": console}


def test_browser_finds_no_errors(found: dict) -> None:
    assert (found["errors"], found["console"]) == ([], [])


def test_sorting(found: dict) -> None:
    assert found["start"] == ["b-9", "a-1", "a-2", "b-10", CLOSING]  # by errors
    assert found["byId"] == [CLOSING, "a-1", "a-2", "b-9", "b-10"]  # numbers as numbers
    assert found["byIdDown"] == found["byId"][::-1]
    assert found["ariaSort"] == ["descending", *["none"] * 4, None]
    assert found["focused"] == "Utterance"
    assert found["byWer"] == ["b-9", "a-1", "b-10", "a-2", CLOSING]


def test_filters(found: dict) -> None:
    assert found["count"].startswith("5 of 5 utterances, 17 words; WER good 11.76 %, bad 41.18 %")
    assert found["search"] == ["a-1"]
    assert sorted(found["idFilter"]) == ["b-10", "b-9"]
    assert found["werFrom"] == ["b-9"]
    assert found["wordsTo"] == ["b-10"]
    assert found["reset"] == 5


def test_a_confusion_shows_where_it_happens(found: dict) -> None:
    assert found["confusions"][0] == "sat → sit3"
    assert "− the1" in found["confusions"] and "+ far1" in found["confusions"]
    assert sorted(found["confusion"]) == ["a-1", "a-2"]
    assert (found["pressed"], found["chips"]) == ("true", ["sat → sit"])
    assert found["released"] == [5, "false"]


def test_a_group_shows_its_utterances(found: dict) -> None:
    assert found["groups"] == ["2", "3", "6"]
    assert found["group"] == ["b-10"]


def test_one_system_or_all(found: dict) -> None:
    alone, count = found["oneSystem"]
    assert alone and count.endswith("WER 11.76 %")
    assert [f"{HOSTILE} {CLOSING}"] in found["alignment"]
    assert ["sat sit"] in found["alignment"]
    assert len(found["verdicts"]) == 1


def test_errors_are_marked_without_colours(found: dict) -> None:
    assert found["marks"] == ['d,"− "', 'i,"+ "', "s,none"]


def test_hostile_text_stays_text(found: dict) -> None:
    assert found.get("hacked") is None
    assert found["elements"] == [0, 0]
    assert HOSTILE in found["text"] and CLOSING in found["text"] and "&lt;b&gt;" in found["text"]


def test_layout_keyboard_and_players(found: dict) -> None:
    assert not found["wide"]
    assert found["unreachable"] == 0
    assert found["audio"] == ["./a-1.wav"]
