"""Augmentation: what is promised about sizes, lengths, padding and amounts."""

from __future__ import annotations

import pytest
import torch

from sru_asr.augment import (
    Chain,
    Concatenation,
    Noise,
    Reverberation,
    SpecAugment,
    SpectrogramWarp,
    Views,
)
from sru_asr.padding import steps_of
from sru_asr.tokenizer import BOS, EOS, train_tokenizer


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def tone(samples: int = 16000, hertz: float = 1000.0) -> torch.Tensor:
    return torch.sin(2 * torch.pi * hertz * torch.arange(samples) / 16000)


@pytest.mark.parametrize("snr", [0.0, 20.0])
@pytest.mark.parametrize("slope", [0.0, 2.0])
def test_noise_has_the_ratio_asked_for(snr: float, slope: float) -> None:
    signal = tone()
    noise = Noise(1.0, (snr, snr), (slope, slope))(signal) - signal
    ratio = 10 * torch.log10(signal.square().mean() / noise.square().mean())
    assert ratio.item() == pytest.approx(snr, abs=0.01)
    power = torch.fft.rfft(noise).abs().square()
    low, high = power[100:200].mean(), power[1000:2000].mean()  # a decade apart
    assert 10 * torch.log10(low / high).item() == pytest.approx(10 * slope, abs=2)


def test_reverberation_keeps_power_and_place_and_adds_a_tail() -> None:
    click = torch.zeros(8000)
    click[1000] = 1.0
    wet = Reverberation(1.0, (0.3, 0.3), (6.0, 6.0))(click)
    assert wet.shape == click.shape
    assert wet.square().mean().item() == pytest.approx(click.square().mean().item(), rel=1e-4)
    assert wet[:999].abs().max() < 1e-5
    assert wet.abs().argmax() == 1000
    tail = wet[1001:].square()
    assert 10 * torch.log10(wet[1000].square() / tail.sum()).item() == pytest.approx(6, abs=0.2)
    # 60 dB in 0.3 s: 20 dB in a tenth of a second
    early, late = tail[:800].mean(), tail[1600:2400].mean()
    assert 10 * torch.log10(early / late).item() == pytest.approx(20, abs=2)


@pytest.mark.parametrize("augment", [Noise(1.0), Reverberation(1.0)])
@pytest.mark.parametrize("signal", [torch.zeros(0), torch.zeros(500)])
def test_silence_stays_silence(augment: Noise, signal: torch.Tensor) -> None:
    assert torch.equal(augment(signal), signal)


@pytest.mark.parametrize("augment", [Noise(0.0), Reverberation(0.0)])
def test_probability_zero_changes_nothing(augment: Noise) -> None:
    assert all(torch.equal(augment(tone()), tone()) for _ in range(20))


def test_warp_stretches_each_sequence_by_its_own_factor() -> None:
    lengths = torch.tensor([1.0, 0.5, 0.25, 0.0])
    feats = torch.randn(4, 200, 80)
    warped, relative = SpectrogramWarp(1.3, 1.0)(feats, lengths)
    steps = steps_of(relative, 4, warped.shape[1])
    assert steps is not None
    factors = steps[:3] / torch.tensor([200.0, 100.0, 50.0])
    assert (factors >= 1 / 1.3 - 0.01).all() and (factors <= 1.3 + 0.01).all()
    assert factors.unique().numel() == 3
    assert steps[3] == 0 and steps.max() == warped.shape[1]
    for row, (before, after) in enumerate(zip([200, 100, 50], steps.tolist(), strict=False)):
        torch.testing.assert_close(warped[row, 0], feats[row, 0], atol=1e-4, rtol=0)
        torch.testing.assert_close(
            warped[row, after - 1], feats[row, before - 1], atol=1e-3, rtol=0
        )


def test_warp_by_one_is_the_identity() -> None:
    feats, lengths = torch.randn(2, 31, 80), torch.tensor([1.0, 21 / 31])
    warped, relative = SpectrogramWarp(1.0, 1.0)(feats, lengths)
    torch.testing.assert_close(warped[0], feats[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(warped[1, :21], feats[1, :21], atol=1e-4, rtol=0)
    torch.testing.assert_close(relative, lengths)


@pytest.mark.parametrize("number", range(20))
def test_padding_never_changes_what_is_warped(number: int) -> None:
    feats, lengths = torch.randn(2, 40, 80), torch.tensor([1.0, 0.5])
    warped = []
    for padding in (0.0, 100.0, float("nan")):
        feats[1, 20:] = padding
        torch.manual_seed(number)
        found, relative = SpectrogramWarp(1.3, 1.1)(feats, lengths)
        steps = steps_of(relative, 2, found.shape[1])
        assert steps is not None and steps[1] > 10
        warped.append(found[1, : steps[1]])
    assert torch.equal(warped[0], warped[1]) and torch.equal(warped[0], warped[2])


def test_warp_moves_frequencies_by_a_factor_in_hertz() -> None:
    from speechbrain.lobes.features import Fbank

    fbank = Fbank(n_mels=80)
    warp = SpectrogramWarp(1.0, 1.25)
    warp._factors = lambda largest, batch: torch.full((batch,), largest)  # type: ignore[method-assign]
    # Output at 1600 Hz reads what was at 2000.
    expected = fbank(tone(hertz=1600)[None]).mean(1).argmax()
    found = warp(fbank(tone(hertz=2000)[None]), torch.ones(1))[0].mean(1).argmax()
    assert abs(int(expected) - int(found)) <= 1


def test_masks_are_in_proportion_to_the_length() -> None:
    augment = SpecAugment(0.1, 15, 0, 0)
    feats, lengths = torch.ones(2, 2000, 4), torch.tensor([1.0, 0.1])
    shares = torch.zeros(2)
    for _ in range(100):
        masked, same = augment(feats, lengths)
        assert same is lengths
        shares += 1 - torch.stack([masked[0].mean(), masked[1, :200].mean()])
        assert (masked[1, 200:] == 1).all()  # not in padding
    assert shares[0].item() / 100 == pytest.approx(0.095, abs=0.01)  # overlaps count once
    assert shares[1].item() / 100 == pytest.approx(0.095, abs=0.02)


def test_masks_cover_whole_bands_and_frames_and_never_all() -> None:
    feats = torch.ones(3, 50, 80)
    masked, _ = SpecAugment(0.2, 5, 2, 10)(feats, torch.ones(3))
    kept = masked == 1
    frames, bands = kept.any(2), kept.any(1)
    assert torch.equal(kept, frames[:, :, None] & bands[:, None, :])
    assert not frames.all() and not bands.all() and frames.any(1).all()


def test_a_sequence_without_frames_passes() -> None:
    augment = Chain(SpectrogramWarp(), SpecAugment())
    feats, lengths = augment(torch.zeros(2, 30, 80), torch.tensor([1.0, 0.0]))
    assert lengths.tolist()[1] == 0 and feats.shape[0] == 2
    assert augment(torch.zeros(1, 0, 80), torch.zeros(1))[0].shape == (1, 0, 80)


def test_views_are_masked_each_in_its_own_way() -> None:
    feats, lengths = torch.ones(2, 200, 40), torch.tensor([1.0, 0.5])
    views, relative = Chain(Views(3), SpecAugment())(feats, lengths)
    assert views.shape == (6, 200, 40) and relative.tolist() == [1.0, 0.5] * 3
    masked = views.reshape(3, 2, 200, 40).eq(0)
    assert masked.any((2, 3)).all()
    assert not torch.equal(masked[0], masked[1]) and not torch.equal(masked[1], masked[2])
    assert torch.equal(Views(2)(feats, lengths)[0], torch.cat([feats, feats]))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("tokens") / "tokenizer.model"
    return train_tokenizer(path, ["GO STOP"], vocab_size=9)


def examples(tokenizer, texts: list[str]) -> list[dict]:
    rows = []
    for number, text in enumerate(texts):
        tokens = tokenizer.encode(text)
        rows.append(
            {
                "id": f"u{number}",
                "sig": torch.full((10 * (number + 1),), float(number)),
                "wrd": text,
                "tokens_bos": torch.LongTensor([BOS, *tokens]),
                "tokens_eos": torch.LongTensor([*tokens, EOS]),
                "tokens": torch.LongTensor(tokens),
            }
        )
    return rows


def test_concatenation_joins_sound_and_words_alike(tokenizer) -> None:
    rows = examples(tokenizer, ["GO", "STOP", "GO GO", "STOP GO", "GO STOP"])
    sizes = set()
    for _ in range(30):
        batch = Concatenation(tokenizer, 1.0, 3)(rows)
        sizes.add(len(batch.id))
        names = [name for joined in batch.id for name in joined.split("+")]
        assert sorted(names) == ["u0", "u1", "u2", "u3", "u4"]
        for row, joined in enumerate(batch.id):
            parts = [rows[int(name[1:])] for name in joined.split("+")]
            samples = round(float(batch.sig.lengths[row]) * batch.sig.data.shape[1])
            assert torch.equal(
                batch.sig.data[row, :samples], torch.cat([part["sig"] for part in parts])
            )
            assert batch.wrd[row] == " ".join(part["wrd"] for part in parts)
            count = round(float(batch.tokens.lengths[row]) * batch.tokens.data.shape[1])
            tokens = batch.tokens.data[row, :count].tolist()
            assert tokenizer.decode(tokens) == batch.wrd[row]
            assert batch.tokens_bos.data[row, : count + 1].tolist() == [BOS, *tokens]
            assert batch.tokens_eos.data[row, : count + 1].tolist() == [*tokens, EOS]
    assert sizes == {2, 3}  # of five: groups of 2 or of 3


def test_concatenation_leaves_the_other_batches_alone(tokenizer) -> None:
    rows = examples(tokenizer, ["GO", "STOP"])
    assert Concatenation(tokenizer, 0.0)(rows).id == ["u0", "u1"]
    assert Concatenation(tokenizer, 1.0)(rows[:1]).id == ["u0"]
    shares = [len(Concatenation(tokenizer, 0.3)(rows).id) == 1 for _ in range(500)]
    assert 0.22 < sum(shares) / 500 < 0.38


def test_concatenation_refuses_a_tokenizer_without_a_space(tmp_path) -> None:
    tokenizer = train_tokenizer(tmp_path / "tokenizer.model", ["GO", "STOP"], vocab_size=8)
    with pytest.raises(ValueError, match="space"):
        Concatenation(tokenizer, 1.0)(examples(tokenizer, ["GO", "STOP"]))


@pytest.mark.parametrize(
    "make, name",
    [
        (lambda: Noise(1.5), "probability"),
        (lambda: Noise(snr=(30.0, 5.0)), "snr"),
        (lambda: Reverberation(seconds=(0.0, 1.0)), "seconds"),
        (lambda: SpectrogramWarp(time=0.9), "time"),
        (lambda: SpectrogramWarp(frequency=5.0), "frequency"),
        (lambda: SpecAugment(time_share=-0.1), "time_share"),
        (lambda: SpecAugment(time_longest=0), "time_longest"),
        (lambda: Views(0), "count"),
        (lambda: Views(1.5), "count"),  # type: ignore[arg-type]
        (lambda: Concatenation(None, most=1), "most"),  # type: ignore[arg-type]
    ],
)
def test_bad_options_are_named(make, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        make()
