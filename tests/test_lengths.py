"""Lengths reach the recurrent layers of a CRDNN whose caller does not pass them."""

import pytest
import torch
from speechbrain.lobes.models.CRDNN import CRDNN
from speechbrain.nnet.RNN import LSTM
from speechbrain.processing.features import InputNormalization

from sru_asr.lengths import pass_lengths
from sru_asr.nnet import SRU


def build(**options):
    normalize = InputNormalization(norm_type="sentence")
    model = CRDNN(
        **{
            "input_size": 6,
            # Of the CRDNN's parts, the only one that looks along time is the recurrence.
            "cnn_blocks": 0,
            "rnn_class": SRU,
            "rnn_layers": 2,
            "rnn_neurons": 4,
            "dnn_blocks": 1,
            "dnn_neurons": 5,
            **options,
        }
    )
    return normalize.eval(), model.eval()


@pytest.mark.parametrize("use_rnnp", [False, True])
def test_a_sequence_gives_the_same_alone_and_in_a_batch(use_rnnp):
    normalize, model = build(use_rnnp=use_rnnp)
    x, lengths = torch.randn(2, 10, 6), torch.tensor([1.0, 0.5])
    without = model(normalize(x, lengths))
    pass_lengths(normalize, model)
    together = model(normalize(x, lengths))
    alone = model(normalize(x[1:, :5], lengths=torch.ones(1)))
    torch.testing.assert_close(together[1:, :5], alone)
    assert (without[1:, :5] - alone).abs().max() > 1e-3  # what it is for


def test_each_call_takes_the_lengths_kept_for_it():
    normalize, model = build()
    pass_lengths(normalize, model)
    x = torch.randn(2, 10, 6)
    for lengths in (torch.ones(2), torch.tensor([0.5, 1.0])):
        features = normalize(x, lengths)
        first = model(features)
        with pytest.raises(RuntimeError, match="no lengths for this batch"):
            model(features)
        normalize(x, lengths)
        assert torch.equal(model(features), first)
    normalize(x)
    with pytest.raises(RuntimeError, match="no lengths for this batch"):
        model(x)


def test_a_failed_call_keeps_nothing():
    normalize, model = build()
    pass_lengths(normalize, model)
    normalize(torch.randn(2, 10, 6), torch.ones(2))
    with pytest.raises(ValueError, match="lengths must have shape"):
        model(torch.randn(3, 10, 6))
    with pytest.raises(RuntimeError, match="no lengths for this batch"):
        model(torch.randn(2, 10, 6))


def test_parameters_keep_their_names():
    normalize, model = build()
    before = list(model.state_dict())
    pass_lengths(normalize, model)
    assert list(model.state_dict()) == before


def test_modules_that_do_not_fit_are_refused():
    normalize, model = build()
    with pytest.raises(ValueError, match="source must take lengths.*CRDNN"):
        pass_lengths(model, model)
    with pytest.raises(ValueError, match="rnn_class to !name:sru_asr.nnet.SRU"):
        pass_lengths(normalize, build(rnn_class=LSTM)[1])
