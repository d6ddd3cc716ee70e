"""Joint CTC/attention beam search: this package's incremental one and SpeechBrain's.

    python benchmarks/beam_search.py [--model results/.../model --speech a.wav b.wav ...]
    python benchmarks/beam_search.py --model results/.../model --csv .../valid.csv

The decoder has the size of `hparams/an4/srupp_ctc_attention.yaml`, with random weights. CTC's
posteriors are made: each spells a text of ten letters a second, with some doubt about each letter.
With ``--model`` decoder and encoder output are a trained model's: for each recording of
``--speech``, and for all of a manifest in batches, as a recipe scores it. Both searches get the
same, and must return the same texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from harness import Panel, measure, parser, report, settings
from speechbrain.decoders import S2STransformerBeamSearcher
from speechbrain.decoders.scorer import CTCScorer, ScorerBuilder
from speechbrain.nnet.linear import Linear
from torch import Tensor, nn

from sru_asr import SRUTransformerASR
from sru_asr.decode import JointBeamSearcher

VOCABULARY, WIDTH, BEAM, CTC_WEIGHT = 30, 256, 10, 0.4
FRAMES = 25  # a second
LETTERS = 10  # a second
SHAPES = ((2.5, 1), (2.5, 8), (10, 1), (16, 1))  # seconds and sequences
BATCH = 8  # of a manifest, as recipes score it


def random_model(device: str) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Return a Transformer, whose decoder alone is used, and both output layers."""
    torch.manual_seed(0)
    transformer = SRUTransformerASR(
        VOCABULARY,
        640,
        d_model=WIDTH,
        nhead=4,
        num_encoder_layers=1,
        num_decoder_layers=2,
        d_ffn=1024,
        activation=nn.GELU,
    )
    outputs = [Linear(input_size=WIDTH, n_neurons=VOCABULARY) for _ in range(2)]
    return transformer.eval().to(device), outputs[0].to(device), outputs[1].to(device)


@torch.no_grad()
def made_up(ctc_output: nn.Module, seconds: float, batch: int) -> tuple[Tensor, Tensor]:
    """Make encoder output for which CTC is fairly sure of a random text, and its lengths."""
    weight: Tensor = ctc_output.w.weight
    frames = round(seconds * FRAMES)
    spoken = torch.rand(batch, frames, device=weight.device).argsort(1) < seconds * LETTERS
    texts = torch.randint(3, VOCABULARY, spoken.shape, device=weight.device)
    logits = torch.randn(*spoken.shape, VOCABULARY, device=weight.device)
    logits.scatter_(2, (texts * spoken)[:, :, None], 8)
    # What the output layer maps to these logits.
    encoded = (logits - ctc_output.w.bias) @ torch.linalg.pinv(weight).T
    return encoded, torch.ones(batch, device=weight.device)


def panel(
    title: str,
    modules: tuple[nn.Module, nn.Module, nn.Module],
    batches: Sequence[tuple[Tensor, Tensor]],
) -> Panel:
    """Search the same encoder output with both.

    Parameters
    ----------
    title : str
        What is searched.
    modules : tuple of Module
        Transformer, attention output, CTC output.
    batches : sequence of pairs of Tensor, shapes (B, T, D) and (B,)
        Encoder output and relative lengths.

    Returns
    -------
    Panel

    Raises
    ------
    RuntimeError
        When the texts differ.
    """
    transformer, attention_output, ctc_output = modules
    ours = JointBeamSearcher(*modules, beam_size=BEAM, ctc_weight=CTC_WEIGHT)
    theirs = S2STransformerBeamSearcher(
        modules=[transformer, attention_output],
        bos_index=1,
        eos_index=2,
        min_decode_ratio=0.0,
        max_decode_ratio=1.0,
        beam_size=BEAM,
        using_eos_threshold=False,
        length_normalization=True,
        scorer=ScorerBuilder(
            full_scorers=[CTCScorer(ctc_fc=ctc_output, blank_index=0, eos_index=2)],
            weights={"ctc": CTC_WEIGHT},
        ),
    )
    tokens, differences = [], []
    for encoded, lengths in batches:
        found = ours(encoded, lengths)
        with torch.no_grad():
            expected, _, scores, _ = theirs(encoded, lengths)
        texts = [list(map(int, text)) for text in expected]
        if found.tokens != texts:
            raise RuntimeError(f"{title}: {found.tokens} is not {texts}")
        tokens += [len(text) for text in texts]
        differences.append((torch.tensor(found.scores) - scores.cpu()).abs().max().item())

    @torch.no_grad()
    def run(search: nn.Module) -> None:
        for encoded, lengths in batches:
            search(encoded, lengths)

    return Panel(
        f"{title}, {sum(tokens)} tokens",
        {
            "JointBeamSearcher": lambda: run(ours),
            "S2STransformerBeamSearcher": lambda: run(theirs),
        },
        {
            "shapes": [list(encoded.shape) for encoded, _ in batches],
            "beam": BEAM,
            "tokens": tokens,
            "score_difference": max(differences),
        },
    )


def trained(folder: Path, speech: Sequence[Path], csv: Path | None, device: str) -> Iterator[Panel]:
    """Yield a panel for each recording, and one for a manifest.

    Parameters
    ----------
    folder : Path
        A model folder with a `JointBeamSearcher` as its decoder, or in a rescorer.
    speech : sequence of Path
        Recordings.
    csv : Path, optional
        A manifest.
    device : str

    Yields
    ------
    Panel
    """
    from sru_asr.audio import read_audio
    from sru_asr.manifest import check_manifest
    from sru_asr.model_folder import load_model

    model = load_model(folder, device)
    search = getattr(model.mods.decoder, "searcher", model.mods.decoder)  # of a rescorer
    if not isinstance(search, JointBeamSearcher):
        raise TypeError(f"{folder}: decoder is a {type(search).__name__}, not JointBeamSearcher")
    modules = search.transformer, search.attention_output, search.ctc_output
    sample_rate = int(model.hparams.sample_rate)

    def encode(paths: Sequence[Path]) -> tuple[Tensor, Tensor]:
        signals = [read_audio(path, sample_rate) for path in paths]
        samples = torch.tensor([len(signal) for signal in signals])
        wavs = nn.utils.rnn.pad_sequence(signals, batch_first=True).to(device)
        with torch.no_grad():
            return model.mods.encoder.encode(wavs, (samples / samples.max()).to(device))

    for path in speech:
        encoded = encode([path])
        yield panel(f"{path.name}, {encoded[0].shape[1] / FRAMES:.1f} s", modules, [encoded])
    if csv is not None:
        paths = [Path(utterance.wav) for utterance in check_manifest(csv)]
        rows = [paths[i : i + BATCH] for i in range(0, len(paths), BATCH)]
        title = f"{len(paths)} recordings of {csv.name}, B{BATCH}"
        yield panel(title, modules, [encode(batch) for batch in rows])


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser("Time the joint beam search.", seconds=30)
    options.add_argument("--model", type=Path, help="model folder, in place of random weights")
    options.add_argument("--speech", type=Path, nargs="+", default=[], help="for --model")
    options.add_argument("--csv", type=Path, help="for --model: a manifest, batch by batch")
    args = options.parse_args(arguments)
    with settings(args):
        if args.model is not None:
            panels = trained(args.model, args.speech, args.csv, args.device)
        else:
            modules = random_model(args.device)
            shapes = ((0.4, 1), (0.4, 2)) if args.quick else SHAPES
            panels = (
                panel(f"{seconds:g} s, B{batch}", modules, [made_up(modules[2], seconds, batch)])
                for seconds, batch in shapes
            )
        measured = []
        for measured_panel in panels:
            measure(measured_panel, args)
            measured.append(measured_panel)
        report("beam_search", measured, args)


if __name__ == "__main__":
    main()
