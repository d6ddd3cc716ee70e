"""What docs/export.md shows runs."""

import re
import textwrap
from pathlib import Path

import pytest
from model_folder import make_models

from sru_asr import native

PAGE = Path(__file__).resolve().parents[1] / "docs" / "export.md"
SLOW = {"torch.compile", "AOTInductor"}
NEEDS_ONNX = {"ONNX"}

pytestmark = [
    pytest.mark.skipif(
        native.why_missing("cpu") is not None, reason=str(native.why_missing("cpu"))
    ),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),
]


def sections():
    """Each section's Python, in order."""
    for section in re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        title = section.splitlines()[0]
        code = re.findall(r"^```python\n(.*?)^```", section, flags=re.DOTALL | re.MULTILINE)
        if code:
            marks = [pytest.mark.slow] if title in SLOW | NEEDS_ONNX else []
            yield pytest.param(title, "\n".join(map(textwrap.dedent, code)), marks=marks, id=title)


@pytest.mark.parametrize(("title", "code"), list(sections()))
def test_section_runs(title, code, tmp_path, tmp_path_factory, monkeypatch):
    if title in NEEDS_ONNX:
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
        assert "results/demo/model" in code
        model = make_models(tmp_path_factory)["ctc"]
        code = code.replace("results/demo/model", str(model))
    monkeypatch.chdir(tmp_path)
    exec(compile(code, f"{PAGE.name}: {title}", "exec"), {})
