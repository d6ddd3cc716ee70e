"""Exported graphs and AOTInductor packages give what the modules give, at any size."""

import os
import subprocess
import sys

import pytest
import torch
from trained import trained

from sru_asr import SRU, SRUEncoder, native, nnet
from sru_asr.graph import export_graph

pytestmark = pytest.mark.skipif(
    native.why_missing("cpu") is not None, reason=str(native.why_missing("cpu"))
)
SIZES = [(3, 17), (2, 2), (4, 90)]  # (B, T)


def encoder_inputs(batch, steps):
    x, lengths = torch.randn(batch, steps, 5), torch.rand(batch)
    lengths[0] = 1
    return {"x": x, "lengths": lengths}


@pytest.mark.parametrize("bidirectional", [False, True])
def test_layer(bidirectional):
    sru = trained(SRU(5, 4, 2, bidirectional=bidirectional))
    graph = export_graph(sru, hx=True).module()
    for batch, steps in SIZES:
        inputs = {
            "input": torch.randn(steps, batch, 5),
            "hx": torch.randn(4 if bidirectional else 2, batch, 4),
            "lengths": torch.randint(0, steps + 1, (batch,)),
        }
        torch.testing.assert_close(graph(**inputs), sru(**inputs))


def test_speechbrain_layer():
    sru = trained(nnet.SRU(4, input_size=5))
    graph = export_graph(sru, lengths=False).module()
    for batch, steps in SIZES:
        x = torch.randn(batch, steps, 5)
        torch.testing.assert_close(graph(x=x), sru(x))


@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize("options", [{}, {"conv_kernel": 5}, {"d_ffn": 7, "num_heads": 5}], ids=str)
def test_encoder(window, options):
    options = {"num_heads": 2, "attention_window": window} | options
    encoder = trained(SRUEncoder(5, 4, 2, 6, **options))
    graph = export_graph(encoder).module()
    for batch, steps in SIZES:
        inputs = encoder_inputs(batch, steps)
        torch.testing.assert_close(graph(**inputs), encoder(**inputs), rtol=1e-5, atol=1e-5)


# What a deployment has: PyTorch, the operator library and the package.
PROGRAM = """
import sys, torch
library, package, cases = sys.argv[1:]
torch.ops.load_library(library)
model = torch._inductor.aoti_load_package(package)
for inputs, expected in torch.load(cases):
    torch.testing.assert_close(model(**inputs), expected, rtol=1e-5, atol=1e-5)
assert not any(name.startswith("sru_asr") for name in sys.modules)
print("agrees")
"""


@pytest.mark.slow
def test_package_runs_without_our_modules(tmp_path):
    encoder = trained(SRUEncoder(5, 4, 2, 6, 2, conv_kernel=3))
    program = export_graph(encoder)
    torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "encoder.pt2"))
    sizes = [*SIZES, (1, 1), (1, 40)]
    with torch.no_grad():
        cases = [(case, encoder(**case)) for case in (encoder_inputs(*size) for size in sizes)]
    torch.save(cases, tmp_path / "cases.pt")
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM, native.LIBRARIES["cpu"], "encoder.pt2", "cases.pt"],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
    )
    assert found.stdout == "agrees\n", found.stderr
