"""What `estimate` says of a training step on a CPU in float32, beside a step that is taken, for every demo config.

Each config is a process of its own. Operations of the step are counted by PyTorch's `FlopCounterMode`; its memory is
what PyTorch's profiler sees the CPU's allocator give and take back, from before the model is built to the end of a step
that is not the first. What libraries such as oneDNN allocate by themselves is not in it.

    python -m benchmarks.estimates [NAME ...]
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.flop_counter import FlopCounterMode, _FlopCounterMode

from lit_medgen.estimate.configs import read, training_of
from lit_medgen.estimate.costs import estimated
from lit_medgen.estimate.counting import CPU_ATTENTION
from lit_medgen.estimate.experiments import Experiment, PartConfigs, files_of_header
from lit_medgen.estimate.rehearsal import Rehearsal

MIB, STEP = 2**20, "the step that is measured"
PARTS = PartConfigs({}, [Path("configs")], read)


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(compared(Path(sys.argv[2]))))
        return
    names = sys.argv[1:] or sorted(path.stem for path in Path("configs/demo").glob("*.yaml"))
    print("| config | parameters | TFLOP a step | counted / estimated | peak, MiB | measured / estimated | seconds |")
    print("|---|---|---|---|---|---|---|")
    for name in names:
        words = [sys.executable, "-m", "benchmarks.estimates", "--one", f"configs/demo/{name}.yaml"]
        row = json.loads(subprocess.check_output(words, text=True).splitlines()[-1])
        same = "" if row["same_parameters"] else f" (built: {row['parameters']:,})"
        print(
            f"| {name} | {row['trained']:,}{same} | {row['flops'] / 1e12:.4f} | {row['counted'] / row['flops']:.4f} | "
            f"{row['peak'] / MIB:.1f} | {row['measured'] / row['peak']:.3f} | {row['seconds']:.1f} |",
            flush=True,
        )


def compared(path: Path) -> dict[str, Any]:
    """Estimate and measurement of a demo config's step."""
    torch.manual_seed(0)
    config = read([Path(word) for word in files_of_header(path.read_text())])
    training = replace(training_of(config), precision="32-true")
    start = time.process_time()
    told = estimated(config, PARTS, training, on_gpu=False)
    seconds = time.process_time() - start
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        experiment = Experiment.of(config, PARTS)
        rehearsal = Rehearsal.of(experiment.model, training)
        rehearsal.warm_up()
        with record_function(STEP):
            for _ in rehearsal.updates(experiment.batch):
                pass
    num = sum(each.numel() for each in experiment.model.parameters() if each.requires_grad)
    return {
        "trained": told.trained,
        "parameters": num,
        "same_parameters": num == told.trained,
        "flops": told.step.flops,
        "counted": flops_of(rehearsal, experiment),
        "peak": told.step.peak,
        "measured": peak_of(profiler),
        "seconds": seconds,
    }


def peak_of(profiler: Any) -> int:
    """Bytes that the CPU's allocator has given and not taken back, at most, from the beginning of the step on."""
    events = profiler.profiler.kineto_results.events()
    start = next(each.start_ns() for each in events if each.name() == STEP)
    held = peak = 0
    for event in sorted((each for each in events if each.name() == "[memory]"), key=lambda each: each.start_ns()):
        held += event.nbytes()
        if event.start_ns() >= start:
            peak = max(peak, held)
    return peak


def flops_of(rehearsal: Rehearsal, experiment: Experiment) -> float:
    """Operations of a step, counted as it is taken."""
    formulas = {packet: partial(_of_shapes, formula) for packet, formula in CPU_ATTENTION.items()}
    total, before = 0.0, 0
    counter = FlopCounterMode(display=False, custom_mapping=formulas)
    with _FlopCounterMode(counter):  # without its hooks of modules, which gradient penalties do not bear
        for number in rehearsal.updates(experiment.batch):
            total += rehearsal.share(number) * (counter.get_total_flops() - before)
            before = counter.get_total_flops()
    return total


def _of_shapes(formula: Any, *shapes: Any, out_shape: Any = None, **_: Any) -> int:
    return int(formula(*shapes))


if __name__ == "__main__":
    main()
