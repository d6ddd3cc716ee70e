"""Every format reads to the same utterances; every fault is named with its place."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sru_asr.transcripts import (
    WRITTEN_FORMATS,
    TranscriptError,
    pair,
    read_pair,
    read_transcripts,
    write_atomically,
    write_transcripts,
)

EXPECTED = {"u-2": "go north", "u-1": "", "u-3": "a"}
CONTENTS = {
    "text": "u-2 go north\nu-1\nu-3\ta\n",
    "any.kaldi": "u-2  go north\n\nu-1 \nu-3 a",
    "ref.trn": "go north (u-2)\n(u-1)\na (u-3)\n",
    "ref.csv": "ID,duration,wrd\nu-2,1.0,go north\nu-1,2.0,\nu-3,0.1,a\n",
    "spaced.csv": 'Hypothesis, id\n"go north", u-2\n\n"", u-1\na, u-3\n',
    "lines.jsonl": '{"id": "u-2", "text": "go north"}\n\n{"ID": "u-1", "wrd": ""}\n'
    '{"id": "u-3", "transcript": "a", "words": [1]}\n',
    "array.json": '[{"id":"u-2","text":"go north"},\n{"id":"u-1","text":""},'
    '{"id":"u-3","text":"a"}]',
    "manifest.json": '{"u-2": {"wav": "x", "wrd": "go north"}, "u-1": {"wrd": ""},\n'
    '"u-3": {"ID": "u-3", "wrd": "a"}}',
}


def written(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"], ids=["lf", "crlf", "cr"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["no-mark", "mark"])
@pytest.mark.parametrize("name", CONTENTS)
def test_formats_agree(tmp_path, name, mark, line_end):
    content = mark + CONTENTS[name].replace("\n", line_end).encode()
    transcripts = read_transcripts(written(tmp_path, name, content))
    assert transcripts.texts == EXPECTED
    assert transcripts.ids == ["u-2", "u-1", "u-3"]


@pytest.mark.parametrize(
    ("source", "format"),
    [("ref.trn", "trn"), ("ref.csv", "csv"), ("lines.jsonl", "json"), ("array.json", "json")],
)
def test_txt_is_recognised_by_its_content(tmp_path, source, format):
    transcripts = read_transcripts(written(tmp_path, "x.txt", CONTENTS[source]))
    assert (transcripts.format, transcripts.texts) == (format, EXPECTED)


@pytest.mark.parametrize(
    "content",
    [
        "a\n\n b  c \n",
        "{noise} hm\n[laugh]\nok\n",
        "hello (laughter)\nyes (laughter)\nno (laughter)\n",
    ],
)
def test_anything_else_is_plain_and_keeps_blank_lines(tmp_path, content):
    transcripts = read_transcripts(written(tmp_path, "x.txt", content))
    assert transcripts.ids is None
    assert list(transcripts.texts) == ["1", "2", "3"]
    assert list(transcripts.texts.values()) == [line.strip() for line in content.split("\n")[:-1]]


def test_only_line_ends_end_lines(tmp_path):
    transcripts = read_transcripts(written(tmp_path, "x.txt", "a\u2028b\x0cc\x85d\nx\n"))
    assert [text.split() for text in transcripts.texts.values()] == [["a", "b", "c", "d"], ["x"]]


def test_format_can_be_stated(tmp_path):
    path = written(tmp_path, "x.csv", "u one two\n")
    assert read_transcripts(path, "kaldi").texts == {"u": "one two"}
    assert read_transcripts(path, "plain").texts == {"1": "u one two"}


def test_csv_quotes_and_numbers_as_ids(tmp_path):
    path = written(tmp_path, "x.csv", 'text,id\n"say ""hi"", you\nthere",7\n')
    assert read_transcripts(path).texts == {"7": 'say "hi", you\nthere'}
    path = written(tmp_path, "x.json", '{"id": 7, "text": "été"}')
    assert read_transcripts(path).texts == {"7": "été"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.txt", b"", "the file is empty"),
        ("x.txt", b"\xef\xbb\xbf", "the file is empty"),
        ("x.txt", b"fine\nno\xe9\n", "line 2: found byte 0xe9, expected UTF-8"),
        ("x.txt", "a".encode("utf-16"), "line 1: found byte 0xff, expected UTF-8"),
        ("text", "\n \n", "no utterances"),
        ("text", "a x\nb y\na z\n", r"1 duplicate ids: a \(line 1, line 3\)"),
        ("x.trn", "a (u1)\nno id\n", r"line 2: found 'no id', expected words and then \(id\)"),
        ("x.trn", "a (u1)\nb (u2)\nc (u2)\nd (u1)", r"2 duplicate ids: u1 .*, u2 .*line 2, line 3"),
        ("x.csv", "ID,wav\na,b\n", "found the columns ID, wav, expected exactly one ID"),
        ("x.csv", "ID,wrd,text\na,b,c\n", "found the columns ID, wrd, text"),
        ("x.csv", "ID,wrd\n", "no utterances"),
        ("x.csv", "ID,wrd\na,b\nc\n", "line 3: found 1 columns, expected 2"),
        ("x.csv", "ID,wrd\na,b,c\n", "line 2: found 3 columns, expected 2"),
        ("x.csv", "ID,wrd\n,b\n", "line 2: found an empty id"),
        ("x.csv", 'ID,wrd\na,"b\n', "unexpected end of data"),
        ("x.json", '{"id": "a", "text": "b"}\n{"id": "c" "text"}\n', "line 2, column 12: expected"),
        ("x.json", '[{"id": "a", "text": "b"},\n', "line 2, column 1: expected JSON"),
        ("x.json", "[]", "no utterances"),
        ("x.json", "{}", "expected exactly one ID"),
        ("x.json", '["a"]', "record 1: found '\"a\"', expected an object"),
        ("x.json", '{"id": "a", "wav": "b"}', "record 1: found the columns id, wav, expected"),
        ("x.json", '{"id": "a", "text": null}', "record 1: found .*null.*, expected strings"),
        ("x.json", '{"a": {"wrd": "x"}, "a": {"wrd": "y"}}', "1 duplicate ids or names: a"),
        ("x.jsonl", '{"id":"a","text":""}\n{"id":"a","text":""}', r"a \(line 1, line 2\)"),
        ("x.ctm", "", "the file is empty"),
        ("x.ctm", ";; nothing\n", "no utterances"),
        ("x.ctm", "r 1 0.1 0.2 go\nr 1 0.3 0.1\n", "line 2: found 4 fields, expected recording"),
        ("x.ctm", "r 1 0.1 0.2 go 0.9 on\n", "line 1: found 7 fields"),
        ("x.ctm", "r 1 soon 0.2 go\n", "line 1: found 'soon', expected a start in seconds"),
        ("x.ctm", "r 1 0.1 inf go\n", "line 1: found 'inf', expected a duration in seconds"),
        ("x.ctm", "r 1 0.1 0.2 go NA\n", "line 1: found 'NA', expected a confidence"),
        ("x.ctm", ";; c\nr 1 * * <ALT_BEGIN>\n", "line 2: found <ALT_BEGIN>, expected one word"),
        ("x.stm", "r 1 anna 0.0\n", "line 1: found 4 fields, expected recording, channel, sp"),
        ("x.stm", "r 1 anna 0.0 x go\n", "line 1: found 'x', expected an end in seconds"),
        ("x.stm", "r 1 anna 0 1 { a / b } c\n", "line 1: found {, expected words alone"),
        ("x.stm", "r 1 x 0 1 ignore_time_segment_in_scoring", "found ignore_time_segment_in_scor"),
        ("x.json", '{"id": ' * 100_000, "found values that cannot be read"),
        ("x.json", "[" + "9" * 5000, "found values that cannot be read .Exceeds the limit"),
        ("x.csv", "ID," + "x" * 10_000, r"found the columns ID, x{900,1000}\.\.\.$"),
    ],
)
def test_faults_are_named(tmp_path, name, content, message):
    path = written(tmp_path, name, content)
    with pytest.raises(TranscriptError, match=message) as caught:
        read_transcripts(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_missing_file_folder_and_unknown_format(tmp_path):
    with pytest.raises(TranscriptError, match="nowhere: No such file"):
        read_transcripts(tmp_path / "nowhere")
    with pytest.raises(TranscriptError, match="Is a directory"):
        read_transcripts(tmp_path)
    with pytest.raises(TranscriptError, match="unknown format 'text', expected one of kaldi"):
        read_transcripts(written(tmp_path, "x", "a"), "text")


def test_long_lists_are_cut_with_their_count(tmp_path):
    content = "".join(f"u{i} a\nu{i} a\n" for i in range(25))
    with pytest.raises(TranscriptError, match=r"25 duplicate ids: u0 .*u9 \(.*\) and 15 more"):
        read_transcripts(written(tmp_path, "text", content))


def pair_of(folder, reference, hypothesis, **formats):
    ref, hyp = (
        written(folder, f"{side}-{name}", content)
        for side, (name, content) in zip("rh", (reference, hypothesis), strict=True)
    )
    return read_pair(ref, hyp, **formats)


def test_pair_follows_the_ids_not_the_order(tmp_path):
    pairs = pair(
        *pair_of(tmp_path, ("a.kaldi", "x go\ny stop\n"), ("b.trn", "stop (y)\ngone (x)\n"))
    )
    assert pairs == [("x", "go", "gone"), ("y", "stop", "stop")]


def test_pair_of_plain_text_goes_by_line(tmp_path):
    pairs = pair(*pair_of(tmp_path, ("a.txt", "A\nB\nc d\n"), ("b.txt", "B\n\nc\n")))
    assert pairs == [("1", "A", "B"), ("2", "B", ""), ("3", "c d", "c")]


@pytest.mark.parametrize(
    ("reference", "hypothesis", "formats"),
    [
        # ids look like ids and are shared: Kaldi
        ("u1 go north\nu2 stop\n", "u2 stop\nu1 go\n", ("kaldi", "kaldi")),
        ("u1 go\nu2 stop\nu3 a\n", "u1 go\n", ("kaldi", "kaldi")),
        # the words of plain text may agree, and begin with digits
        ("go north\nstop\n", "go forth\nstop\n", ("plain", "plain")),
        ("A\nB\n", "B\nA\n", ("plain", "plain")),
        ("2 apples\n3 pears\n", "7 apples\nthree pears\n", ("plain", "plain")),
    ],
)
def test_two_txt_files_are_kaldi_if_they_share_ids(tmp_path, reference, hypothesis, formats):
    ref, hyp = pair_of(tmp_path, ("a.txt", reference), ("b.txt", hypothesis))
    assert (ref.format, hyp.format) == formats


def test_one_txt_file_is_kaldi_if_it_has_ids_of_the_other(tmp_path):
    kaldi, txt = ("a.kaldi", "x go\ny stop\n"), ("b.txt", "y stop\nx\n")
    assert pair_of(tmp_path, kaldi, txt)[1].texts == {"y": "stop", "x": ""}
    assert pair_of(tmp_path, txt, kaldi)[0].texts == {"y": "stop", "x": ""}
    assert pair_of(tmp_path, txt, txt, hypothesis_format="kaldi")[0].format == "kaldi"
    assert pair_of(tmp_path, txt, txt, hypothesis_format="plain")[0].format == "plain"


@pytest.mark.parametrize(
    ("reference", "hypothesis", "message"),
    [
        (("a.kaldi", "x\ny\nz\n"), ("b.kaldi", "y\n"), r"2 of 3 ids missing \(x, z\)$"),
        (("a.kaldi", "x\n"), ("b.kaldi", "w\nx\nv\n"), r"match .*a.kaldi: 2 extra ids \(w, v\)$"),
        (("a.kaldi", "x\n"), ("b.kaldi", "w\n"), r"missing \(x\) and 1 extra ids \(w\)$"),
        (("a.txt", "x\ny\n"), ("b.txt", "x\n"), "a.txt has 2 lines and .*b.txt has 1$"),
        (("a.txt", "x\n"), ("b.trn", "x (u)\n"), "a.txt was read as plain .*b.trn as trn with ids"),
        (("a.txt", "u1 x\nu2\n"), ("b.txt", "u1 x\nu1 x\n"), r"1 duplicate ids: u1"),
    ],
)
def test_mismatches_list_the_ids(tmp_path, reference, hypothesis, message):
    with pytest.raises(TranscriptError, match=message):
        pair(*pair_of(tmp_path, reference, hypothesis))


names = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1)
# everything but the byte order mark, which a file may not begin with
texts = st.text(st.characters(codec="utf-8", exclude_characters="\ufeff"))


@given(transcripts=st.dictionaries(names, texts, min_size=1))
@pytest.mark.parametrize("format", WRITTEN_FORMATS)
def test_what_is_written_reads_the_same(tmp_path_factory, format, transcripts):
    path = tmp_path_factory.mktemp("round") / "trip"
    write_transcripts(path, transcripts, format)
    found = read_transcripts(path, format)
    assert [text.split() for text in found.texts.values()] == [
        text.split() for text in transcripts.values()
    ]
    if format != "plain":
        assert found.ids == list(transcripts)


@pytest.mark.parametrize(
    ("format", "name"), [("kaldi", "a b"), ("trn", "a)"), ("csv", ""), ("json", " ")]
)
def test_ids_a_format_cannot_hold_are_refused(tmp_path, format, name):
    with pytest.raises(TranscriptError, match=f"cannot be written as {format}"):
        write_transcripts(tmp_path / "x", {name: "text"}, format)
    with pytest.raises(TranscriptError, match="unknown format"):
        write_transcripts(tmp_path / "x", {"a": "text"}, "ctm")
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "x.json"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "\ud800")
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["x.json"]


def test_writing_through_a_link_keeps_the_link(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "deep" / "file")
    write_atomically(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "deep" / "file").read_text() == "new"


def test_json_lines_keep_other_alphabets_readable(tmp_path):
    write_transcripts(tmp_path / "x.jsonl", {"a": "été 你"}, "json")
    line = (tmp_path / "x.jsonl").read_text(encoding="utf-8")
    assert json.loads(line) == {"id": "a", "text": "été 你"}
    assert "été 你" in line


def test_ids_on_one_side_only_are_not_scored_as_words(tmp_path):
    (tmp_path / "ref").write_text("u1 HELLO WORLD\nu2 FOO BAR\n")
    (tmp_path / "hyp.txt").write_text("HELLO WORLD\nFOO BAR\n")
    for ref, hyp in (("ref", "hyp.txt"), ("hyp.txt", "ref")):
        with pytest.raises(TranscriptError, match="every line begins with an id"):
            read_pair(tmp_path / ref, tmp_path / hyp)
    plain = read_pair(tmp_path / "ref", tmp_path / "hyp.txt", "plain", "plain")
    assert plain[0].ids is None


def test_ctm_is_put_into_the_order_of_time(tmp_path):
    content = (
        ";; made by hand\n"
        "talk-2 1 0.50 0.20 stop 0.7\n"
        "talk-1 A 10.0 0.30 north 0.9\n\n"
        "talk-1 A 9.10 0.30 go\n"
        "talk-1 A 10.0 0.30 now -0.5\n"
    )
    transcripts = read_transcripts(written(tmp_path, "x.ctm", content))
    assert transcripts.format == "ctm"
    assert transcripts.texts == {"talk-2": "stop", "talk-1": "go north now"}
    assert transcripts.ids == ["talk-2", "talk-1"]


def test_channels_of_a_recording_are_apart(tmp_path):
    content = "r A 1 1 yes\nr B 0 1 no\nr A 0 1 oh\ns A 0 1 hm\n"
    transcripts = read_transcripts(written(tmp_path, "x.ctm", content))
    assert transcripts.texts == {"r:A": "oh yes", "r:B": "no", "s": "hm"}


def test_stm(tmp_path):
    content = (
        ";; CATEGORY 0\n"
        "r 1 anna 3.0 4.0 <o,f0,female> <unk> now\n"
        "r 1 ben 0.0 2.5 go north\n"
        "r 1 anna 2.5 3.0 <o>\n"
    )
    transcripts = read_transcripts(written(tmp_path, "x.stm", content))
    assert (transcripts.format, transcripts.texts) == ("stm", {"r": "go north <unk> now"})


def test_ctm_lacks_recordings_without_words(tmp_path):
    reference = ("a.stm", "x 1 s 0 1 go\ny 1 s 0 1 stop\n")
    assert pair(*pair_of(tmp_path, reference, ("b.ctm", "x 1 0 1 go\n"))) == [
        ("x", "go", "go"),
        ("y", "stop", ""),
    ]
    with pytest.raises(TranscriptError, match=r"2 of 2 ids missing \(x, y\) and 1 extra ids"):
        pair(*pair_of(tmp_path, reference, ("b.ctm", "z 1 0 1 go\n")))
    with pytest.raises(TranscriptError, match=r"1 of 1 ids missing \(y\)"):
        pair(*pair_of(tmp_path, ("a.ctm", "y 1 0 1 go\n"), ("b.trn", "go (x)\n")))
