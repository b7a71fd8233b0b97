"""What one CUDA device does: training of both models, the ranker's scorer, exact search; absolute figures.

    python benchmarks/gpu.py [out=gpu.json] [scale=1] [only=search,table,ranker,towers,scorer,compiled]

Makes its own data, takes about two minutes, and needs neither TorchRec nor FAISS (tables are plain, in one
process). Each figure is the median of five rounds with its range. Shares are of the rates of a large matrix
product and a large copy, measured first. Without CUDA there is a dry run, on a processor: ``scale=0.01``.
"""

import gc
import json
import sys
import tempfile
import time
import traceback
from pathlib import Path

import torch

from benchmarks.gpu_bench import Bench, limits, output_folder
from benchmarks.gpu_ranker import ranker
from benchmarks.gpu_scorer import scorer
from benchmarks.gpu_search import search
from benchmarks.gpu_table import table
from benchmarks.gpu_two_tower import compiled, towers
from training.config import Device
from training.process import start_process

PARTS = {part.__name__: part for part in (search, table, ranker, towers, scorer, compiled)}


def main(arguments: dict[str, str]) -> int:
    device = start_process(0, Device.auto, int(arguments.get("threads", "0")))
    if device.type != "cuda" and "scale" not in arguments:
        print(
            "error: no CUDA device here; scale=0.01 makes a dry run on the processor, without recorded "
            "graphs and lower precisions", file=sys.stderr,
        )  # fmt: skip
        return 2
    wanted = arguments.get("only", ",".join(PARTS)).split(",")
    unknown = [part for part in wanted if part not in PARTS]
    if unknown:
        print(f"error: only={','.join(unknown)}: the parts are {', '.join(PARTS)}", file=sys.stderr)
        return 2
    name = torch.cuda.get_device_name() if device.type == "cuda" else "processor"
    print(f"{name}; torch {torch.__version__}; {torch.get_num_threads()} threads", flush=True)
    errors: dict[str, str] = {}
    spent: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(device, float(arguments.get("scale", "1")), Path(folder))
        for part in (limits, *(PARTS[one] for one in wanted)):
            began = time.perf_counter()
            try:
                part(bench)
            except Exception:  # the other parts still tell
                errors[part.__name__] = traceback.format_exc()
                print(f"{part.__name__} failed:\n{errors[part.__name__]}", flush=True)
            gc.collect()
            if bench.cuda:
                torch.cuda.empty_cache()
            spent[part.__name__] = round(time.perf_counter() - began, 1)
    report = {
        "device": name, "torch": torch.__version__, "figures": bench.figures, "seconds": spent,
        "errors": errors,
    }  # fmt: skip
    out = Path(arguments.get("out") or output_folder() / "gpu.json")
    out.write_text(json.dumps(report, indent=1))
    print(f"\n{name}, seconds {spent}; {out}")
    for figure in bench.figures:
        share = figure.get("share_of_product_rate")
        last = "" if share is None else f"{share:.3f} of the product rate"
        print(f"{figure['name']:<72} {figure['median']:>12,.4g} {figure['unit']:<13} {last}")
    return int(bool(errors))


if __name__ == "__main__":
    raise SystemExit(main(dict(word.split("=", 1) for word in sys.argv[1:])))
