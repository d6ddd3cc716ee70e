"""Choosing a loaded model's search, its beam and its language model."""

import pytest
import torch
from model_folder import make_models

from sru_asr.decode import (
    CTCBeamSearcher,
    CTCGreedySearcher,
    JointBeamSearcher,
    NGram,
    SRULanguageModel,
    WordLookahead,
)
from sru_asr.decode.choice import (
    DECODERS,
    DecoderError,
    choose_decoder,
    make_searcher,
    nbest_texts,
    read_language_model,
)
from sru_asr.decode.searcher import Rescorer
from sru_asr.model_folder import load_model

LENGTHS = torch.tensor([1.0, 0.6])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return make_models(tmp_path_factory)


@pytest.fixture
def ctc(folders):
    return load_model(folders["ctc"], "cpu")


@pytest.fixture
def joint(folders):
    return load_model(folders["joint"], "cpu")


@pytest.fixture(scope="module")
def arpa(tmp_path_factory):
    path = tmp_path_factory.mktemp("lm") / "words.arpa"
    NGram.estimate(["ABC DE", "DE"]).write_arpa(path)
    return path


def encode(model):
    torch.manual_seed(0)
    with torch.inference_mode():
        return model.mods.encoder.encode(torch.randn(2, 16000), LENGTHS)


def texts(model):
    return list(model.transcribe_batch(*encode(model))[0])


class Backwards(Rescorer):
    """Ranks the worst first."""

    def rescore(self, found, encoded, lengths):
        return [[h._replace(score=-h.score) for h in hypotheses] for hypotheses in found]


def test_nothing_chosen_changes_nothing(folders):
    for folder in folders.values():
        model = load_model(folder, "cpu")
        before = getattr(model.mods, "decoder", None)
        choose_decoder(model)
        assert getattr(model.mods, "decoder", None) is before


def test_greedy_is_what_a_ctc_folder_does_anyway(ctc):
    expected = texts(ctc)
    assert len(set(expected)) == 2
    choose_decoder(ctc, "greedy")
    assert isinstance(ctc.mods.decoder, CTCGreedySearcher)
    assert texts(ctc) == expected
    [[(best, score)], _] = nbest_texts(ctc, *encode(ctc), 5)
    assert best == expected[0]
    assert score < 0


@pytest.mark.parametrize("kind", DECODERS)
def test_transcribe_batch_uses_the_chosen_search(kind, joint, ctc):
    for model in (joint, ctc) if kind != "joint" else (joint,):
        choose_decoder(model, kind)
        frames, lengths = encode(model)
        expected = make_searcher(model, kind)(frames, lengths).tokens
        assert texts(model) == [model.hparams.tokenizer.decode_ids(t) for t in expected]
        assert nbest_texts(model, frames, lengths, 1)[0][0][0] == texts(model)[0]


def test_a_joint_models_ctc_output_is_searched_alone(joint):
    choose_decoder(joint, "greedy")
    frames, lengths = encode(joint)
    steps = round(float(lengths[1]) * frames.shape[1])
    path = joint.mods.ctc_output(frames[1, :steps]).argmax(-1).unique_consecutive()
    assert joint.mods.decoder(frames, lengths).tokens[1] == [t for t in path.tolist() if t]


def test_beam_and_language_model(joint, ctc, arpa):
    choose_decoder(ctc, "ctc-beam", 7, arpa)
    search = ctc.mods.decoder
    assert isinstance(search, CTCBeamSearcher)
    assert (search.beam_size, search.lm_weight, search.token_bonus) == (7, 0.8, 0.5)
    assert isinstance(search.lm, WordLookahead)
    assert "lm" in search.nbest(*encode(ctc))[0][0].parts
    # The folder says joint, so a beam alone is enough; the rest stays as the folder has it.
    joint.mods.decoder.ctc_weight = 0.25
    choose_decoder(joint, beam_size=3)
    search = joint.mods.decoder
    assert isinstance(search, JointBeamSearcher)
    assert (search.beam_size, search.ctc_weight, search.lm) == (3, 0.25, None)
    choose_decoder(joint, lm=arpa)
    search = joint.mods.decoder
    assert (search.beam_size, search.lm_weight) == (3, 0.3)
    assert not search.training
    assert len(texts(joint)) == 2


def test_the_folders_rescorer_stays_around_a_search_of_its_kind(joint):
    joint.mods.decoder.length_normalization = False
    rescorer = Backwards(joint.mods.decoder)
    joint.mods["decoder"] = rescorer
    choose_decoder(joint)
    assert joint.mods.decoder is rescorer
    choose_decoder(joint, "joint", 4)
    assert joint.mods.decoder is rescorer
    assert rescorer.searcher.beam_size == 4
    assert not rescorer.searcher.length_normalization
    choose_decoder(joint, "greedy")
    assert isinstance(joint.mods.decoder, CTCGreedySearcher)


def test_nbest_texts_differ_and_come_best_first(joint, monkeypatch):
    choose_decoder(joint, "joint", 6)
    frames, lengths = encode(joint)
    found = nbest_texts(joint, frames, lengths, 3)
    assert [len(each) for each in found] == [3, 3]
    for each in found:
        assert len({text for text, _ in each}) == 3
        scores = [score for _, score in each]
        assert scores == sorted(scores, reverse=True)
    hypotheses = joint.mods.decoder.nbest(frames, lengths)
    monkeypatch.setattr(joint.mods.decoder, "nbest", lambda *_: [2 * h for h in hypotheses])
    assert nbest_texts(joint, frames, lengths, 3) == found


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"decoder": "joint"}, "decoder joint: found a model folder without a joint search"),
        ({"decoder": "beam"}, "decoder: found 'beam', expected greedy, ctc-beam, joint"),
        ({"beam_size": 5}, "beam_size: found 5 with greedy decoding.* expected decoder ctc-beam"),
        ({"lm": "a.arpa"}, "lm: found a.arpa with greedy decoding"),
        ({"decoder": "greedy", "beam_size": 5}, "beam_size: found 5 with greedy decoding"),
        ({"decoder": "ctc-beam", "beam_size": 0}, "beam_size: found 0, expected at least 1"),
        ({"decoder": "ctc-beam", "lm": "no.arpa"}, "lm no.arpa: found nothing there, expected an"),
    ],
)
def test_what_does_not_fit_is_refused(ctc, options, words):
    with pytest.raises(DecoderError, match=words):
        choose_decoder(ctc, **options)
    assert not hasattr(ctc.mods, "decoder")


def test_language_models_that_do_not_fit_are_refused(ctc, tmp_path):
    tokenizer = ctc.hparams.tokenizer
    NGram.estimate(["abc de"]).write_arpa(tmp_path / "lower.arpa")
    with pytest.raises(DecoderError, match=r"lower.arpa: .*none of the n-gram's words .*same case"):
        read_language_model(tmp_path / "lower.arpa", tokenizer)
    (tmp_path / "words.txt").write_text("ABC DE\n")
    with pytest.raises(DecoderError, match=r"lm .*words.txt: "):
        read_language_model(tmp_path / "words.txt", tokenizer)
    with pytest.raises(DecoderError, match="found no .*language_model.ckpt"):
        read_language_model(tmp_path, tokenizer)


def language_model_folder(folder, tokenizer_file):
    folder.mkdir()
    (folder / "tokenizer.ckpt").write_bytes(tokenizer_file.read_bytes())
    sizes = {"vocab_size": 9, "embedding_size": 4, "hidden_size": 4, "num_layers": 1}
    sizes["projection_size"] = 4
    (folder / "hyperparams.yaml").write_text(
        "language_model: !new:sru_asr.decode.language_model.SRULanguageModel\n"
        + "".join(f"  {name}: {size}\n" for name, size in sizes.items())
    )
    torch.save(SRULanguageModel(**sizes).state_dict(), folder / "language_model.ckpt")
    return folder


def test_an_sru_language_models_folder(joint, folders, tmp_path):
    folder = language_model_folder(tmp_path / "lm", folders["joint"] / "tokenizer.ckpt")
    choose_decoder(joint, lm=folder)
    assert isinstance(joint.mods.decoder.lm, SRULanguageModel)
    assert "lm" in joint.mods.decoder.nbest(*encode(joint))[0][0].parts
    yaml = folder / "hyperparams.yaml"
    yaml.write_text(yaml.read_text() + "extra: !new:collections.OrderedDict {}\n")
    with pytest.raises(DecoderError, match=r"found !new:collections.OrderedDict.*--trust-model"):
        choose_decoder(joint, lm=folder)
    choose_decoder(joint, lm=folder, trust=True)


def test_speechbrains_search_is_only_replaced_as_a_whole(folders):
    model = load_model(folders["speechbrain"], "cpu")
    with pytest.raises(DecoderError, match="found none given, and S2STransformerBeamSearcher in"):
        choose_decoder(model, beam_size=5)
    with pytest.raises(DecoderError, match="nbest: found S2STransformerBeamSearcher"):
        nbest_texts(model, *encode(model), 2)
    choose_decoder(model, "ctc-beam", 5)
    assert len(nbest_texts(model, *encode(model), 2)[0]) == 2


def test_nbest_of_a_greedy_folder_is_refused(ctc):
    with pytest.raises(DecoderError, match="nbest: found greedy CTC in the model folder"):
        nbest_texts(ctc, *encode(ctc), 2)
