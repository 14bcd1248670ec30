"""Runs where mergekit is, in an environment of its own: merges as asked, for tests to compare with.

Takes the path of a JSON file with a list of jobs and does one after the other:

    {"models": {name: safetensors}, "base": name, "method": .., "parameters": {..}, "dtype": ..,
     "out": safetensors}                 one merge of state dicts, after torch.manual_seed(0)
    {... "seeds": n}                     n of them; out has mean and mean of squares per tensor
    {"yaml": file, "out": folder}        what `mergekit-yaml` does

What a job raises is written beside its goal, as "<out>.error". Knows nothing of heterosis.
"""

import contextlib
import json
import sys
from pathlib import Path

import torch


def merge_dicts(job):
    from mergekit.merge_methods import merge_state_dicts
    from safetensors.torch import load_file, save_file

    models = {name: load_file(path) for name, path in job["models"].items()}
    dtype = getattr(torch, job.get("dtype", "float32"))
    sums = {}
    for seed in range(job.get("seeds", 1)):
        torch.manual_seed(seed)
        merged = merge_state_dicts(
            models, job["method"], base=job["base"], parameters=job["parameters"], dtype=dtype
        )
        if "seeds" not in job:
            save_file({name: t.contiguous() for name, t in merged.items()}, job["out"])
            return
        for name, tensor in merged.items():
            delta = tensor.double() - models[job["base"]][name].double()
            for key, term in (
                (name, delta),
                (f"{name}.squares", delta**2),
                (f"{name}.kept", delta != 0),
            ):
                sums[key] = sums.get(key, 0) + term.double() / job["seeds"]
    save_file(sums, job["out"])


def merge_yaml(job):
    import yaml
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    config = MergeConfiguration.model_validate(yaml.safe_load(Path(job["yaml"]).read_text()))
    options = MergeOptions(random_seed=0, quiet=True, copy_tokenizer=True, write_model_card=False)
    run_merge(config, job["out"], options=options)


def main():
    torch.set_num_threads(1)
    for job in json.loads(Path(sys.argv[1]).read_text()):
        with contextlib.redirect_stdout(sys.stderr):
            try:
                (merge_yaml if "yaml" in job else merge_dicts)(job)
            except (ValueError, RuntimeError, KeyError, TypeError) as error:
                Path(job["out"] + ".error").write_text(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
