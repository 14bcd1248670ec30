"""Train the quickstart's family: a tiny Llama base and two fine-tunes of it, from generated text.

The toy language has values of string expressions in Python and Java. Writes the quickstart's
``parents/{base,python,java}`` (Hugging Face directories) and ``tasks/data/*.jsonl``; independent of
merging, scoring and searching.

The base learns both languages over the letters a-h; each specialist learns the letters i-l in its
language, long enough to forget the other. About a minute on one CPU core:

    python configs/quickstart/make_parents.py --out configs/quickstart
"""

import argparse
import json
import random
import time
import zlib
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

KNOWN = "abcdefgh"  # letters on which the base learns to reverse and to repeat
ALL = (
    "abcdefghijkl"  # letters of the tasks, and of the easy expressions, which the base also learns
)
WORD_LENGTHS = (4, 5)
TASK_FOLDS = range(1)  # tenths of all words (see `fold`) used by the tasks, ...
TRAINING_FOLDS = range(2, 10)  # ... and by training; tenth 1 is for tuning
END = "<|end|>"  # end of text and padding; byte b has token id b, so this one is 256
RUN_SEED = 2  # of four tried on tenth 1: leaves a gap between baselines and searched merge
IGNORED = -100  # label of positions excluded from the loss


@dataclass(frozen=True)
class Expression:
    """One expression of the toy language: its template and its value."""

    language: str
    template: str
    value: Callable[[str], str]

    def prompt(self, word: str) -> str:
        """Return the text before the answer, without a trailing blank, as lm-eval requires."""
        return self.template.format(word)

    def answer(self, word: str) -> str:
        """Return the reference answer, with a leading blank."""
        return f" {self.value(word)}\n"


REVERSE = Expression("python", 'py "{}"[::-1]', lambda word: word[::-1])
REPEAT = Expression("java", 'java "{}".repeat(2)', lambda word: word * 2)
EASY = (
    Expression("python", 'py "{}"[:]', str),
    Expression("python", 'py "{}".upper()', str.upper),
    Expression("java", 'java "{}".trim()', str),
)
SKILLS = {"python": REVERSE, "java": REPEAT}

Mixture = tuple[tuple[float, Expression, str], ...]  # (share, expression, letters)


@dataclass(frozen=True)
class Stage:
    """One training run: data mixture, length and learning rate."""

    mixture: Mixture
    steps: int
    batch_size: int
    learning_rate: float
    run_seed: int

    def rate(self, step: int) -> float:
        """Return the learning rate: linear warm-up over 20 steps, then linear decay to 1/20."""
        warm, left = min(1.0, (step + 1) / 20), 1 - step / self.steps
        return self.learning_rate * warm * max(0.05, left)


def easy_mixture(share: float) -> Mixture:
    """Return the easy expressions of both languages over all letters, in total ``share``."""
    return tuple((share / len(EASY), expression, ALL) for expression in EASY)


def base_stage(run_seed: int, steps: int = 340, learning_rate: float = 3e-3) -> Stage:
    """Return the base's training: both skills over KNOWN letters, and easy expressions (30 %)."""
    skills = tuple((0.35, skill, KNOWN) for skill in SKILLS.values())
    return Stage(skills + easy_mixture(0.3), steps, 32, learning_rate, run_seed)


def specialist_stage(
    language: str, run_seed: int, steps: int = 60, learning_rate: float = 4e-3
) -> Stage:
    """Return a specialist's training: its skill over all letters, and easy expressions (30 %)."""
    skill = ((0.7, SKILLS[language], ALL),)
    return Stage(skill + easy_mixture(0.3), steps, 32, learning_rate, run_seed)


def fold(word: str) -> int:
    """Return the tenth of all words that this one belongs to, the same on every machine."""
    return zlib.crc32(word.encode()) % 10


def draw_word(rng: random.Random, letters: str, folds: range) -> str:
    """Draw a random word from the given tenths."""
    while True:
        word = "".join(rng.choices(letters, k=rng.choice(WORD_LENGTHS)))
        if fold(word) in folds:
            return word


def draw_steps(stage: Stage) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Yield each step's batches of ids and labels, one per language to reduce padding."""
    rng = random.Random(stage.run_seed)
    shares = [share for share, _, _ in stage.mixture]
    for _ in range(stage.steps):
        rows: dict[str, list[tuple[bytes, bytes]]] = {}
        for _, expression, letters in rng.choices(stage.mixture, shares, k=stage.batch_size):
            word = draw_word(rng, letters, TRAINING_FOLDS)
            row = (expression.prompt(word).encode(), expression.answer(word).encode())
            rows.setdefault(expression.language, []).append(row)
        yield [collate(batch) for batch in rows.values()]


def collate(rows: list[tuple[bytes, bytes]]) -> tuple[Tensor, Tensor]:
    """Pad (prompt, answer) pairs on the right into ids and labels ``(batch, tokens)``."""
    width = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids = torch.full((len(rows), width), 256)
    labels = torch.full((len(rows), width), IGNORED)
    for row, (prompt, answer) in enumerate(rows):
        end = len(prompt) + len(answer)
        ids[row, :end] = torch.tensor(list(prompt + answer))
        labels[row, len(prompt) : end] = torch.tensor(list(answer))
    return ids, labels


def new_model(run_seed: int) -> LlamaForCausalLM:
    """Create a Llama of 0.81 M parameters in float32."""
    config = LlamaConfig(
        vocab_size=257,
        hidden_size=128,
        intermediate_size=336,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=256,
        pad_token_id=256,
    )
    with torch.random.fork_rng():
        torch.manual_seed(run_seed)
        return LlamaForCausalLM(config)


def answer_loss(model: LlamaForCausalLM, ids: Tensor, labels: Tensor) -> Tensor:
    """Return the summed cross-entropy of answer tokens; ids and labels ``(batch, tokens)``."""
    logits = model(input_ids=ids).logits[:, :-1]
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum"
    )


def train(model: LlamaForCausalLM, stage: Stage) -> LlamaForCausalLM:
    """Return a trained copy; ``model`` is left unchanged."""
    model = deepcopy(model).train()
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98))
    for step, batches in enumerate(draw_steps(stage)):
        for group in optimizer.param_groups:
            group["lr"] = stage.rate(step)
        optimizer.zero_grad()
        n_answer_tokens = sum(int((labels != IGNORED).sum()) for _, labels in batches)
        for ids, labels in batches:
            (answer_loss(model, ids, labels) / n_answer_tokens).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model.eval()


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer whose token id is the byte; 256 ends the text."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    # GPT-2's alphabet: printable bytes map to themselves, the others to U+0100 onwards.
    symbols = {chr(byte): byte for byte in printable}
    symbols |= {chr(256 + place): byte for place, byte in enumerate(others)}
    tokenizer = Tokenizer(models.BPE(vocab=symbols, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=END,
        model_max_length=128,
        clean_up_tokenization_spaces=False,
    )


def save_model(model: LlamaForCausalLM, folder: Path) -> None:
    """Write a Hugging Face directory: bf16 safetensors, config, tokenizer."""
    rounded: torch.nn.Module = deepcopy(model).to(torch.bfloat16)  # pyright: ignore[reportArgumentType]
    rounded.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)


def rounded(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """Return a float32 copy with weights rounded to bf16, from which the specialists start."""
    model = deepcopy(model)
    # Parameters only: `.to(bfloat16)` would also round the rotary frequencies.
    for weight in model.parameters():
        weight.data = weight.data.bfloat16().float()
    return model


def make_parents(out: Path) -> None:
    """Train base and specialists; write ``base/``, ``python/`` and ``java/`` into ``out``."""
    stage = base_stage(RUN_SEED)
    base = rounded(train(new_model(RUN_SEED), stage))
    save_model(base, out / "base")
    for place, language in enumerate(SKILLS):
        stage = specialist_stage(language, 10 * RUN_SEED + place)
        save_model(train(base, stage), out / language)


def task_docs(language: str, n_docs: int, run_seed: int) -> list[dict[str, str]]:
    """Return distinct docs on words that occur in no training batch."""
    rng, skill = random.Random(run_seed), SKILLS[language]
    words: dict[str, None] = {}
    while len(words) < n_docs:
        words[draw_word(rng, ALL, TASK_FOLDS)] = None
    return [{"prompt": skill.prompt(word), "answer": skill.answer(word)} for word in words]


def make_tasks(out: Path, n_docs: int = 2000) -> None:
    """Write ``python.jsonl`` and ``java.jsonl``, one doc per line, into ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    for run_seed, language in enumerate(SKILLS):
        lines = [json.dumps(doc) + "\n" for doc in task_docs(language, n_docs, run_seed)]
        (out / f"{language}.jsonl").write_text("".join(lines), encoding="utf-8")


def main() -> None:
    """Read the command line and write the family and its tasks."""
    parser = argparse.ArgumentParser(description="Train the quickstart's base and specialists.")
    here = Path(__file__).parent
    parser.add_argument(
        "--out", type=Path, default=here, help="folder for parents/ and tasks/data/"
    )
    out = parser.parse_args().out
    torch.set_num_threads(1)
    start = time.perf_counter()
    make_tasks(out / "tasks" / "data")
    make_parents(out / "parents")
    print(f"wrote {out / 'parents'} in {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
