"""Normalisation by the recording and the training data."""

import io

import pytest
import torch
from speechbrain.processing.features import InputNormalization

from sru_asr import FeatureNormalization


def trained(prior_frames=20.0, features=3):
    """A module that has heard some training data, and that data."""
    torch.manual_seed(0)
    normalize = FeatureNormalization(features, prior_frames)
    data = torch.randn(4, 50, features) * torch.tensor([1.0, 2, 3]) + torch.tensor([5.0, 0, -9])
    normalize(data, torch.ones(4), epoch=1)
    return normalize.eval(), data.flatten(0, 1)


def test_statistics_are_those_of_all_frames_heard():
    torch.manual_seed(0)
    normalize = FeatureNormalization(3)
    batches = [torch.randn(2, 30, 3) + 4, 2 * torch.randn(3, 7, 3)]
    lengths = [torch.tensor([1.0, 0.5]), torch.tensor([0.0, 1.0, 3 / 7])]
    frames = [batches[0][0], batches[0][1, :15], batches[1][1], batches[1][2, :3]]
    for batch, relative in zip(batches, lengths, strict=True):
        normalize(batch, relative, epoch=1)
    heard = torch.cat(frames)
    assert normalize.count == len(heard)
    torch.testing.assert_close(normalize.mean, heard.mean(0))
    torch.testing.assert_close(normalize.variance, heard.var(0, correction=0))


def test_the_training_data_counts_as_so_many_frames():
    """As if ``prior_frames`` frames of its mean and variance stood beside the recording's."""
    normalize, data = trained(prior_frames=200)  # as many as were heard
    x = 3 * torch.randn(1, 70, 3) + 1
    both = torch.cat([x[0], data])
    expected = (x - both.mean(0)) / both.std(0, correction=0)
    torch.testing.assert_close(normalize(x, torch.ones(1)), expected)


@pytest.mark.parametrize("prior_frames", [0, 20])
def test_without_statistics_or_weight_it_is_normalisation_by_sentence(prior_frames):
    normalize = FeatureNormalization(3, prior_frames).eval()
    x, lengths = torch.randn(2, 40, 3) + 2, torch.tensor([1.0, 0.5])
    by_sentence = InputNormalization(norm_type="sentence")(x, lengths)
    found = normalize(x, lengths)
    for b, n in enumerate((40, 20)):
        frames = x[b, :n]
        expected = (frames - frames.mean(0)) / frames.std(0, correction=0)
        torch.testing.assert_close(found[b, :n], expected)
    # SpeechBrain's has one degree of freedom less in some versions.
    torch.testing.assert_close(found[0], by_sentence[0], rtol=0.03, atol=1e-3)
    torch.testing.assert_close(found[1, :20], by_sentence[1, :20], rtol=0.03, atol=1e-3)


def test_long_recordings_are_normalised_by_themselves():
    normalize, _ = trained()
    x = 2 * torch.randn(1, 200_000, 3) - 3
    found = normalize(x, torch.ones(1))[0]
    torch.testing.assert_close(found.mean(0), torch.zeros(3), rtol=0, atol=1e-2)
    torch.testing.assert_close(found.std(0), torch.ones(3), rtol=0, atol=1e-2)


def test_a_recording_gives_the_same_alone_and_in_a_batch_whatever_its_padding_holds():
    normalize, _ = trained()
    x = torch.randn(3, 9, 3)
    x[1, 4:], x[2] = torch.nan, torch.inf
    found = normalize(x, torch.tensor([1.0, 4 / 9, 0.0]))
    torch.testing.assert_close(found[1:2, :4], normalize(x[1:2, :4]))
    assert found[1, 4:].eq(0).all() and found[2].eq(0).all()


def test_statistics_are_gathered_in_the_first_epochs_of_training_only():
    normalize = FeatureNormalization(3, update_until_epoch=2)
    x = torch.randn(2, 9, 3)
    for epoch, frames in ((1, 18), (2, 36), (3, 36)):
        normalize(x, torch.ones(2), epoch=epoch)
        assert normalize.count == frames
    normalize.eval()(x, torch.ones(2), epoch=1)
    assert normalize.count == 36
    normalize.train()(x)  # where nobody counts epochs
    assert normalize.count == 54


def test_a_batch_without_frames_leaves_the_statistics_alone():
    normalize, _ = trained()
    before = {name: value.clone() for name, value in normalize.state_dict().items()}
    normalize.train()
    for x in (torch.zeros(0, 5, 3), torch.zeros(2, 0, 3), torch.full((2, 5, 3), torch.nan)):
        found = normalize(x, torch.zeros(len(x)))
        assert found.shape == x.shape and found.eq(0).all()
    for name, value in normalize.state_dict().items():
        torch.testing.assert_close(value, before[name])


def test_a_first_batch_without_frames_leaves_none():
    normalize = FeatureNormalization(3)
    normalize(torch.zeros(0, 5, 3), torch.ones(0))
    assert normalize.count == 0 and normalize.mean.eq(0).all() and normalize.variance.eq(1).all()


def test_silence_is_finite():
    x = torch.zeros(1, 5, 3)
    assert FeatureNormalization(3).eval()(x).eq(0).all()
    normalize, data = trained(prior_frames=200)
    both = torch.cat([x[0], data])
    expected = -both.mean(0) / both.std(0, correction=0)
    torch.testing.assert_close(normalize(x), expected.expand_as(x))


def test_a_recording_that_is_not_finite_stays_out_of_the_statistics():
    """The run stops at its loss; the checkpoint that is saved then has to be of use."""
    torch.manual_seed(0)
    normalize, other = FeatureNormalization(3), FeatureNormalization(3)
    x = torch.randn(3, 9, 3) + 2
    other(x[:1], epoch=1)
    x[1, 4, 0], x[2, 5, 1] = torch.nan, torch.inf
    found = normalize(x, epoch=1)
    assert found[0].isfinite().all() and found[1, :, 0].isnan().all()  # not hidden either
    for name, value in normalize.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[name])


def test_a_sequence_without_frames_has_a_gradient_of_zero():
    x = torch.randn(2, 5, 3, requires_grad=True)
    y = FeatureNormalization(3).eval()(x, torch.tensor([1.0, 0.0]))
    (y * torch.randn_like(y)).sum().backward()
    assert x.grad[0].ne(0).any() and x.grad[1].eq(0).all()


def test_statistics_are_part_of_the_state():
    normalize, _ = trained()
    file = io.BytesIO()
    torch.save(normalize.state_dict(), file)
    file.seek(0)
    loaded = FeatureNormalization(3, 20).eval()
    loaded.load_state_dict(torch.load(file))
    x = torch.randn(2, 5, 3)
    assert torch.equal(loaded(x), normalize(x))


def test_gradients():
    normalize, _ = trained()
    x = torch.randn(2, 6, 3, dtype=torch.float64, requires_grad=True)
    lengths = torch.tensor([1.0, 0.5])
    assert torch.autograd.gradcheck(lambda x: normalize.double()(x, lengths), x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_features": 0}, "num_features must be at least 1, got 0"),
        ({"num_features": 3, "prior_frames": -1}, "prior_frames must be 0 or more, got -1"),
    ],
)
def test_options_without_a_meaning_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        FeatureNormalization(**options)


def test_other_features_are_refused():
    normalize = FeatureNormalization(3)
    for x in (torch.zeros(2, 5, 4), torch.zeros(5, 3)):
        with pytest.raises(ValueError, match=r"shape \(B, T, 3\)"):
            normalize(x)
