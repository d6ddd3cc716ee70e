"""The whole product once: corpus, training, transcription, scores. Run by ``make demo``."""

from __future__ import annotations

import csv
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RECIPE = Path("recipes/Commands")
DATA = Path("data/commands")
RESULTS = Path("results/demo")
SHOWN = 8


def main() -> None:
    """Train on the Commands corpus, transcribe unheard voices and show what came of it."""
    os.chdir(ROOT)
    started = time.monotonic()
    announce("1/3  Making a spoken corpus and training an SRU++ recogniser on it")
    train = [sys.executable, RECIPE / "train.py", "hparams/commands/srupp_ctc.yaml"]
    train += [f"--data_folder={DATA}", f"--output_folder={RESULTS}", "--device=cpu", *sys.argv[1:]]
    run(train)

    announce(f"2/3  Transcribing {SHOWN} recordings of voices the model has never heard")
    with open(DATA / "test.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    shown = rows[:: max(1, len(rows) // SHOWN)][:SHOWN]
    wavs = {row["ID"]: row["wav"].format(data_root=DATA) for row in shown}
    transcripts = RESULTS / "transcripts"
    command = Path(sys.executable).with_name("sru-asr")
    run(
        [command, "transcribe", *wavs.values(), "--model", RESULTS / "model"]
        + ["--output-dir", transcripts]
    )
    with open(transcripts / "hypotheses.csv", encoding="utf-8", newline="") as file:
        hypotheses = {row["ID"]: row["wrd"] for row in csv.DictReader(file)}
    for row in shown:
        mark = "=" if hypotheses[row["ID"]] == row["wrd"] else "x"
        print(f"\n  {row['ID']}  ({row['spk_id']})\n    ref {row['wrd']}")
        print(f"  {mark} hyp {hypotheses[row['ID']]}")

    announce("3/3  Results")
    print(
        f"  {'split':<8}{'utterances':>10}{'words':>8}{'WER %':>8}{'95 % interval':>18}{'CER %':>8}"
    )
    for split in ("valid", "test"):
        score = json.loads((RESULTS / f"score_{split}.json").read_text(encoding="utf-8"))
        interval = "{:.2f} - {:.2f}".format(*score["ci95"])
        print(
            f"  {split:<8}{score['utterances']:>10}{score['words']:>8}{score['wer']:>8.2f}"
            f"{interval:>18}{score['cer']:>8.2f}"
        )
    print(f"\n  {time.monotonic() - started:.0f} s in all. Left in {RESULTS}/:")
    print("    training.png      loss and WER by epoch")
    print("    wer_test.txt      every test utterance, aligned")
    print("    score_test.json   the figures above")
    print("    model/            self-contained; speechbrain.inference.ASR loads it, too")
    print("\n  Try next:\n")
    tool = os.path.relpath(command)
    print(f"    {tool} transcribe {DATA}/test --model {RESULTS}/model --output-dir {transcripts}")
    print(f"    {tool} score {DATA}/test.csv {transcripts}/hypotheses.csv\n")


def announce(text: str) -> None:
    """Print a heading."""
    print(f"\n== {text}\n", flush=True)


def run(command: list[str | Path]) -> None:
    """Show a command and run it; leave with its exit code when it fails."""
    words = [str(word) for word in command]
    line = shlex.join([os.path.relpath(words[0]), *words[1:]])
    print(f"$ {line if len(line) < 200 else line[:197] + '...'}\n", flush=True)
    code = subprocess.run(words, check=False).returncode
    if code:
        raise SystemExit(code)


if __name__ == "__main__":
    main()
