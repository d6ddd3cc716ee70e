"""From waveforms to posteriors: exact lengths, and no effect of the batch."""

import pytest
import torch
from speechbrain.lobes.features import Fbank
from speechbrain.lobes.models.transformer.TransformerASR import TransformerASR
from speechbrain.nnet.linear import Linear
from speechbrain.processing.features import InputNormalization

from sru_asr import ConvSubsampling, SRUEncoder, SRUTransformerASR
from sru_asr.augment import Views
from sru_asr.model import SpeechEncoder, SpeechRecognizer

HOP, BANDS = 160, 8


def build(encoder="srupp", hop=10):
    subsampling = ConvSubsampling(BANDS, (3, 4))
    if encoder == "srupp":
        core = SRUEncoder(8, 4, 2, 4, num_heads=2, attention_every=1)
    else:
        core = SRUTransformerASR(
            7, 8, d_model=8, nhead=2, num_encoder_layers=2, num_decoder_layers=1, d_ffn=16,
            dropout=0.0, encoder_size=12, attention_every=1,
        )  # fmt: skip
    with torch.no_grad():
        for name, parameter in core.named_parameters():
            if name.endswith("alpha"):
                parameter.fill_(1)
    normalize = InputNormalization(norm_type="sentence")
    return SpeechEncoder(Fbank(n_mels=BANDS, hop_length=hop), normalize, subsampling, core).eval()


def pad(waves, garbage=0.0):
    longest = max(map(len, waves))
    batch = torch.full((len(waves), longest), garbage)
    for row, wave in zip(batch, waves, strict=True):
        row[: len(wave)] = wave
    return batch, torch.tensor([len(wave) for wave in waves]) / longest


def check_alone(model, waves, garbage=0.0):
    """Compare a padded batch's output with that of each waveform alone."""
    encoded, lengths = model.encode(*pad(waves, garbage))
    steps = (lengths * encoded.shape[1]).round().long().tolist()
    for i, wave in enumerate(waves):
        alone, alone_lengths = model.encode(wave[None], torch.ones(1))
        assert alone_lengths.tolist() == [1.0]
        assert steps[i] == alone.shape[1]
        torch.testing.assert_close(encoded[i, : steps[i]], alone[0], rtol=0, atol=1e-5)
        assert encoded[i, steps[i] :].eq(0).all()


@pytest.mark.parametrize("encoder", ["srupp", "transformer"])
@pytest.mark.parametrize("garbage", [0.0, float("nan"), float("inf"), 1e4])
def test_a_recording_gives_the_same_alone_and_in_a_batch(encoder, garbage):
    waves = [torch.randn(n) * 0.1 for n in (3000, 1, 7999, 161, 1599, 1600, 1601)]
    check_alone(build(encoder), waves, garbage)


def test_no_length_takes_a_padded_frame_into_the_statistics():
    # Among many lengths, frames / total * total in float32 is above the frames for some.
    lengths = range(8000, 8640, HOP)
    check_alone(build(), [torch.randn(n) * 0.1 for n in (*lengths, 16000)])


def test_loudness_just_after_the_last_frame_does_not_move_the_clipping():
    # A click that the next frame, past the end, would see far better than the last one.
    click = torch.zeros(HOP * 20 - 1)
    click[-1], click[1000:1100] = 1.0, torch.randn(100) * 1e-4
    check_alone(build(), [click, torch.randn(HOP * 50)])


@pytest.mark.parametrize("hop", [8, 2])
def test_frames_that_follow_each_other_faster(hop):
    waves = [torch.randn(n) * 0.1 for n in (3000, 1, 7999, 161, 1600)]
    check_alone(build(hop=hop), waves)


def test_an_empty_recording_in_a_batch():
    model = build()
    wave = torch.randn(3000)
    batch, lengths = pad([wave, torch.zeros(0)])
    encoded, lengths = model.encode(batch, lengths)
    assert lengths.tolist() == [1.0, 0.0]
    assert encoded[1].eq(0).all()
    torch.testing.assert_close(encoded[:1], model(wave[None]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("samples", [1, 159, 160, 161, 640, 16000])
def test_frame_counts(samples):
    model = build()
    wavs = torch.randn(2, samples)
    assert model(wavs).shape == (2, -(-(samples // HOP + 1) // 4), 8)
    assert torch.equal(model(wavs), model.encode(wavs, torch.ones(2))[0])


class Multiplying(InputNormalization):
    """A front end with a matrix product, which autocast would round to bfloat16."""

    def forward(self, x, lengths=None, epoch=None):
        return super().forward(x @ torch.eye(BANDS), lengths, epoch)


def test_the_front_end_stays_in_float32_under_autocast():
    model, seen = build(), []
    model.normalize = Multiplying(norm_type="sentence")
    model.normalize.register_forward_hook(lambda module, args, output: seen.append(output))
    wavs, lengths = pad([torch.randn(1600), torch.randn(800)])
    expected = model(wavs, lengths)
    with torch.autocast("cpu", torch.bfloat16):
        found = model(wavs, lengths)
    assert torch.equal(*seen) and seen[0].dtype == torch.float32
    assert (found.float() - expected).norm() < 0.1 * expected.norm()


def test_augmentation_gets_normalised_features_and_may_change_lengths():
    model = build()
    wavs, lengths = pad([torch.randn(3200), torch.randn(1600)])
    seen = []

    def halve(feats, relative):
        assert relative.dtype == torch.float32
        seen.append((feats.shape, (relative * feats.shape[1]).tolist()))
        return feats[:, :12], torch.tensor([1.0, 0.5])

    src, relative = model.subsampled_features(wavs, lengths, augment=halve)
    assert seen[0][0] == (2, 21, BANDS) and seen[0][1] == pytest.approx([21, 11])
    assert src.shape[1] == 3 and (relative * 3).round().tolist() == [3, 2]


@pytest.mark.parametrize(
    ("lengths", "error"), [(torch.tensor([1600]), TypeError), (torch.tensor([1600.0]), ValueError)]
)
def test_lengths_that_are_not_relative_are_refused(lengths, error):
    with pytest.raises(error, match="lengths must be relative"):
        build().encode(torch.randn(1, 1600), lengths)


# The recogniser


def recognizer(encoder, attention):
    output = Linear(input_size=8, n_neurons=7) if attention else None
    return SpeechRecognizer(build(encoder=encoder), Linear(input_size=8, n_neurons=7), output)


@pytest.mark.parametrize(("encoder", "attention"), [("srupp", False), ("transformer", True)])
def test_posteriors(encoder, attention):
    model = recognizer(encoder, attention).eval()
    wavs, lengths = pad([torch.randn(3200), torch.randn(1600)])
    tokens = torch.tensor([[1, 3, 4], [1, 5, 0]])
    posteriors = model(wavs, lengths, tokens)
    encoded, relative = model.encoder.encode(wavs, lengths)
    assert torch.equal(posteriors.encoded, encoded) and torch.equal(posteriors.lengths, relative)
    torch.testing.assert_close(posteriors.ctc.exp().sum(-1), torch.ones(2, 6))
    if attention:
        torch.testing.assert_close(posteriors.attention.exp().sum(-1), torch.ones(2, 3))
        assert model(wavs, lengths).attention is None
        # Teacher forcing sees no later token, no padding and no other sequence.
        alone = model(wavs[1:, :1600], torch.ones(1), tokens[1:, :2]).attention
        torch.testing.assert_close(posteriors.attention[1, :2], alone[0], rtol=0, atol=1e-5)
    else:
        assert posteriors.attention is None


@pytest.mark.parametrize(("encoder", "attention"), [("srupp", False), ("transformer", True)])
def test_views_of_a_batch_are_recognised_with_the_same_tokens(encoder, attention):
    model = recognizer(encoder, attention).eval()
    wavs, lengths = pad([torch.randn(3200), torch.randn(1600)])
    tokens = torch.tensor([[1, 3, 4], [1, 5, 0]])
    once = model(wavs, lengths, tokens)
    thrice = model(wavs, lengths, tokens, augment=Views(3))
    for found, expected in zip(thrice, once, strict=True):
        if expected is not None:
            repeated = expected.repeat(3, *[1] * (expected.dim() - 1))
            torch.testing.assert_close(found, repeated, rtol=0, atol=1e-5)


def test_posteriors_are_float32_under_autocast():
    model = recognizer("transformer", True)
    with torch.autocast("cpu", torch.bfloat16):
        posteriors = model(torch.randn(1, 1600), torch.ones(1), torch.tensor([[1, 3]]))
    assert posteriors.ctc.dtype == posteriors.attention.dtype == torch.float32


def test_every_parameter_learns():
    model = recognizer("transformer", True).train()
    posteriors = model(torch.randn(1, 1600), torch.ones(1), torch.tensor([[1, 3]]))
    (posteriors.ctc[..., 0].sum() + posteriors.attention[..., 0].sum()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_speechbrains_own_transformer_fits_too():
    core = TransformerASR(
        7, 8, d_model=8, nhead=2, num_encoder_layers=1, num_decoder_layers=1, d_ffn=16
    )
    encoder = build()
    encoder.encoder = core
    model = SpeechRecognizer(encoder, Linear(input_size=8, n_neurons=7), Linear(8, input_size=8))
    posteriors = model(torch.randn(1, 1600), torch.ones(1), torch.tensor([[1, 3]]))
    assert posteriors.ctc.shape == (1, 3, 7) and posteriors.attention.shape == (1, 2, 8)


def test_an_attention_output_needs_a_decoder():
    with pytest.raises(ValueError, match=r"attention_output.*SRUEncoder"):
        recognizer("srupp", True)


@pytest.mark.parametrize("norm_type", ["global", "batch"])
def test_statistics_that_would_be_lost_are_refused(norm_type):
    normalize = InputNormalization(norm_type=norm_type)
    with pytest.raises(ValueError, match=f"norm_type 'sentence', got '{norm_type}'"):
        SpeechEncoder(Fbank(), normalize, ConvSubsampling(40), SRUEncoder(320, 4, 1, 4))


def test_frames_without_a_distance_are_refused():
    with pytest.raises(ValueError, match="hop_length must be a sample or more, got 0 samples"):
        build(hop=0)


def test_the_hop_is_that_of_the_features():
    features = Fbank(sample_rate=8000, n_mels=BANDS, hop_length=20)
    normalize = InputNormalization(norm_type="sentence")
    model = SpeechEncoder(
        features, normalize, ConvSubsampling(BANDS, (4,)), SRUEncoder(16, 4, 1, 4)
    )
    assert model.hop_length == 160
    encoded, lengths = model.encode(torch.randn(2, 1600), torch.tensor([1.0, 0.5]))
    assert (lengths * encoded.shape[1]).round().tolist() == [6, 3]  # 11 and 6 frames, halved
