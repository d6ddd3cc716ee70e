"""TorchScript: traces run at any length, and scripting says in one sentence what to do instead."""

import pytest
import torch
from speechbrain.core import Brain

from sru_asr import SRU, SRUEncoder, native, nnet

pytestmark = [
    pytest.mark.skipif(
        native.why_missing("cpu") is not None, reason=str(native.why_missing("cpu"))
    ),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),
]
CASES = {
    "SRU": (lambda: SRU(5, 4, 2, batch_first=True, bidirectional=True), False),
    "nnet.SRU": (lambda: nnet.SRU(4, input_size=5, num_layers=2), True),
    "SRUEncoder": (lambda: SRUEncoder(5, 4, 2, 4, attention_window=6), True),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("with_lengths", [False, True])
def test_trace_runs_at_any_length(name, with_lengths):
    make, relative = CASES[name]
    torch.manual_seed(0)
    module = make().eval()

    def inputs(batch, steps):
        arguments = {"input" if name == "SRU" else "x": torch.randn(batch, steps, 5)}
        if with_lengths:
            lengths = torch.randint(0, steps + 1, (batch,))
            arguments["lengths"] = lengths / steps if relative else lengths
        return arguments

    with torch.no_grad():
        traced = torch.jit.trace(module, example_kwarg_inputs=inputs(3, 20), check_trace=False)
        for batch, steps in ((3, 20), (2, 70), (1, 1)):
            arguments = inputs(batch, steps)
            torch.testing.assert_close(traced(**arguments), module(**arguments))


@pytest.mark.parametrize("name", CASES)
def test_script_says_what_to_do_instead(name):
    brain = Brain({"encoder": torch.nn.Sequential(CASES[name][0]())}, run_opts={"jit": True})
    with pytest.raises(RuntimeError, match="cannot compile SRU layers .* use torch.compile"):
        brain._compile()
