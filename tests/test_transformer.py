"""SRUTransformerASR wherever SpeechBrain takes its TransformerASR."""

import pytest
import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain.decoders import S2STransformerBeamSearcher
from speechbrain.decoders.scorer import CTCScorer, ScorerBuilder
from speechbrain.lobes.models.transformer.TransformerASR import EncoderWrapper, TransformerASR
from speechbrain.nnet.linear import Linear
from speechbrain.utils.checkpoints import Checkpointer, average_checkpoints
from speechbrain.utils.dynamic_chunk_training import DynChunkTrainConfig

from sru_asr import SRUTransformerASR

VOCABULARY = 7
SMALL = {
    "tgt_vocab": VOCABULARY,
    "input_size": 6,
    "d_model": 8,
    "nhead": 2,
    "num_encoder_layers": 2,
    "num_decoder_layers": 1,
    "d_ffn": 16,
    "dropout": 0.0,
}
WIDTHS = pytest.mark.parametrize("encoder_size", [None, 12], ids=["same_width", "own_width"])


def build(**options):
    model = SRUTransformerASR(**{**SMALL, "attention_every": 1, **options})
    with torch.no_grad():
        for name, parameter in model.encoder.named_parameters():
            if name.endswith("alpha"):
                parameter.fill_(1)
    return model


@WIDTHS
@pytest.mark.parametrize("shape", [(2, 9, 6), (2, 9, 3, 2)], ids=str)
@pytest.mark.parametrize("wav_len", [None, torch.tensor([1.0, 0.5])], ids=["all", "padded"])
def test_shapes_are_those_of_transformerasr(encoder_size, shape, wav_len):
    reference = TransformerASR(**SMALL)
    model = build(encoder_size=encoder_size)
    src, tgt = torch.randn(shape), torch.randint(1, VOCABULARY, (2, 4))
    for found, expected in zip(model(src, tgt, wav_len), reference(src, tgt, wav_len), strict=True):
        assert found.shape == expected.shape
    encoded = model.encode(src, wav_len)
    assert encoded.shape == reference.encode(src, wav_len).shape
    steps = torch.tensor([9, 4])
    decoded, attention = model.decode(tgt, encoded, steps)
    expected, expected_attention = reference.decode(tgt, encoded, steps)
    assert decoded.shape == expected.shape and attention.shape == expected_attention.shape


@WIDTHS
def test_forward_is_encode_and_decode(encoder_size):
    model = build(encoder_size=encoder_size).eval()
    src, tgt = torch.randn(2, 9, 6), torch.randint(1, VOCABULARY, (2, 4))
    encoded, decoded = model(src, tgt, torch.tensor([1.0, 4 / 9]))
    torch.testing.assert_close(model.encode(src, torch.tensor([1.0, 4 / 9])), encoded)
    found, _ = model.decode(tgt, encoded, torch.tensor([9, 4]))
    torch.testing.assert_close(found, decoded)


@WIDTHS
@pytest.mark.parametrize("garbage", [float("nan"), float("inf")])
@pytest.mark.parametrize("inner", [(6,), (3, 2)], ids=str)
def test_a_sequence_gives_the_same_alone_and_in_a_batch(encoder_size, garbage, inner):
    model = build(encoder_size=encoder_size).double()
    lengths = [3, 6, 0, 1]
    data = torch.randn(4, 6, *inner, dtype=torch.float64)
    for b, n in enumerate(lengths):
        data[b, n:] = garbage
    src = data.clone().requires_grad_()
    encoded = model.encode(src, torch.tensor(lengths) / 6)
    weight = torch.randn_like(encoded)
    (encoded * weight).sum().backward()
    gradients = [p.grad for p in model.parameters()]
    model.zero_grad()
    for b, n in enumerate(lengths):
        alone = data[b : b + 1, :n].clone().requires_grad_()
        h = model.encode(alone)
        (h * weight[b : b + 1, :n]).sum().backward()
        torch.testing.assert_close(encoded[b : b + 1, :n], h)
        assert encoded[b, n:].eq(0).all()
        torch.testing.assert_close(src.grad[b : b + 1, :n], alone.grad)
    for together, parameter in zip(gradients, model.parameters(), strict=True):
        torch.testing.assert_close(together, parameter.grad)


@WIDTHS
def test_decoding_does_not_see_the_padding_or_the_batch(encoder_size):
    model = build(encoder_size=encoder_size).eval().double()
    src, tgt = torch.randn(2, 6, 6).double(), torch.randint(1, VOCABULARY, (2, 4))
    src[0, 3:] = float("nan")
    _, decoded = model(src, tgt, torch.tensor([0.5, 1.0]))
    _, alone = model(src[:1, :3], tgt[:1], torch.tensor([1.0]))
    torch.testing.assert_close(decoded[:1], alone)


def test_lengths_below_one_keep_all_steps():
    model = build().eval()
    src, tgt = torch.randn(2, 10, 6), torch.randint(1, VOCABULARY, (2, 4))
    encoded, decoded = model(src, tgt, torch.tensor([0.5, 0.2]))
    assert encoded.shape == (2, 10, 8)
    _, cropped = model(src[:, :5], tgt, torch.tensor([1.0, 0.4]))
    torch.testing.assert_close(decoded, cropped)


@pytest.mark.parametrize("call", ["encode", "forward"])
@pytest.mark.parametrize(
    ("wav_len", "error"),
    [(torch.tensor([9, 4]), TypeError), (torch.tensor([9.0, 4.0]), ValueError)],
)
def test_lengths_that_are_not_relative_are_refused(call, wav_len, error):
    model, src = build(), torch.randn(2, 9, 6)
    arguments = (src,) if call == "encode" else (src, torch.ones(2, 3, dtype=torch.long))
    with pytest.raises(error, match="wav_len must be relative"):
        getattr(model, call)(*arguments, wav_len=wav_len)


@pytest.mark.parametrize(
    "options",
    [
        {"encoder_module": "conformer"},
        {"attention_type": "RelPosMHAXL"},
        {"positional_encoding": "fixed_abs_sine"},
        {"kernel_size": 31},
        {"layerdrop_prob": 0.1},
        {"causal": True},
        {"encoder_size": 7},
        {"d_model": 7, "nhead": 1},
        {"d_model": 10, "nhead": 4},
        {"num_heads": 3, "projection_size": 4},
        {"num_encoder_layers": 0},
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_refused_by_name(options):
    name = next(iter(options)).replace("num_encoder_layers", "num_layers")
    with pytest.raises(ValueError, match=name):
        build(**options)


def test_a_yaml_that_keeps_its_encoders_options_is_told_all_of_them():
    yaml = """
        d_model: 8
        Transformer: !new:sru_asr.SRUTransformerASR
            input_size: 6
            tgt_vocab: 7
            d_model: !ref <d_model>
            nhead: 2
            encoder_module: conformer
            attention_type: RelPosMHAXL
        """
    message = "SRUTransformerASR.*'encoder_module', 'attention_type'.*remove it from the YAML"
    with pytest.raises(ValueError, match=message):
        load_hyperpyyaml(yaml)


@pytest.mark.parametrize("call", ["encode", "forward"])
@pytest.mark.parametrize("shape", [(2, 9, 8), (2, 9, 3, 3), (2, 9)], ids=str)
def test_features_that_are_not_the_inputs_are_named(call, shape):
    model, src = build(), torch.randn(shape)
    arguments = (src,) if call == "encode" else (src, torch.ones(2, 3, dtype=torch.long))
    with pytest.raises(ValueError, match="input_size=6 features.*set input_size to"):
        getattr(model, call)(*arguments)


def test_heads_matter_to_a_decoder_only():
    model = build(num_decoder_layers=0, nhead=3)
    assert model.encode(torch.randn(2, 9, 6)).shape == (2, 9, 8)


def test_unknown_options_are_a_type_error():
    with pytest.raises(TypeError, match="num_encoder_layer'"):
        build(num_encoder_layer=3)


def test_streaming_is_refused_by_name():
    with pytest.raises(ValueError, match="dynchunktrain_config must be None.*streaming: False"):
        build().encode(torch.randn(2, 9, 6), dynchunktrain_config=DynChunkTrainConfig(4, 1))


@pytest.mark.parametrize("name", ["src_mask", "pos_embs"])
def test_the_encoder_refuses_what_it_would_ignore(name):
    with pytest.raises(ValueError, match=name):
        build().encoder(torch.randn(2, 9, 8), **{name: torch.zeros(9, 9)})


def test_options_reach_the_encoder():
    model = build(
        encoder_size=12, projection_size=6, num_heads=3, attention_every=2, num_encoder_layers=4,
        encoder_dropout=0.25, attention_dropout=0.5, highway_bias=-1.0,
    )  # fmt: skip
    layers = model.encoder.stack.layers
    assert len(layers) == 4 and model.encoder.stack.output_size == 12
    assert [layer.project.num_heads for layer in layers] == [0, 3, 0, 3]
    assert [layer.recurrence.dropout for layer in layers] == [0.25, 0.25, 0.25, 0.0]
    assert {layer.project.down.weight.shape[0] for layer in layers} == {6}
    assert {layer.project.dropout for layer in layers} == {0.5}
    assert {layer.recurrence.b[1, 0].item() for layer in layers} == {-1.0}
    defaults = build(dropout=0.3).encoder.stack.layers[0]
    assert defaults.recurrence.dropout == 0.3 and defaults.project.down.weight.shape[0] == 2


def test_initial_values_are_the_encoders_own():
    model = SRUTransformerASR(**SMALL)
    layers = model.encoder.stack.layers
    assert layers[1].project.alpha.item() == 0
    assert all(layer.recurrence.v.abs().max() <= 1 for layer in layers)
    assert all(layer.recurrence.b[1].eq(-2).all() for layer in layers)


@pytest.mark.parametrize("encoder_size", [None, 12])
def test_hidden_states(encoder_size):
    model = build(output_hidden_states=True, encoder_size=encoder_size)
    src, tgt = torch.randn(2, 9, 6), torch.randint(1, VOCABULARY, (2, 4))
    wav_len = torch.tensor([1.0, 0.5])
    encoded, hidden, decoded = model(src, tgt, wav_len)
    again, hidden_again = model.encode(src, wav_len)
    assert len(hidden) == len(hidden_again) == 2
    assert torch.equal(encoded, again) and torch.equal(hidden[0], hidden_again[0])
    assert decoded.shape == (2, 4, 8)
    torch.testing.assert_close(model.encoder.output(hidden[-1])[0], encoded[0])


def test_encoder_only():
    model = build(num_decoder_layers=0)
    src, wav_len = torch.randn(2, 9, 6), torch.tensor([1.0, 0.5])
    assert torch.equal(model(src, None, wav_len)[0], model.encode(src, wav_len))
    assert torch.equal(EncoderWrapper(model)(src, wav_len), model.encode(src, wav_len))


def test_more_than_2500_frames_encode_and_decode():
    model = build().eval()
    src, tgt = torch.randn(1, 2600, 6), torch.ones(1, 3, dtype=torch.long)
    encoded, decoded = model(src, tgt)
    assert encoded.shape == (1, 2600, 8)
    src[:, 2550:] += 10
    assert not torch.allclose(model(src, tgt)[1], decoded)  # the last frames reach the decoder


def test_every_parameter_learns():
    model = build(encoder_size=12)
    encoded, decoded = model(
        torch.randn(2, 9, 6), torch.randint(1, VOCABULARY, (2, 4)), torch.tensor([1.0, 0.5])
    )
    (encoded.square().sum() + decoded.square().sum()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("beam_size", [1, 4])
def test_joint_beam_search(beam_size):
    model = build().eval()
    ctc, output = (Linear(input_size=8, n_neurons=VOCABULARY) for _ in range(2))
    search = S2STransformerBeamSearcher(
        modules=[model, output],
        bos_index=1,
        eos_index=2,
        min_decode_ratio=0.0,
        max_decode_ratio=1.0,
        beam_size=beam_size,
        using_eos_threshold=False,
        scorer=ScorerBuilder(
            full_scorers=[CTCScorer(ctc_fc=ctc, blank_index=0, eos_index=2)], weights={"ctc": 0.4}
        ),
    ).eval()
    src, lengths = torch.randn(2, 9, 6), torch.tensor([1.0, 4 / 9])
    with torch.no_grad():
        hypotheses, _, scores, _ = search(model.encode(src, lengths), lengths)
        alone, _, alone_scores, _ = search(model.encode(src[1:, :4]), torch.ones(1))
    assert len(hypotheses) == 2
    assert all(0 <= token < VOCABULARY for hypothesis in hypotheses for token in hypothesis)
    assert scores.isfinite().all() and alone_scores.isfinite().all() and len(alone) == 1


def test_checkpoints_round_trip_and_average(tmp_path):
    model = build(encoder_size=12)
    src = torch.randn(2, 9, 6)
    checkpointer = Checkpointer(tmp_path, recoverables={"model": model})
    outputs, states = [], []
    for i in range(2):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        outputs.append(model.encode(src))
        states.append({name: value.clone() for name, value in model.state_dict().items()})
        checkpointer.save_checkpoint(name=str(i), meta={"WER": i})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    checkpointer.recover_if_possible(min_key="WER")
    assert torch.equal(model.encode(src), outputs[0])
    average = average_checkpoints(checkpointer.find_checkpoints(min_key="WER"), "model")
    assert average.keys() == states[0].keys()
    for name, value in average.items():
        torch.testing.assert_close(value, (states[0][name] + states[1][name]) / 2)
    model.load_state_dict(average)
