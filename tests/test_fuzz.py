"""Damaged files of every kind: each is read, or is one clear error that names it.

Files are made, damaged in ways that a seed decides, and read in a process of its own, so that a
crash, a hang and memory without bounds are failures like others. ``pytest -m slow`` goes through
fifty times as many. A failing case is left in the folder that the message names.
"""

from __future__ import annotations

import faulthandler
import gzip
import io
import json
import multiprocessing
import os
import random
import resource
import struct
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from sru_asr.audio import AudioError, audio_info, read_audio
from sru_asr.decode.ngram import NGram
from sru_asr.lexicon import Lexicon
from sru_asr.manifest import ManifestError, read_manifest
from sru_asr.transcripts import TranscriptError, read_transcripts

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that fork")

CPU_SECONDS = 5  # for a case
WALL_SECONDS = 120  # on a machine however busy
MEMORY = 1 << 30  # bytes beyond what the process has


def audio_files() -> dict[str, bytes]:
    """A fraction of a second in every container that soundfile writes here."""
    noise = np.random.default_rng(1).uniform(-0.5, 0.5, (800, 2))
    kinds = [
        *[("wav", "WAV", subtype) for subtype in ("PCM_16", "PCM_24", "FLOAT", "ULAW", "MS_ADPCM")],
        *[("wav", "WAVEX", "PCM_16"), ("flac", "FLAC", "PCM_16"), ("sph", "NIST", "PCM_16")],
        *[("aiff", "AIFF", "PCM_16"), ("aiff", "AIFF", "FLOAT"), ("au", "AU", "PCM_16")],
        *[("ogg", "OGG", "VORBIS"), ("opus", "OGG", "OPUS"), ("mp3", "MP3", "MPEG_LAYER_III")],
        *[("w64", "W64", "PCM_16"), ("rf64", "RF64", "PCM_16"), ("caf", "CAF", "PCM_16")],
    ]
    files = {}
    for suffix, container, subtype in kinds:
        if soundfile.check_format(container, subtype):
            buffer = io.BytesIO()
            rate = 16000 if container == "OGG" else 8000
            soundfile.write(buffer, noise, rate, format=container, subtype=subtype)
            files[f"{container}-{subtype}.{suffix}"] = buffer.getvalue()
    return files


def manifest_files() -> dict[str, bytes]:
    rows = (
        "ID,duration,wav,spk_id,wrd\nu1,1.5,{data_root}/u1.wav,anna,GO NORTH\nu2,2,a.wav,bo,STOP\n"
    )
    entry = {"duration": 1.5, "wav": "{data_root}/u1.wav", "spk_id": "anna", "wrd": "GO NÖRTH"}
    return {"m.csv": rows.encode(), "m.json": json.dumps({"u1": entry, "u2": entry}).encode()}


def transcript_files() -> dict[str, bytes]:
    objects = '{"id": "u-1", "text": "GO NORTH"}\n{"id": "u-2", "text": "STOP"}\n'
    return {
        "t.csv": b'ID,wrd\nu-1,GO NORTH\n"u-2","STOP ""NOW"""\n',
        "t.trn": "GO NÖRTH (u-1)\nSTOP (u-2)\n".encode(),
        "text": b"u-1 GO NORTH\nu-2 STOP\n",
        "t.jsonl": objects.encode(),
        "t.json": b'[{"id": "u-1", "text": "GO"}, {"id": "u-2", "text": "STOP"}]',
        "t.txt": b"GO NORTH (u-1)\nSTOP (u-2)\n",
    }


def arpa_files(folder: Path) -> dict[str, bytes]:
    NGram.estimate(["GO NORTH", "GO SOUTH NOW", "STOP"]).write_arpa(folder / "made.arpa")
    content = (folder / "made.arpa").read_bytes()
    return {"n.arpa": content, "n.arpa.gz": gzip.compress(content, mtime=0)}


def lexicon_files() -> dict[str, bytes]:
    return {"lexicon.txt": ";;; phones\nTEN  T EH N\nNÖ  N OW\nNÖ(2)  N AO\n".encode()}


def read_as_audio(path: Path) -> None:
    info = audio_info(path)
    assert info.duration > 0 and info.sample_rate > 0 and info.channels > 0
    signal = read_audio(path)
    assert signal.dim() == 1 and signal.dtype == torch.float32 and len(signal)
    assert signal.isfinite().all()


def read_as_manifest(path: Path) -> None:
    rows = read_manifest(path)
    assert rows and all(0 < row.duration < float("inf") and row.ID for row in rows)


def read_as_transcripts(path: Path) -> None:
    assert all(isinstance(text, str) for text in read_transcripts(path).texts.values())


def read_as_arpa(path: Path) -> None:
    ngram = NGram.read_arpa(path)
    assert not ngram.log_prob("NORTH", ["<s>", "GO"]) > 0 or ngram.backoffs


def read_as_lexicon(path: Path) -> None:
    lexicon = Lexicon(path)
    assert lexicon.size == len(lexicon.phones) + 1 > 1


@dataclass(frozen=True)
class Target:
    """What is damaged and how it is read.

    Attributes
    ----------
    files : callable
        Given a folder to work in, makes the files: contents by name.
    read : callable
        Reads one and checks what comes out.
    error : type
        The one error that there may be, exactly.
    cases : int
        How many are tried in the fast tests.
    """

    files: Callable[[Path], dict[str, bytes]]
    read: Callable[[Path], None]
    error: type[Exception]
    cases: int


TARGETS = {
    "audio": Target(lambda _: audio_files(), read_as_audio, AudioError, 100),
    "manifest": Target(lambda _: manifest_files(), read_as_manifest, ManifestError, 40),
    "transcripts": Target(lambda _: transcript_files(), read_as_transcripts, TranscriptError, 30),
    "arpa": Target(arpa_files, read_as_arpa, ValueError, 20),
    "lexicon": Target(lambda _: lexicon_files(), read_as_lexicon, ValueError, 10),
}

NUMBERS = (0, 1, 2, 3, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFF0, 0xFFFFFFFF)
BINARY = [struct.pack(f"{order}I", number) for number in NUMBERS for order in "<>"]
BINARY += [struct.pack(f"{order}H", number & 0xFFFF) for number in NUMBERS for order in "<>"]
BINARY += [b"data", b"RIFF", b"fmt ", b"LIST", b"\xff" * 8, b"-i 99999999999 ", b"-1"]
TEXT = [bytes([byte]) for byte in b"\x00\"',;:.-()[]{}\\/\t\r\n $\xff\xc3\x85\xa0"]
TEXT += [b"nan", b"-inf", b"1e999", b"-1", b"0", b"0.0", b"9" * 5000, b"null", b"true", b"\n\n"]
TEXT += [b"[" * 100_000, b'{"a":' * 50_000, b'"' + b"x" * 200_000, b"{data_root}", b"\\ud800"]
TEXT += [b"\\1-grams:", b"ngram 1=99999999999", b"<s>", *map(str.encode, "\ufeff\u2028\u0661²")]


def damage(rng: random.Random, content: bytes, binary: bool) -> bytes:
    """Change a few places, most of them in the first bytes of a binary file."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        here = min(len(data), 96) if binary and rng.random() < 0.7 else len(data)
        at, length = rng.randrange(here + 1), rng.choice((1, 1, 2, 4, 16, 200))
        word = rng.choice(BINARY if binary else TEXT)
        way = rng.choice(("bit", "byte", "word", "word", "insert", "delete", "repeat", "cut"))
        if way == "bit" and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif way == "byte" and at < len(data):
            data[at] = rng.randrange(256)
        elif way == "word":
            data[at : at + len(word)] = word
        elif way == "insert":
            data[at:at] = word
        elif way == "delete":
            del data[at : at + length]
        elif way == "repeat":
            data[at:at] = data[at : at + length]
        elif way == "cut" and rng.random() < 0.3:
            del data[at:]
    return bytes(data)


def try_case(target: Target, path: Path) -> str:
    """Read a file; say "read", "raised", or what is wrong."""
    began = time.process_time()
    try:
        target.read(path)
        outcome = "read"
    except target.error as error:
        outcome = "raised"
        if target.error is ValueError and type(error) is not ValueError:
            # such as a UnicodeDecodeError, which nobody has put into words
            outcome = f"found {type(error).__name__}, expected {target.error.__name__}: {error}"
        elif str(path) not in str(error):
            outcome = f"the file is not named: {error}"
        elif len(str(error)) > 10_000:
            outcome = f"a message of {len(str(error))} characters: {str(error)[:200]}"
    except BaseException:
        outcome = traceback.format_exc(limit=-6)
    took = time.process_time() - began
    return outcome if took <= CPU_SECONDS else f"took {took:.1f} s"


def work(
    name: str, cases: int, folder: Path, results: multiprocessing.connection.Connection
) -> None:
    """Try all cases, in a process of its own."""
    torch.set_num_threads(1)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    target = TARGETS[name]
    files = list(target.files(folder).items())
    # To a file, because what pytest has in the place of stderr has no descriptor.
    with open(folder / "hang.txt", "w") as hang:
        for case in range(cases):
            rng = random.Random(f"{name} {case}")
            file, content = rng.choice(files)
            path = folder / file
            path.write_bytes(damage(rng, content, name == "audio" or file.endswith(".gz")))
            results.send((case, file, None))
            faulthandler.dump_traceback_later(WALL_SECONDS, exit=True, file=hang)
            outcome = try_case(target, path)
            faulthandler.cancel_dump_traceback_later()
            if outcome not in ("read", "raised"):
                path.rename(folder / f"case-{case}-{file}")
            results.send((case, file, outcome))
    results.close()


def fuzz(name: str, cases: int, folder: Path) -> tuple[Counter[str], list[str]]:
    """Try cases, and give the outcomes and what is wrong."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(
        target=work, args=(name, cases, folder, sender)
    )
    process.start()
    sender.close()
    outcomes: Counter[str] = Counter()
    wrong = []
    pending = None
    try:
        while True:
            case, file, outcome = receiver.recv()
            pending = (case, file) if outcome is None else None
            if outcome in ("read", "raised"):
                outcomes[outcome] += 1
            elif outcome is not None:
                wrong.append(f"{folder}/case-{case}-{file}: {outcome}")
    except EOFError:
        process.join()
    if process.exitcode:
        where = (folder / "hang.txt").read_text()
        wrong.append(f"{folder}/{file}, case {pending}: exit code {process.exitcode} {where}")
    return outcomes, wrong


def check(name: str, cases: int, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcomes, wrong = fuzz(name, cases, folder)
    with capsys.disabled():
        print(f"\n  {name}: {outcomes['read']} read, {outcomes['raised']} raised of {cases}")
    assert not wrong, f"{len(wrong)} wrong\n" + "\n".join(wrong[:5])
    assert outcomes.total() == cases
    assert all(outcomes[way] for way in ("read", "raised"))


def test_two_hundred_cases_are_tried() -> None:
    assert sum(target.cases for target in TARGETS.values()) == 200


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_files(name, tmp_path, capsys):
    check(name, TARGETS[name].cases, tmp_path, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_damaged_files_fifty_times_as_many(name, tmp_path, capsys):
    check(name, 50 * TARGETS[name].cases, tmp_path, capsys)


@pytest.mark.parametrize("name", TARGETS)
def test_files_that_are_whole_are_read(name, tmp_path):
    target = TARGETS[name]
    for file, content in target.files(tmp_path).items():
        (tmp_path / file).write_bytes(content)
        assert try_case(target, tmp_path / file) == "read", file
