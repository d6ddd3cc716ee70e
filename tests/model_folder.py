"""Model folders of tiny untrained models, made the way a training run makes them."""

import re

import torch
from hyperpyyaml import load_hyperpyyaml, resolve_references

from sru_asr import FeatureNormalization
from sru_asr.export import export_model
from sru_asr.tokenizer import train_tokenizer

FRONT_END = """
tokenizer: !new:sentencepiece.SentencePieceProcessor
features: !new:speechbrain.lobes.features.Fbank
    sample_rate: 16000
    n_mels: 40
normalize: !new:speechbrain.processing.features.InputNormalization
    norm_type: sentence
subsampling: !new:sru_asr.ConvSubsampling
    input_size: 40
    channels: [8, 4]
encoder: !new:sru_asr.model.SpeechEncoder
    features: !ref <features>
    normalize: !ref <normalize>
    subsampling: !ref <subsampling>
    encoder: !ref <core>
ctc_output: !new:speechbrain.nnet.linear.Linear
    input_size: 32
    n_neurons: 9
"""

CTC = (
    """
core: !new:sru_asr.SRUEncoder
    input_size: 40
    hidden_size: 16
    num_layers: 2
    projection_size: 8
model: !new:sru_asr.model.SpeechRecognizer
    encoder: !ref <encoder>
    ctc_output: !ref <ctc_output>
inference:
    interface: EncoderASR
    sample_rate: 16000
    tokenizer: !ref <tokenizer>
    modules:
        encoder: !new:sru_asr.model.CTCPosteriors
            encoder: !ref <encoder>
            ctc_output: !ref <ctc_output>
    decoding_function: !name:speechbrain.decoders.ctc_greedy_decode
        blank_id: 0
    pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
        loadables:
            model: !ref <model>
            tokenizer: !ref <tokenizer>
"""
    + FRONT_END
)

JOINT = """
core: !new:sru_asr.SRUTransformerASR
    tgt_vocab: 9
    input_size: 40
    d_model: 32
    nhead: 2
    num_encoder_layers: 2
    num_decoder_layers: 1
    d_ffn: 32
attention_output: !new:speechbrain.nnet.linear.Linear
    input_size: 32
    n_neurons: 9
model: !new:sru_asr.model.SpeechRecognizer
    encoder: !ref <encoder>
    ctc_output: !ref <ctc_output>
    attention_output: !ref <attention_output>
search: !new:sru_asr.decode.JointBeamSearcher
    transformer: !ref <core>
    attention_output: !ref <attention_output>
    ctc_output: !ref <ctc_output>
    beam_size: 2
inference:
    interface: EncoderDecoderASR
    sample_rate: 16000
    tokenizer: !ref <tokenizer>
    modules:
        encoder: !ref <encoder>
        decoder: !ref <search>
        ctc_output: !ref <ctc_output>
    pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
        loadables:
            model: !ref <model>
            tokenizer: !ref <tokenizer>
""" + re.sub(
    r"normalize: !new.*\n.*",
    "normalize: !new:sru_asr.FeatureNormalization\n    num_features: 40",
    FRONT_END,
)

# The same with SpeechBrain's own search in the place of ours.
SPEECHBRAIN = re.sub(
    r"search: !new.*?(?=^inference:)",
    """search: !new:speechbrain.decoders.S2STransformerBeamSearcher
    modules: [!ref <core>, !ref <attention_output>]
    bos_index: 1
    eos_index: 2
    min_decode_ratio: 0.0
    max_decode_ratio: 1.0
    beam_size: 2
    using_eos_threshold: False
    scorer: !new:speechbrain.decoders.scorer.ScorerBuilder
        full_scorers:
            - !new:speechbrain.decoders.scorer.CTCScorer
                eos_index: 2
                blank_index: 0
                ctc_fc: !ref <ctc_output>
        weights:
            ctc: 0.4
""",
    JOINT,
    flags=re.DOTALL | re.MULTILINE,
)


def make_model(experiment, yaml):
    """Export an untrained model whose text varies with the audio; gives the model folder."""
    experiment.mkdir()
    torch.manual_seed(3)
    hparams = load_hyperpyyaml(yaml)
    with torch.no_grad():
        for output in ("ctc_output", "attention_output"):
            if output in hparams:
                hparams[output].w.weight.mul_(8)
    if isinstance(hparams["normalize"], FeatureNormalization):
        hparams["normalize"](hparams["features"](0.1 * torch.randn(2, 8000)), epoch=1)
    (experiment / "hyperparams.yaml").write_text(resolve_references(yaml).getvalue())
    train_tokenizer(experiment / "tokenizer.model", ["ABC DE"], vocab_size=9)
    export_model(
        experiment / "hyperparams.yaml",
        experiment / "model",
        hparams["inference"],
        experiment / "tokenizer.model",
    )
    return experiment / "model"


def make_models(tmp_path_factory):
    """Export all; a session fixture of the test modules that need them."""
    folder = tmp_path_factory.mktemp("models")
    yamls = {"ctc": CTC, "joint": JOINT, "speechbrain": SPEECHBRAIN}
    return {name: make_model(folder / name, yaml) for name, yaml in yamls.items()}
