"""Transcribing: SpeechBrain's own text in any batch, any audio, and errors that stay local."""

import itertools
import shutil

import numpy as np
import pytest
import soundfile
import torch
from model_folder import make_models
from speechbrain.inference import ASR

from sru_asr import transcribe
from sru_asr.audio import stream_audio
from sru_asr.model_folder import ModelFolderError
from sru_asr.segments import Segment, Transcript, Word
from sru_asr.transcribe import Transcriber, TranscriptionError, batches

RATE = 16000
# The fourth and the last are shorter than one frame; 16160 and 16159 differ by one frame of 10 ms.
LENGTHS = (16000, 8000, 20123, 300, 16160, 16159, 5000, 1)

model_folders = pytest.fixture(make_models, scope="session")


def sound(samples, rate=RATE, seed=0):
    """Tones of 0.1 s in noise: enough change for a text of some length."""
    rng = np.random.default_rng(seed)
    tone = np.repeat(rng.uniform(100, 3500, samples * 10 // rate + 1), rate // 10)[:samples]
    phase = 2 * np.pi * np.cumsum(tone) / rate
    return (0.3 * np.sin(phase) + 0.01 * rng.standard_normal(samples)).astype(np.float32)


@pytest.fixture(scope="session")
def recordings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recordings")
    paths = [folder / f"{length}.wav" for length in LENGTHS]
    for seed, path in enumerate(paths):
        soundfile.write(path, sound(int(path.stem), seed=seed), RATE)
    return paths


@pytest.fixture(scope="session")
def transcribers(model_folders):
    return {name: Transcriber(folder) for name, folder in model_folders.items()}


@pytest.fixture
def transcriber(transcribers):
    return transcribers["ctc"]


@pytest.fixture
def one(tmp_path):
    path = tmp_path / "one.wav"
    soundfile.write(path, sound(RATE), RATE)
    return path


@pytest.mark.parametrize("name", ["ctc", "joint", "speechbrain"])
def test_text_is_speechbrains_alone_and_in_any_batch(name, model_folders, recordings):
    interface = ASR.EncoderASR if name == "ctc" else ASR.EncoderDecoderASR
    speechbrain = interface.from_hparams(source=str(model_folders[name]))
    expected = [speechbrain.transcribe_file(str(path)) for path in recordings]
    assert len(set(expected)) >= 6  # the model is untrained, but not deaf
    for seconds in (3.0, 1000.0):
        found = Transcriber(model_folders[name], batch_seconds=seconds).transcribe(recordings)
        assert [one.text for one in found] == expected
        assert [one.path for one in found] == [str(path) for path in recordings]
        assert [one.duration for one in found] == [length / RATE for length in LENGTHS]
        assert all(one.error is None for one in found)


@pytest.mark.parametrize("name", ["ctc", "joint", "speechbrain"])
def test_frames_are_the_same_alone_and_in_a_batch(name, transcribers):
    encoder = transcribers[name].model.mods.encoder
    signals = [torch.from_numpy(sound(length, seed=length)) for length in LENGTHS]
    wavs = torch.nn.utils.rnn.pad_sequence(signals, batch_first=True)
    lengths = torch.tensor(LENGTHS, dtype=torch.float64) / wavs.shape[1]
    frames, relative = encoder.encode(wavs, lengths)
    for i, signal in enumerate(signals):
        alone, whole = encoder.encode(signal[None], torch.ones(1))
        assert whole.item() == 1
        assert round(relative[i].item() * frames.shape[1]) == alone.shape[1]
        torch.testing.assert_close(frames[i, : alone.shape[1]], alone[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["ctc", "joint", "speechbrain"])
def test_every_parameter_goes_to_the_device(name, transcribers):
    # SpeechBrain moves ``modules`` only: a CTC scorer's layer must be among them.
    model = transcribers[name].model
    moved = {id(parameter) for parameter in model.mods.parameters()}
    loaded = model.hparams.pretrainer.loadables["model"].parameters()
    assert {id(parameter) for parameter in loaded} == moved


@pytest.mark.parametrize(
    ("name", "channels", "options"),
    [
        ("deep.wav", 1, {"subtype": "PCM_24"}),
        ("float.wav", 1, {"subtype": "FLOAT"}),
        ("one.flac", 1, {}),
        ("one.sph", 1, {"format": "NIST", "subtype": "PCM_16"}),
        ("eight.wav", 8, {}),
    ],
)
def test_formats_and_channels_do_not_change_the_text(transcriber, one, name, channels, options):
    signal, _ = soundfile.read(one, dtype="float32")
    other = one.with_name(name)
    soundfile.write(other, np.repeat(signal[:, None], channels, axis=1), RATE, **options)
    first, second = transcriber.transcribe([one, other])
    assert first.text
    assert (second.text, second.duration, second.error) == (first.text, 1.0, None)


@pytest.mark.parametrize("rate", [8000, 44100])
def test_sample_rates(transcriber, tmp_path, model_folders, rate):
    path = tmp_path / "other.wav"
    soundfile.write(path, np.repeat(sound(rate, rate)[:, None], 8, axis=1), rate)
    (found,) = transcriber.transcribe([path])
    speechbrain = ASR.EncoderASR.from_hparams(source=str(model_folders["ctc"]))
    assert found.text == speechbrain.transcribe_file(str(path)) != ""
    assert (found.duration, found.error) == (1.0, None)


@pytest.mark.parametrize("samples", [1, 2, 159, 160, 200, 399, 400, 401])
@pytest.mark.parametrize("name", ["ctc", "joint", "speechbrain"])
def test_very_short_audio(transcribers, name, samples):
    (found,) = transcribers[name].transcribe([torch.from_numpy(sound(samples))])
    assert found.error is None


def test_silence(transcriber):
    (found,) = transcriber.transcribe([torch.zeros(RATE)])
    assert found.error is None


def test_tensors(transcriber, one):
    signal = torch.from_numpy(soundfile.read(one, dtype="float32")[0])
    file, tensor, double = transcriber.transcribe([one, signal, signal.double()])
    assert tensor == Transcript(None, file.text, 1.0, None, file.segments) == double
    assert file.segments == (Segment(file.text, 0.0, 1.0),)
    bad = [signal[None], (signal * 32767).short(), signal[:0], signal * float("nan")]
    *failed, good = transcriber.transcribe([*bad, signal])
    assert good == tensor
    assert transcriber.transcribe(signal.numpy()) == tensor == transcriber.transcribe(signal)
    for found, words in zip(failed, ("(1, 16000)", "int16", "(0,)", "NaN"), strict=True):
        assert found.error.startswith("audio tensor: found")
        assert words in found.error
        assert "finite floating-point samples at 16000 Hz" in found.error


def test_broken_files_are_named_and_the_others_go_on(transcriber, one):
    content = one.read_bytes()
    broken = {
        "empty.wav": b"",
        "short.wav": content[:20000],
        "text.wav": b"not audio at all",
        "silent.wav": content[:40] + bytes(4),
    }
    for name, data in broken.items():
        one.with_name(name).write_bytes(data)
    signal = sound(RATE)
    signal[100] = np.nan
    soundfile.write(one.with_name("nan.wav"), signal, RATE, subtype="FLOAT")
    paths = [one.with_name(name) for name in (*broken, "nan.wav", "missing.wav")]
    mixed = [paths[0], one, *paths[1:4], one.with_name("last.wav"), *paths[4:]]
    shutil.copyfile(one, one.with_name("last.wav"))
    found = transcriber.transcribe(mixed)
    assert [transcript.path for transcript in found] == [str(path) for path in mixed]
    for transcript in found:
        if transcript.path in map(str, paths):
            assert transcript.error.startswith(f"audio file {transcript.path}: found ")
            assert "expected" in transcript.error
            assert transcript.text == ""
        else:
            assert transcript.error is None
            assert transcript.text == found[1].text != ""


def test_failing_batch_is_taken_apart(transcriber, recordings, monkeypatch):
    encoder = transcriber.model.mods.encoder
    expected = transcriber.transcribe(recordings)
    whole = encoder.encode
    sizes = []

    def encode(wavs, lengths):
        sizes.append(len(wavs))
        if len(wavs) > 2 or wavs.shape[1] == 20123:
            raise torch.OutOfMemoryError("out of memory\nand more about it")
        return whole(wavs, lengths)

    monkeypatch.setattr(encoder, "encode", encode)
    found = transcriber.transcribe(recordings)
    assert max(sizes) == len(LENGTHS)
    for one, reference in zip(found, expected, strict=True):
        if one.duration == 20123 / RATE:
            assert one.text == ""
            assert one.error == (
                f"audio file {one.path}: found 1.3 s of audio that cannot be transcribed "
                "(OutOfMemoryError: out of memory and more about it), "
                "expected what the model and the memory can take"
            )
        else:
            assert one == reference


def test_audio_is_read_a_few_batches_ahead(model_folders, recordings, monkeypatch):
    transcriber = Transcriber(model_folders["ctc"], batch_seconds=0.3)
    read, most = [], []
    encode = transcriber.model.mods.encoder.encode

    def counted_read(path, rate):
        for block in stream_audio(path, rate):
            read.append(len(block))
            yield block

    def counted_encode(wavs, lengths):
        most.append(sum(read))
        assert len(wavs) == 1 or wavs.numel() / RATE <= 0.3
        read.clear()
        return encode(wavs, lengths)

    monkeypatch.setattr(transcribe, "stream_audio", counted_read)
    monkeypatch.setattr(transcriber.model.mods.encoder, "encode", counted_encode)
    found = transcriber.stream(recordings)
    assert [next(found).path] == [str(recordings[0])]
    assert sum(most) + sum(read) < sum(LENGTHS)  # the last ones are not read yet
    assert [transcript.path for transcript in found] == [str(path) for path in recordings[1:]]
    assert max(most) / RATE <= transcribe.LOOKAHEAD * 0.3 + max(LENGTHS) / RATE


def test_batches_hold_every_recording_once_within_the_limit():
    rng = np.random.default_rng(0)
    durations = dict(enumerate(rng.exponential(5, 500)))
    found = list(batches(durations, 40))
    assert sorted(index for batch in found for index in batch) == list(durations)
    assert all(len(b) == 1 or len(b) * max(durations[i] for i in b) <= 40 for b in found)
    assert list(batches({}, 40)) == []


def test_nothing_is_written(model_folders, one, tmp_path, monkeypatch):
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    for folder in model_folders.values():
        before = {path: path.stat().st_mtime_ns for path in folder.parent.rglob("*")}
        transcript = Transcriber(folder).transcribe([one])
        assert transcript[0].error is None
        assert {path: path.stat().st_mtime_ns for path in folder.parent.rglob("*")} == before
        assert list(empty.iterdir()) == []


def edit(old, new):
    def change(folder):
        yaml = folder / "hyperparams.yaml"
        content = yaml.read_text()
        assert old in content
        yaml.write_text(content.replace(old, new))

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: shutil.rmtree(f), "found no such folder, expected a model folder"),
        (lambda f: (shutil.rmtree(f), f.touch()), "found a file, expected a model folder"),
        (lambda f: (f / "hyperparams.yaml").unlink(), "found no hyperparams.yaml"),
        (lambda f: (f / "hyperparams.yaml").write_text(""), "no interface and pretrainer"),
        (lambda f: (f / "hyperparams.yaml").write_text("a: [1"), "no interface and pretrainer"),
        (lambda f: (f / "hyperparams.yaml").write_bytes(b"\xff"), "no interface and pretrainer"),
        (lambda f: (f / "model.ckpt").unlink(), "found no model.ckpt, expected hyperparams.yaml, "),
        (lambda f: (f / "model.ckpt").write_bytes(b"x"), "found files that cannot be loaded"),
        (edit("interface: EncoderASR", "interface: SpeakerID"), "found interface 'SpeakerID'"),
        (edit("sample_rate: 16000\ntok", "tok"), "without sample_rate"),
        (edit("CTCPosteriors", "NoSuchClass"), "found !new:sru_asr.model.NoSuchClass, expected"),
        (edit("decoding_function:", "other:"), "found files that cannot be loaded"),
    ],
)
def test_what_is_not_a_model_folder_is_refused(model_folders, tmp_path, change, words):
    folder = tmp_path / "model"
    shutil.copytree(model_folders["ctc"], folder)
    change(folder)
    with pytest.raises(ModelFolderError) as caught:
        Transcriber(folder)
    assert words in str(caught.value)
    assert str(folder) in str(caught.value)
    assert "expected" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_encoder_without_encode_is_refused(model_folders, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(model_folders["ctc"], folder)
    edit("!new:sru_asr.model.CTCPosteriors", "!new:torch.nn.ModuleDict\n      modules:")(folder)
    content = (folder / "hyperparams.yaml").read_text()
    assert "ModuleDict" in content
    with pytest.raises(ModelFolderError, match="found"):
        Transcriber(folder)


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_batch_seconds_must_be_positive(seconds):
    with pytest.raises(TranscriptionError, match="expected a positive number of seconds"):
        Transcriber("model", batch_seconds=seconds)


def test_missing_devices_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(TranscriptionError, match="device cuda: found 0 CUDA devices"):
        Transcriber("model", device="cuda")
    with pytest.raises(TranscriptionError, match="found 'gpu', expected cpu or cuda"):
        Transcriber("model", device="gpu")


def speech(seconds, seed=0):
    return torch.from_numpy(sound(round(seconds * RATE), seed=seed))


@pytest.fixture
def long_transcriber(model_folders):
    """Cuts whatever is longer than nine seconds."""
    return Transcriber(model_folders["ctc"], window_seconds=9.0)


def test_long_recording_is_the_windows_that_it_is_cut_into(long_transcriber, tmp_path):
    parts = [speech(seconds, seed) for seed, seconds in enumerate((5, 3, 6, 4))]
    silence = torch.zeros(RATE)
    signal = torch.cat([x for part in parts for x in (part, silence)])
    soundfile.write(tmp_path / "long.wav", signal, RATE, subtype="FLOAT")
    file, tensor = long_transcriber.transcribe([tmp_path / "long.wav", signal])
    assert file.text == tensor.text
    assert file.segments == tensor.segments
    starts = [0.0, 6.0, 10.0, 17.0]
    assert [segment.start for segment in file.segments] == pytest.approx(starts, abs=0.2)
    ends = [5.0, 9.0, 16.0, 21.0]
    assert [segment.end for segment in file.segments] == pytest.approx(ends, abs=0.2)
    pieces = [
        signal[round(segment.start * RATE) : round(segment.end * RATE)] for segment in file.segments
    ]
    alone = [found.text for found in long_transcriber.transcribe(pieces)]
    assert [segment.text for segment in file.segments] == alone
    assert file.text == " ".join(alone)


def test_windows_do_not_depend_on_the_batch(long_transcriber, model_folders):
    signals = [speech(seconds, seed) for seed, seconds in enumerate((25, 3, 40, 8, 12))]
    together = long_transcriber.transcribe(signals)
    assert together == [long_transcriber.transcribe(signal) for signal in signals]
    assert [len(found.segments) for found in together[1:4:2]] == [1, 1]
    assert len(together[2].segments) > 4
    other = Transcriber(model_folders["ctc"], window_seconds=9.0, batch_seconds=10)
    assert other.transcribe(signals) == together


def test_windows_without_a_pause_are_joined_at_their_words(long_transcriber, monkeypatch):
    """Words of a known recording, as if the model had heard just those that are in a window."""
    length, said = 60, []
    second = 0.3
    for number in range(100):
        said.append(Word(f"W{number}", second, second + 0.45, 1.0))
        second += 0.58
    noise = torch.from_numpy(np.random.default_rng(0).standard_normal(length * RATE)).float()
    windows = []

    def align(frames, lengths, texts, starts, ends):
        windows.extend(zip(starts, ends, strict=True))
        found = []
        for start, end in zip(starts, ends, strict=True):
            heard = []
            for word in said:
                if start <= word.start and word.end <= end:
                    heard.append(word)
                elif word.end > start and word.start < end:  # cut
                    heard.append(Word("?", max(word.start, start), min(word.end, end), 0.1))
            found.append(tuple(heard))
        return found

    # Without a pause anywhere.
    monkeypatch.setattr("sru_asr.windows._Buffer.pauses", lambda self, frames: [])
    monkeypatch.setattr(long_transcriber._aligner, "align", align)
    found = long_transcriber.transcribe(noise, word_timestamps=True)
    assert len(windows) > 10
    words = [word for segment in found.segments for word in segment.words]
    assert words == said
    assert found.text.split() == [word.text for word in said]
    for before, after in itertools.pairwise(found.segments):
        assert before.words[-1].end <= before.end <= after.start <= after.words[0].start


def test_words_confidence_and_alternatives_come_on_demand(transcribers, one):
    joint = transcribers["joint"]
    plain = joint.transcribe(one)
    assert plain.segments == (Segment(plain.text, 0.0, 1.0),)
    full = joint.transcribe(one, word_timestamps=True, confidence=True, nbest=2)
    (segment,) = full.segments
    assert [word.text for word in segment.words] == plain.text.split()
    assert all(0 <= word.start < word.end <= 1 for word in segment.words)
    assert 0 < segment.confidence <= 1
    assert len(segment.alternatives) == 2
    assert segment.alternatives[0][0] == plain.text == full.text
    assert segment.alternatives[0][1] >= segment.alternatives[1][1]
    (sure,) = joint.transcribe(one, confidence=True).segments
    assert (sure.words, sure.confidence) == ((), segment.confidence)


def test_alternatives_need_a_search(transcriber, one):
    with pytest.raises(TranscriptionError, match="nbest: found 2, .* joint or ctc-beam"):
        transcriber.transcribe(one, nbest=2)
    with pytest.raises(TranscriptionError, match="nbest: found -1"):
        transcriber.transcribe(one, nbest=-1)


def test_decoders_and_precisions(model_folders, one):
    text = Transcriber(model_folders["ctc"]).transcribe(one).text
    assert Transcriber(model_folders["ctc"], decoder="greedy").transcribe(one).text == text
    beam = Transcriber(model_folders["ctc"], decoder="ctc-beam", beam_size=3)
    assert len(beam.transcribe(one, nbest=5).segments[0].alternatives) in (2, 3)
    half = Transcriber(model_folders["ctc"], precision="bf16").transcribe(one)
    assert half.error is None and half.text
    for options, words in (
        ({"precision": "fp8"}, "precision: found 'fp8', expected fp32, bf16, fp16"),
        ({"precision": "fp16"}, "precision fp16: found device cpu"),
        ({"decoder": "joint"}, "without a joint search"),
        ({"beam_size": 0, "decoder": "ctc-beam"}, "beam_size"),
        ({"window_seconds": 8}, "window_seconds: found 8, expected more than 8 seconds"),
        ({"window_seconds": float("nan")}, "window_seconds: found nan"),
    ):
        with pytest.raises(TranscriptionError, match=words):
            Transcriber(model_folders["ctc"], **options)


def test_a_recording_that_breaks_in_the_middle_is_an_error(long_transcriber, tmp_path):
    soundfile.write(tmp_path / "long.flac", speech(60), RATE)
    content = (tmp_path / "long.flac").read_bytes()
    (tmp_path / "long.flac").write_bytes(content[: len(content) * 2 // 3])
    soundfile.write(tmp_path / "good.flac", speech(2), RATE)
    broken, good = long_transcriber.transcribe([tmp_path / "long.flac", tmp_path / "good.flac"])
    assert (broken.text, broken.segments) == ("", ())
    assert "truncated" in broken.error
    assert good.error is None and good.text
