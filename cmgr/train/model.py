"""The base in torch: its device, its tokens, and a LoRA over it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cmgr import recipe as recipes
from cmgr.base import Base, weights_folder
from cmgr.chat_tokens import ChatTokens
from cmgr.errors import CmgrError, UsageError, missing_extra
from cmgr.records import Example, Message
from cmgr.template_rendering import Rules
from cmgr.threads import Pace, sleep_soon
from cmgr.train.tokenizer import TransformersTokenizer

# what torch and its libraries say when memory is short; where they do, it is a RuntimeError
_NO_MEMORY = (
    *("CUDA out of memory", "CUDA error: out of memory", "MPS backend out of memory"),
    *("HIP out of memory", "XPU out of memory"),
    *("DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough memory"),
    *("CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED"),
)
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj"]


@dataclass(frozen=True)
class Item:
    """One example as token ids: what stands before the answer, and what is learnt."""

    id: str
    prompt: tuple[int, ...]
    target: tuple[int, ...]  # invocation, answer, end of turn
    group: str = ""  # whose prompts the base reads together
    rivals: tuple[tuple[int, ...], ...] = ()  # wrong answers, each as the target is

    def __len__(self) -> int:
        return len(self.prompt) + self.learnt

    @property
    def learnt(self) -> int:
        """How many tokens the adapter computes where the base reads the prompt."""
        return len(self.target) + sum(map(len, self.rivals))

    def answers(self) -> list[Item]:
        """The right answer, then each rival, as items of their own."""
        return [replace(self, target=t, rivals=()) for t in (self.target, *self.rivals)]


# prompts that are read together, and how many tokens they begin with in common
Key = tuple[int, tuple[tuple[int, ...], ...]]


class Trainable:
    """The base in torch, ready for LoRA; loaded once for all cultures.

    It is the GGUF that serves, dequantised, or the weights of `base.train_from`. Under
    `torchrun` or `accelerate launch` each process holds one. Raises MissingError without the
    `train` extra, UsageError for a device that is not there, CmgrError when transformers cannot
    load it.
    """

    def __init__(
        self, base: Base, settings: recipes.Recipe, folder: Path, say: Callable[[str], None]
    ) -> None:
        sleep_soon()
        try:
            import accelerate
            import peft  # noqa: F401 - found out now, not after the loading
            import torch
            import transformers
        except ImportError:
            raise missing_extra("train", "cmgr train") from None
        transformers.logging.set_verbosity_error()
        # notes of libraries to their own callers (renamed paths, thread counts) tell a user nothing
        warnings.filterwarnings("ignore", module=r"peft|transformers|accelerate")
        self.base = base
        self.context = settings.base.context
        kind, why = _device(settings.train.device)
        self.accelerator = accelerate.Accelerator(cpu=kind == "cpu")
        self.device = self.accelerator.device
        self.dtype = torch.bfloat16 if kind == "cuda" else torch.float32
        if kind == "cpu" and _by_onednn():
            why += "; products by oneDNN"
        processes = self.accelerator.num_processes
        fixed = settings.train.threads
        if fixed:
            torch.set_num_threads(fixed)
        # other devices, and processes that wait for each other, have nothing to choose
        choose = kind == "cpu" and processes == 1 and not fixed
        self.pace = Pace(torch.get_num_threads() if choose else 1, torch.set_num_threads)
        with self.accelerator.main_process_first():
            self.reference, self.model, self.tokenizer = _load(self, settings, folder, why, say)
        if processes > 1:
            say(f"train: {processes} processes share each batch")
        self.model.requires_grad_(False)
        self.model.eval()
        tokenizer = self.tokenizer
        if not tokenizer.chat_template:
            raise UsageError(f"{self.reference} has no chat template: choose an instruct model")
        self.template = str(tokenizer.get_chat_template())
        bos, eos = tokenizer.bos_token or "", tokenizer.eos_token or ""
        rules = Rules(self.template, bos, eos, base.thinking)
        self.end = int(tokenizer.eos_token_id)  # also what pads
        self.store: dict[Key, list[Any]] = {}  # KV that the base has read for adapters to come
        self.keeps: Collection[str] = ()  # the groups of items that these have
        self.chat = ChatTokens(rules, TransformersTokenizer(tokenizer), self.end)
        self.invocation = self.chat.invocation
        if settings.train.gradient_checkpointing:
            checkpoint_layers(self.model)

    @property
    def main(self) -> bool:
        """Whether this process is the one that writes."""
        return bool(self.accelerator.is_main_process)

    def prompt_tokens(self, messages: Sequence[Message]) -> list[int]:
        """The tokens before the invocation, the same as the runtime's."""
        return self.chat.prompt(messages)

    def item(self, example: Example, rivals: Sequence[str] = ()) -> Item:
        """One example as token ids. Raises CmgrError for one that cannot be trained on."""
        answer = self.chat.answer(example.answer)
        item = Item(
            example.id,
            tuple(self.prompt_tokens(example.messages)),
            (*self.invocation, *answer, *self.chat.end),
            example.culture,
            tuple((*self.invocation, *self.chat.answer(r), *self.chat.end) for r in rivals),
        )
        if not answer:
            raise CmgrError(
                f"example {example.id} ({example.culture}) has no answer. Correct it in "
                "examples.jsonl, or reject it: cmgr review"
            )
        longest = max(map(len, item.answers()))
        if longest > self.context:
            raise CmgrError(
                f"example {example.id} ({example.culture}) has {longest} tokens, the context "
                f"holds {self.context}. Shorten or reject it, or raise base.context in the recipe"
            )
        return item

    def pieces(self, item: Item) -> list[tuple[str, bool]]:
        """An item as trained: each token's text, and whether it is learnt."""
        before = len(item.prompt) + len(self.invocation)
        texts = self.tokenizer.batch_decode([[t] for t in (*item.prompt, *item.target)])
        return [(text, number >= before) for number, text in enumerate(texts)]

    def make_adapter(self, settings: recipes.Adapter) -> Any:
        """The base with a fresh LoRA (a PeftModel); `unload` it to have the base back."""
        from peft import LoraConfig, get_peft_model

        targets: Any = settings.targets
        if targets == "attention":
            here = {name.rpartition(".")[2] for name, _ in self.model.named_modules()}
            targets = [name for name in ATTENTION if name in here]
        config = LoraConfig(
            task_type="CAUSAL_LM",
            r=settings.rank,
            lora_alpha=settings.alpha,
            lora_dropout=settings.dropout,
            use_rslora=settings.rslora,
            target_modules=targets,
        )
        try:
            return get_peft_model(self.model, config)
        except ValueError as error:
            raise UsageError(f"adapter.targets: {error}") from None


def _device(wanted: str) -> tuple[str, str]:
    """cuda, mps or cpu, and why. Raises UsageError for one that is not there."""
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if wanted != "auto":
        if not there.get(wanted, True):
            raise UsageError(f"train.device: {wanted} is not available here; use auto or cpu")
        return wanted, "train.device says so"
    for kind, found in there.items():
        if found:
            return kind, f"a {kind.upper()} device is there"
    return "cpu", "no CUDA or MPS device"


def _by_onednn() -> bool:
    """Let oneDNN multiply float32 matrices, where it is as exact as the BLAS that torch carries.

    On AMD processors it is about twice as fast. "medium" allows it bfloat16 too, which it uses
    where the processor has matrix units (AMX); there the BLAS stays.
    """
    import torch

    chance = torch.Generator().manual_seed(0)
    one, other = (torch.randn(256, 256, generator=chance) for _ in range(2))
    exact = one @ other
    torch.set_float32_matmul_precision("medium")
    if float((one @ other - exact).norm() / exact.norm()) < 1e-5:
        return True
    torch.set_float32_matmul_precision("highest")
    return False


def _load(
    trainable: Trainable,
    settings: recipes.Recipe,
    folder: Path,
    why: str,
    say: Callable[[str], None],
) -> tuple[str, Any, Any]:
    """The reference of what is trained on, the model, its tokenizer."""
    import transformers

    base, source = trainable.base, settings.base.train_from
    options: dict[str, Any] = {"local_files_only": True}
    if source:
        place: Path = weights_folder(source, folder)
        reference = source.removeprefix("hf:")
    else:
        place, reference = base.gguf.parent, base.reference
        options["gguf_file"] = base.gguf.name
    extra: dict[str, Any] = {}
    if _four_bits(settings, place, trainable.device, say):
        extra["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=trainable.dtype,
        )
        extra["device_map"] = {"": trainable.device}
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(place, **options)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            place, dtype=trainable.dtype, **options, **extra
        )
        if not extra:
            model = model.to(trainable.device)
    except Exception as error:
        if out_of_memory(error):
            raise CmgrError(
                f"{place if source else base.gguf}: out of memory while it was loaded. Take a "
                "smaller base, or train.quantize: 4bit (with base.train_from) on a CUDA device"
            ) from error
        mend = "" if source else ". Name weights that it can: base.train_from: hf:OWNER/REPO"
        first = str(error).strip().partition("\n")[0]
        raise CmgrError(
            f"{place if source else base.gguf}: transformers cannot load this for training: "
            f"{first}{mend}"
        ) from error
    bits = ", 4-bit base" if extra else ""
    size = str(trainable.dtype).removeprefix("torch.")
    say(f"train: on {trainable.device.type} in {size}{bits} ({why})")
    return reference, model, tokenizer


def _four_bits(
    settings: recipes.Recipe, place: Path, device: Any, say: Callable[[str], None]
) -> bool:
    """Whether the base is held in 4 bits (QLoRA): asked for, or else it would not fit."""
    import torch

    wanted = settings.train.quantize
    if not settings.base.train_from:
        if wanted == "4bit":
            raise UsageError("train.quantize: 4bit needs base.train_from (safetensors weights)")
        return False
    if device.type != "cuda":
        if wanted == "4bit":
            raise UsageError("train.quantize: 4bit needs a CUDA device")
        return False
    if wanted == "auto":
        need = sum(f.stat().st_size for f in place.glob("*.safetensors"))
        free = torch.cuda.mem_get_info(device)[0]
        if need < 0.7 * free:  # the rest is for activations, KV and the adapter
            return False
        say(f"train: 4-bit base: its {need / 2**30:.1f} GiB do not fit {free / 2**30:.1f} GiB")
    elif wanted != "4bit":
        return False
    if find_spec("bitsandbytes") is None:
        raise missing_extra("qlora", "A 4-bit base")
    return True


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is short, and not only something of memory."""
    import torch

    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)


def checkpoint_layers(model: Any) -> None:
    """Let each decoder layer be computed again in the backward pass: memory for time.

    transformers' own switch drops the KV that an item continues; the layers here keep it, since
    `prompts.Kept` never changes what it is given.
    """
    from functools import partial

    from torch.utils.checkpoint import checkpoint

    for layer in model.get_decoder().layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)


def is_main() -> bool:
    """Whether this process is the first of those that `torchrun` or `accelerate` started."""
    return int(os.environ.get("RANK", "0")) == 0
