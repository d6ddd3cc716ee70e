"""Formats: what is written is read back, as the tools that read it do."""

import json
import re
import subprocess
import sys
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sru_asr.formats import FORMATS, LONGEST_CUE, PAUSE, FormatError, render
from sru_asr.segments import Segment, Transcript, Word
from sru_asr.transcripts import read_transcripts

CLOCK = {
    "srt": re.compile(r"(\d{2,}):([0-5]\d):([0-5]\d),(\d{3})"),
    "vtt": re.compile(r"(\d{2,}):([0-5]\d):([0-5]\d)\.(\d{3})"),
}


def milliseconds(kind, text):
    hours, minutes, seconds, thousandths = map(int, CLOCK[kind].fullmatch(text).groups())
    return ((hours * 60 + minutes) * 60 + seconds) * 1000 + thousandths


def read_cues(kind, content):
    """Cues as (start, end, lines), read by the formats' rules: blocks divided by blank lines."""
    blocks = [block.split("\n") for block in re.split(r"\n\n+", content.strip("\n")) if block]
    if kind == "vtt":
        assert blocks.pop(0) == ["WEBVTT"]
    cues = []
    for number, block in enumerate(blocks, 1):
        if kind == "srt":
            assert block.pop(0) == str(number)
        times, *lines = block
        start, end = times.split(" --> ")
        assert lines
        assert not any("-->" in line for line in lines)
        if kind == "vtt":
            assert not any("<" in line for line in lines)
            lines = [
                line.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
                for line in lines
            ]
        cues.append((milliseconds(kind, start), milliseconds(kind, end), lines))
    return cues


def transcript(*segments, text=None, duration=None):
    texts = " ".join(segment.text for segment in segments)
    end = segments[-1].end if segments else 0.0
    return Transcript("x/one.wav", text or texts, duration or end, segments=segments)


def spoken(*words):
    """A segment of words given as (text, start, end)."""
    made = tuple(Word(text, start, end, 0.5) for text, start, end in words)
    return Segment(" ".join(w.text for w in made), made[0].start, made[-1].end, made)


# Words of any characters but white space, as recognised texts are split.
WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(
    lambda text: text.split() == [text]
)
GAPS = st.floats(0, 10)


@st.composite
def transcripts(draw, with_words=True):
    """Segments in order, up to many hours."""
    now = draw(st.sampled_from([0.0, 59.9995, 3599.9996, 3600.0, 360000.5])) + draw(GAPS)
    segments = []
    for _ in range(draw(st.integers(0, 3))):
        words = []
        for text in draw(st.lists(WORDS, max_size=8)):
            start = now + draw(GAPS) / 8
            now = start + draw(st.floats(0.0001, 2))
            words.append(Word(text, start, now, draw(st.floats(0, 1))))
        text = " ".join(word.text for word in words)
        start = words[0].start if words else now
        segments.append(Segment(text, start, now + 0.01, tuple(words) if with_words else ()))
        now += draw(GAPS)
    return transcript(*segments, duration=now + 1)


def all_words(made):
    return [word for segment in made.segments for word in segment.text.split()]


@settings(max_examples=60, deadline=None)
@given(transcripts(), st.integers(1, 40), st.integers(1, 3), st.sampled_from(["srt", "vtt"]))
def test_subtitles_are_read_back(made, width, count, kind):
    cues = read_cues(kind, render(kind, "one", made, width, count))
    read = [word for _, _, lines in cues for line in lines for word in line.split(" ")]
    written = all_words(made)
    if kind == "srt":
        written = [word.replace("-->", "->") for word in written]
    assert read == written
    edges = [time for start, end, _ in cues for time in (start, end)]
    assert all(start < end for start, end, _ in cues)
    # Up to a millisecond, where a word lasts for less.
    assert all(before <= after + 1 for before, after in pairwise(edges))
    for start, end, lines in cues:
        assert len(lines) <= count
        assert all(len(line) <= width or " " not in line for line in lines)
        one = sum(len(line.split(" ")) for line in lines) == 1
        assert one or end - start <= 1000 * LONGEST_CUE + 1


@settings(max_examples=40, deadline=None)
@given(transcripts(with_words=False), st.sampled_from(["srt", "vtt"]))
def test_segments_without_words_are_cues(made, kind):
    cues = read_cues(kind, render(kind, "one", made))
    filled = [segment for segment in made.segments if segment.text]
    assert [start for start, _, _ in cues] == [round(1000 * s.start) for s in filled]
    assert [" ".join(lines) for _, _, lines in cues] == [
        s.text.replace("-->", "->") if kind == "srt" else s.text for s in filled
    ]


@settings(max_examples=40, deadline=None)
@given(transcripts(), st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_tables_are_read_back(made, name):
    header, *rows = render("tsv", name, made).removesuffix("\n").split("\n")
    assert header == "start\tend\ttext"
    for row, segment in zip(rows, made.segments, strict=True):
        start, end, text = row.split("\t")
        assert (int(start), int(end)) == (round(1000 * segment.start), round(1000 * segment.end))
        assert text == segment.text

    read = json.loads(render("json", name, made))
    assert (read["id"], read["text"]) == (name, made.text)
    for one, segment in zip(read["segments"], made.segments, strict=True):
        assert abs(one["start"] - segment.start) <= 0.00051
        assert [word["word"] for word in one["words"]] == segment.text.split()
        for word, given_word in zip(one["words"], segment.words, strict=True):
            assert abs(word["end"] - given_word.end) <= 0.00051
            assert abs(word["confidence"] - given_word.confidence) <= 0.00006

    lines = render("txt", name, made).splitlines(keepends=False)
    assert [word for line in lines for word in line.split()] == all_words(made)


@settings(max_examples=40, deadline=None)
@given(transcripts())
def test_ctm_is_read_back_by_sclites_rules(made):
    rows = [line.split() for line in render("ctm", "a (1)", made).splitlines()]
    words = [word for segment in made.segments for word in segment.words]
    assert len(rows) == len(words)
    starts = [float(row[2]) for row in rows]
    assert starts == sorted(starts)
    for (recording, channel, start, lasts, text, confidence), word in zip(rows, words, strict=True):
        assert (recording, channel, text) == ("a_1_", "1", word.text)
        assert abs(float(start) - word.start) <= 0.00051
        assert float(lasts) > 0
        assert float(lasts) == 0.001 or abs(float(start) + float(lasts) - word.end) <= 0.00051
        assert 0 <= float(confidence) <= 1


@pytest.mark.parametrize(
    ("name", "expected"), [("an1-f", "an1-f"), ("my talk (2)", "my_talk_2_"), ("(a)\tb", "_a_b")]
)
def test_trn_has_ids_that_are_read(tmp_path, name, expected):
    file = tmp_path / "one.trn"
    file.write_text(render("trn", name, transcript(Segment("GO (UH) NORTH", 0, 1))))
    assert read_transcripts(file).texts == {expected: "GO (UH) NORTH"}


def test_json_and_trn_can_be_scored(tmp_path):
    made = transcript(Segment("GO", 0, 1), Segment("NORTH NOW", 1.5, 2))
    for kind in ("json", "trn"):
        file = tmp_path / f"one.{kind}"
        file.write_text(render(kind, "one", made))
        assert read_transcripts(file).texts == {"one": "GO NORTH NOW"}


def test_times_never_round_up_to_sixty():
    made = transcript(Segment("GO", 59.9996, 3599.9996), Segment("ON", 3661.0004, 360000.0))
    assert "00:01:00,000 --> 01:00:00,000" in render("srt", "one", made)
    assert "01:01:01.000 --> 100:00:00.000" in render("vtt", "one", made)


def test_cues_end_at_pauses_and_before_they_are_long():
    words = [(str(i), 2.0 * i, 2.0 * i + 1.9) for i in range(5)]
    words.append(("LATE", words[-1][2] + PAUSE + 0.01, words[-1][2] + PAUSE + 1))
    cues = read_cues("srt", render("srt", "one", transcript(spoken(*words))))
    assert [lines for _, _, lines in cues] == [["0 1 2"], ["3 4"], ["LATE"]]


def test_lines_are_as_wide_as_asked():
    made = transcript(
        spoken(*((word, i, i + 0.9) for i, word in enumerate(("AB", "CD", "EFGHIJ", "K"))))
    )
    cues = read_cues("vtt", render("vtt", "one", made, max_line_width=5, max_line_count=2))
    assert [lines for _, _, lines in cues] == [["AB CD", "EFGHIJ"], ["K"]]


def test_webvtt_escapes_and_srt_has_no_arrows():
    made = transcript(Segment("A<B & C>D --> &lt;", 0, 1))
    assert "A&lt;B &amp; C&gt;D --&gt; &amp;lt;\n" in render("vtt", "one", made)
    assert "A<B & C>D -> &lt;\n" in render("srt", "one", made)


def test_white_space_does_not_break_lines():
    made = transcript(Segment("A\tB\n\nC\r\x0bD", 0.0004, 1.0006))
    assert render("tsv", "one", made) == "start\tend\ttext\n0\t1001\tA B C D\n"
    assert render("txt", "one", made) == "A B C D\n"
    assert read_cues("srt", render("srt", "one", made)) == [(0, 1001, ["A B C D"])]


def test_a_transcript_without_segments_is_one():
    made = Transcript("one.wav", "GO NORTH", 1.5)
    assert render("tsv", "one", made).splitlines()[1] == "0\t1500\tGO NORTH"
    assert json.loads(render("json", "one", made))["segments"][0]["end"] == 1.5


def test_nothing_said():
    made = Transcript("one.wav", "", 1.5)
    contents = {kind: render(kind, "one", made) for kind in FORMATS}
    assert contents.pop("trn") == "(one)\n"
    assert json.loads(contents.pop("json"))["segments"] == []
    assert contents == {
        "txt": "",
        "srt": "",
        "vtt": "WEBVTT\n",
        "tsv": "start\tend\ttext\n",
        "ctm": "",
    }


def test_json_is_stable_and_complete():
    word = Word("GO", 0.12345, 0.5, 0.98765)
    segment = Segment("GO", 0.1, 0.6, (word,), 0.9, (("GO", -1.23456), ("NO", float("-inf"))))
    assert json.loads(render("json", "ä", transcript(segment))) == {
        "id": "ä",
        "path": "x/one.wav",
        "text": "GO",
        "duration": 0.6,
        "segments": [
            {
                "start": 0.1,
                "end": 0.6,
                "text": "GO",
                "confidence": 0.9,
                "words": [{"word": "GO", "start": 0.123, "end": 0.5, "confidence": 0.9877}],
                "alternatives": [{"text": "GO", "score": -1.2346}, {"text": "NO", "score": None}],
            }
        ],
    }
    keys = re.findall(r'"(\w+)":', render("json", "ä", transcript(segment)))
    assert keys[:8] == ["id", "path", "text", "duration", "segments", "start", "end", "text"]


def test_names_that_are_not_utf8_are_written():
    made = Transcript("\udcff.wav", "GO", 1.0)
    render("json", "\udcff", made).encode()


@pytest.mark.parametrize(
    ("kind", "made", "options", "message"),
    [
        ("doc", transcript(), {}, "format: found 'doc', expected one of txt, srt"),
        ("ctm", transcript(Segment("GO", 0, 1)), {}, "ctm: found no times of words of one"),
        ("srt", transcript(), {"max_line_width": 0}, "max_line_width: found 0"),
        ("srt", transcript(), {"max_line_count": 2}, "found no max_line_width"),
        (
            "vtt",
            transcript(Segment("GO NORTH NOW", 0, 1)),
            {"max_line_width": 5, "max_line_count": 1},
            "max_line_count: found no times of words of one",
        ),
        ("trn", transcript(Segment("A { B / C }", 0, 1)), {}, "found '{' in one, which sclite"),
        ("trn", transcript(Segment(";; A", 0, 1)), {}, "found ';;' in one"),
        ("ctm", transcript(spoken(("<ALT>", 0, 1))), {}, "found '<ALT>' in one"),
        ("txt", Transcript("a", "", 0, error="audio file a: found x"), {}, "audio file a: found x"),
    ],
)
def test_what_cannot_be_written_is_an_error(kind, made, options, message):
    with pytest.raises(FormatError, match=re.escape(message)):
        render(kind, "one", made, **options)


def test_formats_need_no_torch():
    code = "import sys, sru_asr.formats; print('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "False\n"
