"""Train or fine-tune a recogniser on one's own manifests.

``python recipes/Manifest/train.py hparams/manifest/srupp_ctc.yaml --train_csv=FILE``

``python recipes/Manifest/train.py hparams/manifest/finetune.yaml --train_csv=FILE
--pretrained=DIR``
"""

import re
import sys

from schedule import derive_settings

from sru_asr.training import main


def prepare(hparams: dict) -> None:
    """Nothing: the manifests are there."""


if __name__ == "__main__":
    # In a YAML, `tokenizer` is the object itself.
    arguments = [re.sub(r"^--tokenizer(?==|$)", "--pretrained_tokenizer", a) for a in sys.argv[1:]]
    main(prepare, settings=derive_settings, arguments=arguments)
