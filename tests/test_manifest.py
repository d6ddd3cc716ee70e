"""Manifests: what is written is read back, and whatever is wrong is named, all at once."""

import json
import logging
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from sru_asr.manifest import (
    ManifestError,
    Utterance,
    check_manifest,
    compare_splits,
    hold_out,
    read_manifest,
    read_table,
    write_manifest,
)
from sru_asr.text import Normalization

HEADER = "ID,duration,wav,spk_id,wrd\n"


@pytest.fixture
def corpus(tmp_path):
    """A data root with two recordings of a second."""
    root = tmp_path / "data root"
    root.mkdir()
    for name in ("a.wav", "b.wav"):
        soundfile.write(root / name, np.zeros(1600), 1600)
    return root


def write(tmp_path, text, name="m.csv"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def problems_of(path, **kwargs):
    with pytest.raises(ManifestError) as caught:
        check_manifest(path, **kwargs)
    assert str(path) in str(caught.value)
    return caught.value.problems


def test_what_is_written_is_read_back_in_order(tmp_path):
    utterances = [
        Utterance("z", 1.25, "{data_root}/z.wav", "anna", "SAY, PLEASE"),
        Utterance("a", 0.1, "/abs/a.flac", "", 'A "QUOTED" WORD'),
        Utterance("ü", 3.0, "/abs/ü.wav", "bob", "ÜBER"),
    ]
    path = tmp_path / "new folder" / "m.csv"
    write_manifest(path, utterances)
    assert path.read_text(encoding="utf-8").startswith(HEADER)
    assert read_manifest(path) == utterances


def test_speechbrain_reads_what_is_written(tmp_path):
    dataio = pytest.importorskip("speechbrain.dataio.dataio")
    path = tmp_path / "m.csv"
    write_manifest(path, [Utterance("u", 1.5, "/a.wav", "anna", "A, B")])
    expected = {"duration": 1.5, "wav": "/a.wav", "spk_id": "anna", "wrd": "A, B"}
    assert dataio.load_data_csv(path) == {"u": expected}


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = write(tmp_path, "old")

    def utterances():
        yield Utterance("u", 1.0, "u.wav", "", "A")
        raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        write_manifest(path, utterances())
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["m.csv"]


@pytest.mark.parametrize(
    "wav", ["{data_root}/a.wav", "$data_root/a.wav", "a.wav"], ids=["braces", "dollar", "relative"]
)
def test_data_root_locates_the_audio(tmp_path, corpus, wav):
    path = write(tmp_path, f"{HEADER}u,1.0,{wav},s,A\n")
    for data_root in (corpus, str(corpus)):
        (utterance,) = check_manifest(path, data_root)
        assert os.path.samefile(utterance.wav, corpus / "a.wav")


def test_a_relative_data_root_is_put_in_once(tmp_path, monkeypatch, corpus):
    monkeypatch.chdir(corpus.parent)
    path = write(tmp_path, HEADER + "u,1.0,{data_root}/a.wav,s,A\n")
    (utterance,) = check_manifest(path, corpus.name)
    assert utterance.wav == f"{corpus.name}/a.wav"


def test_without_a_data_root_paths_start_at_the_manifest(tmp_path, monkeypatch, corpus):
    path = write(corpus, HEADER + "u,1.0,a.wav,s,A\nv,1.0,../data root/b.wav,s,B\n")
    monkeypatch.chdir(tmp_path)
    utterances = check_manifest(path.relative_to(tmp_path))
    assert utterances[0].wav == f"{corpus}/a.wav"
    assert os.path.samefile(utterances[1].wav, corpus / "b.wav")


def test_data_root_leaves_absolute_paths_alone(tmp_path, corpus):
    path = write(tmp_path, f"{HEADER}u,1.0,{corpus}/a.wav,s,A\n")
    (utterance,) = check_manifest(path, data_root="/elsewhere")
    assert utterance.wav == f"{corpus}/a.wav"


def test_a_placeholder_without_data_root_is_named(tmp_path):
    path = write(tmp_path, HEADER + "u,1.0,{data_root}/a.wav,s,A\n")
    assert read_manifest(path)[0].wav == "{data_root}/a.wav"
    (problem,) = problems_of(path)
    assert "ID 'u'" in problem
    assert "data_root was not given" in problem


def test_csv_details_that_people_write(tmp_path, corpus):
    """A byte-order mark, Windows line ends, spaces after commas, other columns, no spk_id."""
    text = "\ufeffID, duration, wav, wrd, lang\r\nu, 1, a.wav, A B, en\r\n"
    path = write(tmp_path, text)
    assert check_manifest(path, corpus) == [Utterance("u", 1.0, f"{corpus}/a.wav", "", "A B")]


def test_json(tmp_path, corpus):
    table = {
        "u1": {"duration": 1.05, "wav": "{data_root}/a.wav", "wrd": "A", "spk_id": "s", "words": 1},
        "u2": {"duration": "1", "wav": "{data_root}/b.wav", "wrd": "B"},
    }
    path = write(tmp_path, json.dumps(table), "m.json")
    assert check_manifest(path, corpus) == [
        Utterance("u1", 1.05, f"{corpus}/a.wav", "s", "A"),
        Utterance("u2", 1.0, f"{corpus}/b.wav", "", "B"),
    ]


def test_a_missing_audio_file_is_named(tmp_path, corpus):
    path = write(tmp_path, HEADER + "u1,1.0,a.wav,s,A\nu2,1.0,gone.wav,s,B\n")
    assert len(read_manifest(path, corpus)) == 2
    with pytest.raises(ManifestError) as caught:
        check_manifest(path, corpus)
    assert str(caught.value) == (
        f"manifest {path}: line 3 (ID 'u2'): audio file {corpus}/gone.wav does not exist"
    )


def test_a_damaged_recording_is_named(tmp_path, corpus):
    (corpus / "a.wav").write_bytes((corpus / "a.wav").read_bytes()[:1000])
    (problem,) = problems_of(write(tmp_path, HEADER + "u,0.1,a.wav,s,A\n"), data_root=corpus)
    assert "line 2 (ID 'u')" in problem
    assert "a.wav" in problem
    assert "truncated" in problem


def test_a_flac_that_is_cut_short_or_damaged_at_its_end_is_named(tmp_path, corpus):
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 16000)
    for name in ("whole", "cut"):
        soundfile.write(corpus / f"{name}.flac", noise, 16000)
    content = (corpus / "cut.flac").read_bytes()
    (corpus / "cut.flac").write_bytes(content[: len(content) // 2])
    rows = "".join(f"{name},1.0,{name}.flac,s,A\n" for name in ("whole", "cut"))
    (problem,) = problems_of(write(tmp_path, HEADER + rows), data_root=corpus)
    assert problem == (
        f"line 3 (ID 'cut'): audio file {corpus}/cut.flac is cut short: its end cannot be decoded"
    )


@pytest.mark.parametrize(
    ("duration", "found"),
    [
        ("1.09", None),
        ("0.91", None),
        ("1.2", "duration 1.2 s, but {} has 1.000 s"),
        ("0.5", "duration 0.5 s, but {} has 1.000 s"),
        ("1004", "duration 1004 s (is it in milliseconds?), but {} has 1.000 s"),
        ("1600", "duration 1600 s (is it in samples?), but {} has 1.000 s"),
    ],
)
def test_durations_that_disagree_with_the_audio(tmp_path, corpus, duration, found):
    path = write(tmp_path, f"{HEADER}u,{duration},a.wav,s,A\n")
    if found is None:
        assert len(check_manifest(path, corpus)) == 1
    else:
        assert problems_of(path, data_root=corpus) == [
            f"line 2 (ID 'u'): {found.format(corpus / 'a.wav')}"
        ]


def test_the_tolerance_of_a_long_recording_is_relative(tmp_path, corpus):
    soundfile.write(corpus / "long.wav", np.zeros(16000), 1600)
    assert check_manifest(write(tmp_path, HEADER + "u,10.4,long.wav,s,A\n"), corpus)
    problems_of(write(tmp_path, HEADER + "u,10.6,long.wav,s,A\n"), data_root=corpus)


def test_normalized_transcripts_and_what_is_empty_after_it(tmp_path, corpus):
    path = write(tmp_path, HEADER + 'u,1.0,a.wav,s,"Yes, A"\nv,1.0,b.wav,s,"?!"\nw,1.0,b.wav,s,\n')
    basic = Normalization.preset("basic")
    assert problems_of(path, data_root=corpus, normalize=basic) == [
        "line 3 (ID 'v'): nothing is left of wrd '?!'",
        "line 4 (ID 'w'): empty wrd",
    ]
    path = write(tmp_path, HEADER + 'u,1.0,a.wav,s,"Yes, A"\n')
    for read in (read_manifest, check_manifest):
        assert read(path, corpus, normalize=basic)[0].wrd == "yes a"


def test_further_checks_join_the_report(tmp_path, corpus):
    path = write(tmp_path, HEADER + "u,1.0,a.wav,s,A\nv,1.0,gone.wav,s,B\nw,1.0,b.wav,s,\n")
    problems = problems_of(
        path, data_root=corpus, check=lambda rows: [f"odd: {u.ID}" for u in rows]
    )
    assert [problem.split(":")[-1].strip() for problem in problems][-2:] == ["u", "v"]
    assert len(problems) == 4


def rows_of(speakers, seconds=2.0):
    return [Utterance(f"u{i}", seconds, f"{i}.wav", s, "A") for i, s in enumerate(speakers)]


class TestHoldOut:
    def test_whole_speakers_in_the_order_of_the_manifest(self, caplog):
        caplog.set_level(logging.INFO)
        rows = rows_of([f"s{i % 25}" for i in range(200)])
        train, valid = hold_out(rows)
        assert not {u.spk_id for u in train} & {u.spk_id for u in valid}
        assert sorted(train + valid, key=rows.index) == rows
        assert train == sorted(train, key=rows.index)
        assert 20 <= len(valid) <= 24
        assert "the speakers s" in caplog.text

    def test_the_order_of_the_rows_does_not_matter(self):
        rows = rows_of([f"s{i % 25}" for i in range(200)])
        assert {u.ID for u in hold_out(rows)[1]} == {u.ID for u in hold_out(rows[::-1])[1]}

    def test_by_utterance_where_a_speaker_is_unknown(self, caplog):
        caplog.set_level(logging.INFO)
        train, valid = hold_out(rows_of([*["s"] * 99, ""]))
        assert (len(train), len(valid)) == (90, 10)
        assert "single utterances of no matter which speakers: spk_id is not given" in caplog.text

    @pytest.mark.parametrize("speakers", [["one"] * 40, ["one"] * 20 + ["two"] * 20])
    def test_by_utterance_where_a_speaker_would_be_too_much(self, speakers, caplog):
        caplog.set_level(logging.INFO)
        assert len(hold_out(rows_of(speakers))[1]) == 4
        assert "too few" in caplog.text

    def test_a_talkative_speaker_stays_in_training(self):
        for name in ("a", "b", "c", "d"):
            rows = rows_of([name] * 300 + [f"s{i}" for i in range(100)])
            _, valid = hold_out(rows)
            assert name not in {u.spk_id for u in valid}
            assert 40 <= len(valid) <= 80

    def test_no_more_than_half_an_hour(self):
        assert len(hold_out(rows_of([""] * 100, 3600.0))[1]) == 1
        assert len(hold_out(rows_of([""] * 10_000, 10.0))[1]) == 180

    @pytest.mark.parametrize("speakers", [["", ""], ["a", "b"], ["a", "a"]])
    def test_neither_part_is_empty(self, speakers):
        train, valid = hold_out(rows_of(speakers))
        assert (len(train), len(valid)) == (1, 1)

    @pytest.mark.parametrize("count", [0, 1])
    def test_too_few_to_divide(self, count):
        with pytest.raises(ValueError, match=f"found {count} utterances"):
            hold_out(rows_of(["a"] * count))


def test_what_splits_share_and_unusual_durations():
    train = [Utterance("a", 0.1, "/a.wav", "s", "A"), Utterance("b", 90.0, "/b.wav", "", "A")]
    test = [Utterance("a", 1.0, "/c.wav", "t", "A"), Utterance("d", 1.0, "/b.wav", "", "A")]
    assert compare_splits({"train": train, "test": test}) == [
        "train: 1 recordings shorter than 0.2 s: a",
        "train: 1 recordings longer than 60 s, which take much memory: b",
        "train and test share 1 recordings: /b.wav",
        "train and test share 1 IDs: a",
    ]
    assert compare_splits({"train": rows_of("ab"), "valid": []}) == []


def test_all_problems_are_reported_at_once(tmp_path, corpus):
    (corpus / "empty.wav").touch()
    rows = [
        "ok,1.0,a.wav,s,A",
        "ok,1.0,b.wav,s,A",
        "text,1.0,a.wav,s,",
        "zero,0,a.wav,s,A",
        "unparsable,1.0 s,a.wav,s,A",
        "nan,nan,a.wav,s,A",
        "negative,-1,gone.wav,s,A",
        "empty,1.0,empty.wav,s,A",
        "folder,1.0,.,s,A",
        "nowav,1.0,,s,A",
        ",1.0,a.wav,s,A",
        "short,1.0",
        "long,1.0,a.wav,s,A,B",
    ]
    problems = problems_of(write(tmp_path, HEADER + "\n".join(rows)), data_root=corpus)
    expected = [
        ("line 3 (ID 'ok')", "duplicate ID, first at line 2"),
        ("line 4 (ID 'text')", "empty wrd"),
        ("line 5 (ID 'zero')", "duration '0', expected a positive number of seconds"),
        ("line 6 (ID 'unparsable')", "duration '1.0 s'"),
        ("line 7 (ID 'nan')", "duration 'nan'"),
        ("line 8 (ID 'negative')", "duration '-1'"),
        ("line 11 (ID 'nowav')", "empty wav"),
        ("line 12", "empty ID"),
        ("line 13 (ID 'short')", "empty wav"),
        ("line 13 (ID 'short')", "empty wrd"),
        ("line 14 (ID 'long')", "more cells than columns"),
        ("line 9 (ID 'empty')", "is empty (0 bytes)"),
        ("line 10 (ID 'folder')", "is a folder"),
    ]
    assert len(problems) == len(expected)
    for problem, (place, what) in zip(problems, expected, strict=True):
        assert problem.startswith(place + ": ")
        assert what in problem


def test_the_message_stops_at_twenty_problems(tmp_path):
    path = write(tmp_path, HEADER + "".join(f"u{i},1.0,/gone/{i}.wav,s,A\n" for i in range(25)))
    with pytest.raises(ManifestError) as caught:
        check_manifest(path)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"manifest {path}: 25 problems"
    assert len(lines) == 1 + 20 + 1
    assert lines[-1].strip() == "... and 5 more"
    assert len(caught.value.problems) == 25


def test_the_message_has_the_beginning_of_a_long_problem(tmp_path):
    path = write(tmp_path, HEADER + f"u,{'9' * 10_000}x,a.wav,s,A\n")
    with pytest.raises(ManifestError) as caught:
        read_manifest(path)
    assert len(str(caught.value)) < 9000 and str(caught.value).endswith("9...")
    assert len(caught.value.problems[0]) > 10_000


@pytest.mark.parametrize(
    ("name", "text"),
    [("m.csv", "ID,length,path\nu,1.0,a.wav\n"), ("m.json", '{"u": {"length": 1, "path": "a"}}')],
)
def test_missing_columns_are_said_once(tmp_path, name, text):
    (problem,) = problems_of(write(tmp_path, text, name))
    assert problem == (
        "missing columns duration, wav, wrd "
        "(found ID, length, path; expected ID, duration, wav, spk_id, wrd)"
    )


@pytest.mark.parametrize(
    ("name", "text"), [("m.csv", ""), ("m.csv", HEADER), ("m.csv", "\n\n"), ("m.json", "{}")]
)
def test_an_empty_manifest(tmp_path, name, text):
    (problem,) = problems_of(write(tmp_path, text, name))
    assert problem.startswith("is empty: found no utterances")


def test_duplicate_ids_in_json(tmp_path, corpus):
    entry = '"u": {"duration": 1, "wav": "a.wav", "wrd": "A"}'
    path = write(tmp_path, f"{{{entry}, {entry}}}", "m.json")
    assert problems_of(path, data_root=corpus) == [
        "entry 2 (ID 'u'): duplicate ID, first at entry 1"
    ]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("m.json", b'{"u": ', "not valid JSON"),
        ("m.json", b'{"u": ' * 100_000, "not valid JSON"),
        ("m.json", b'{"u": ' + b"9" * 5000 + b"}", "not valid JSON: Exceeds the limit"),
        ("m.json", b"[1, 2]", "found a list at the top, expected an object of IDs"),
        ("m.json", b'{"u": 3}', "ID 'u': found 3, expected an object"),
        ("m.csv", b"ID,duration\n\xff\xfe", "not UTF-8"),
        ("m.csv", HEADER.encode() + b'u,1,"' + b"x" * 200_000 + b'",s,A\n', "not valid CSV"),
        ("m.txt", b"", "found suffix '.txt', expected .csv or .json"),
    ],
    ids=[
        "cut json",
        "deep json",
        "long number",
        "json list",
        "json number",
        "latin",
        "huge cell",
        "suffix",
    ],
)
def test_files_that_are_not_manifests(tmp_path, name, content, expected):
    path = tmp_path / name
    path.write_bytes(content)
    (problem,) = problems_of(path)
    assert expected in problem


def test_a_missing_manifest_and_a_folder(tmp_path):
    assert problems_of(tmp_path / "gone.csv") == ["does not exist"]
    (tmp_path / "folder.csv").mkdir()
    assert problems_of(tmp_path / "folder.csv") == ["found a folder, expected a .csv file"]


def test_the_error_survives_a_process_boundary():
    error = pickle.loads(pickle.dumps(ManifestError("a.csv", ["one", "two"])))
    assert isinstance(error, ValueError)
    assert (error.path, error.problems) == ("a.csv", ["one", "two"])


def test_importing_needs_no_torch():
    code = "import sys, sru_asr.manifest; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_any_columns_can_be_read(tmp_path):
    path = write(tmp_path, "room,ID,wav\nhall,u1,{data_root}/a.wav\n,u2,\n")
    columns, rows = read_table(path, "/corpus")
    assert columns == ["room", "wav"]
    assert rows == {
        "u1": {"room": "hall", "wav": "/corpus/a.wav"},
        "u2": {"room": "", "wav": ""},
    }
    (tmp_path / "m.json").write_text('{"u1": {"snr": 12.5}, "u2": {"room": "car"}}')
    assert read_table(tmp_path / "m.json") == (
        ["snr", "room"],
        {"u1": {"snr": "12.5", "room": ""}, "u2": {"snr": "", "room": "car"}},
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ID,room\n", "is empty: found no utterances"),
        ("name,room\nu,hall\n", "missing column ID .found name, room."),
        ("ID,room\nu,a\nu,b\n", "line 3: duplicate ID 'u'"),
        ("ID,room\n,a\n", "line 2: empty ID"),
    ],
)
def test_faults_of_any_table(tmp_path, text, message):
    with pytest.raises(ManifestError, match=message):
        read_table(write(tmp_path, text))
