"""Prompts that the base has read: their KV, kept in memory, on disk, or computed again.

The base alone reads the prompt of an activated adapter, so its KV never changes while training.
What many prompts begin with (an instruction) is read once.
"""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from cmgr import recipe as recipes
from cmgr.errors import CmgrError
from cmgr.gguf_lora import head_size
from cmgr.runtime.llama import common_prefix
from cmgr.train.model import Item, Key, Trainable

WORTH = 16  # tokens: a longer common beginning is read once
READ = 16  # prompts read at once
Where = Literal["memory", "disk", "again"]


def cache_of(keys_values: Any, *, kept: bool) -> Any:
    """A transformers cache over KV of shape (layers, 2, items, heads, tokens, size).

    A `kept` one hands out what it was given with the new tokens behind it, and stays as it is: so
    a layer may be computed twice (gradient checkpointing), and nothing is stored for nobody.
    """
    import torch
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    class Kept(DynamicLayer):  # type: ignore[misc] # transformers is untyped here
        def update(self, key_states: Any, value_states: Any, *_: Any, **__: Any) -> Any:
            return (
                torch.cat([self.keys, key_states], dim=-2),
                torch.cat([self.values, value_states], dim=-2),
            )

    cache = DynamicCache()
    for keys, values in keys_values:
        layer = Kept() if kept else DynamicLayer()
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
        cache.layers.append(layer)
    return cache


def new_cache(layers: int) -> Any:
    """An empty cache that holds what is read last, so that a layer may be computed twice."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    class Last(DynamicLayer):  # type: ignore[misc] # transformers is untyped here
        def update(self, key_states: Any, value_states: Any, *_: Any, **__: Any) -> Any:
            self.keys, self.values, self.is_initialized = key_states, value_states, True
            return key_states, value_states

    cache = DynamicCache()
    cache.layers = [Last() for _ in range(layers)]
    return cache


def given(decoder: Any, cache: Any) -> dict[str, Any]:
    """A cache under the name by which the decoder takes it: transformers 5.24 has renamed it."""
    new = "cache" in inspect.signature(decoder.forward).parameters
    return {"cache" if new else "past_key_values": cache}


def stack(cache: Any, start: int) -> Any:
    """A cache's KV from token `start` on, (layers, 2, items, heads, tokens, size)."""
    import torch

    return torch.stack(
        [
            torch.stack([layer.keys[:, :, start:], layer.values[:, :, start:]])
            for layer in cache.layers
        ]
    )


def cell_bytes(config: Any, dtype: Any) -> int:
    """Bytes of one token's KV, by a model's configuration and the type that it computes in."""
    text = config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    return int(2 * text.num_hidden_layers * heads * head_size(text.to_dict()) * dtype.itemsize)


def families(prompts: Sequence[tuple[int, ...]]) -> list[tuple[int, list[int]]]:
    """Prompts grouped by what they begin with, so that the fewest tokens are read.

    Returns (length of the beginning, the prompts' numbers); those that share nothing worth it
    stand together under length 0.
    """
    found = _split(prompts, sorted(range(len(prompts)), key=lambda n: prompts[n]), 8)
    alone = [number for shared, numbers in found if not shared for number in numbers]
    return [family for family in found if family[0]] + ([(0, alone)] if alone else [])


def _split(
    prompts: Sequence[tuple[int, ...]], order: list[int], depth: int
) -> list[tuple[int, list[int]]]:
    """Families of prompts in sorted order: one, or finer ones where that reads less."""
    if len(order) < 2:
        return [(0, order)]
    common = [common_prefix(prompts[a], prompts[b]) for a, b in pairwise(order)]
    # one token of each is left to read
    least = min(min(common), min(len(prompts[n]) for n in order) - 1)
    whole = [(least if least >= WORTH else 0, order)]
    if not depth or least == max(common):
        return whole
    cuts = [0, *(i for i, n in enumerate(common, 1) if n <= least), len(order)]
    if len(cuts) == 2:
        return whole
    parts = [f for a, b in pairwise(cuts) for f in _split(prompts, order[a:b], depth - 1)]

    def cost(families: list[tuple[int, list[int]]]) -> int:
        return sum(s + sum(len(prompts[n]) - s for n in group) for s, group in families)

    return parts if cost(parts) < cost(whole) else whole


def prompts_budget(trainable: Trainable, settings: recipes.Train) -> int:
    """Bytes that kept prompts may take: the recipe's, or a quarter of what is free."""
    if settings.prompts_mb is not None:
        return settings.prompts_mb * 2**20
    if trainable.device.type == "cuda":
        import torch

        return int(torch.cuda.mem_get_info(trainable.device)[0]) // 4
    import psutil

    return int(psutil.virtual_memory().available) // 4


class Prompts:
    """The base's KV of the prompts of items, read once (or again each time).

    Each culture's are read apart: so the shared adapter reads them as the culture's own does, to
    the last bit, and where both are trained in one run `trainable.store` has them for the second.

    `where` says where it is kept; "auto" takes memory up to `budget` bytes, then the disk, then
    neither, and says which. Raises CmgrError when the disk is full.
    """

    def __init__(
        self,
        trainable: Trainable,
        model: Any,
        items: Sequence[Item],
        where: Where | Literal["auto"],
        budget: int,
        folder: Path,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.trainable = trainable
        self.model = model
        self._prefix: dict[str, tuple[Item, int]] = {}  # item -> first of its family, shared tokens
        self._shared: dict[str, Any] = {}
        self._kept: dict[str, Any] = {}
        self._file: Any = None
        self._spans: dict[str, tuple[int, tuple[int, ...]]] = {}
        self._path = folder / f"prompts-{trainable.accelerator.process_index}.bin"
        self._groups: list[list[Item]] = []
        by_group: dict[str, list[Item]] = {}
        for item in items:
            by_group.setdefault(item.group, []).append(item)
        for mine in by_group.values():
            for shared, numbers in families([item.prompt for item in mine]):
                members = [mine[n] for n in numbers]
                for item in members:
                    self._prefix[item.id] = (members[0], shared)
                members.sort(key=lambda item: len(item.prompt))  # so that little is padded
                self._groups += [members[i : i + READ] for i in range(0, len(members), READ)]
        self.tokens = sum(len(i.prompt) - self._prefix[i.id][1] for i in items)
        self.where = self._choose(budget, say) if where == "auto" else where

    def _choose(self, budget: int, say: Callable[[str], None]) -> Where:
        need = self.unread * self.cell_bytes
        if need <= budget:
            return "memory"
        free = shutil.disk_usage(self._path.parent).free
        where: Where = "disk" if need < free // 2 else "again"
        say(
            f"train: the prompts' KV takes {need / 2**20:.0f} MB, more than the "
            f"{budget / 2**20:.0f} MB of train.prompts_mb: "
            + ("it is kept on disk" if where == "disk" else "it is computed again each time")
        )
        return where

    @property
    def unread(self) -> int:
        """Tokens of `tokens` that are not in the store."""
        known = [i for g in self._groups if self._key(g) in self.trainable.store for i in g]
        return self.tokens - sum(len(item.prompt) - self._prefix[item.id][1] for item in known)

    @property
    def keys(self) -> list[Key]:
        """What the store keeps each group under."""
        return [self._key(group) for group in self._groups]

    @property
    def cell_bytes(self) -> int:
        """Bytes of one token's KV."""
        return cell_bytes(self.trainable.model.config, self.trainable.dtype)

    def read(self, tell: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Let the base read everything that is to be kept; `tell` hears of prompts done, in all."""
        if self.where == "again":
            return
        done, total = 0, sum(map(len, self._groups))
        for group in self._groups:
            known = self.trainable.store.pop(self._key(group), None)
            found = self._compute(group) if known is None else known
            for item, values in zip(group, found, strict=True):
                if self.where == "memory":
                    self._kept[item.id] = values
                else:
                    self._write(item, values)
            done += len(group)
            tell(done, total)

    def close(self) -> None:
        """Forget all, on disk too; what the adapters to come will read stays in the store."""
        for group in self._groups:
            # those that are not kept: on disk, or reading was broken off before them
            if group[0].group in self.trainable.keeps and group[-1].id in self._kept:
                self.trainable.store[self._key(group)] = [self._kept[item.id] for item in group]
        self._kept.clear()
        self._shared.clear()
        if self._file is not None:
            self._file.close()
            self._file = None
        self._path.unlink(missing_ok=True)

    def past(self, items: Sequence[Item]) -> tuple[Any, Any]:
        """A cache of these items' prompts, left-padded, and its mask, (items, longest)."""
        import torch

        again: dict[str, Any] = {}
        if self.where == "again":
            for group in self._by_family(items):
                again |= zip((item.id for item in group), self._compute(group), strict=True)
        longest = max(len(item.prompt) for item in items)
        mask = torch.zeros((len(items), longest), dtype=torch.long)
        block: Any = None
        for row, item in enumerate(items):
            own = again[item.id] if again else self._load(item)
            n = len(item.prompt)
            if block is None:
                layers, two, heads, _, size = own.shape
                block = own.new_zeros((layers, two, len(items), heads, longest, size))
            mask[row, longest - n :] = 1
            shared = self._prefix[item.id][1]
            if shared:
                block[:, :, row, :, longest - n : longest - n + shared] = self._beginning(item)
            block[:, :, row, :, longest - n + shared :] = own
        return cache_of(block.unbind(0), kept=True), mask

    # -- reading -----------------------------------------------------------------------------

    def _by_family(self, items: Sequence[Item]) -> list[list[Item]]:
        groups: dict[str, list[Item]] = {}
        for item in items:
            groups.setdefault(self._prefix[item.id][0].id, []).append(item)
        return list(groups.values())

    def _decode(self, ids: Any, mask: Any, past: Any) -> Any:
        import torch

        device = self.trainable.device
        decoder = self.model.get_base_model().get_decoder()
        cache = new_cache(len(decoder.layers)) if past is None else past
        done = mask.shape[1] - ids.shape[1]
        pace = self.trainable.pace.step(ids.numel(), "read")
        with torch.no_grad(), self.model.disable_adapter(), pace:
            decoder(
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                position_ids=torch.arange(done, mask.shape[1], device=device)[None],
                use_cache=True,
                **given(decoder, cache),
            )
        return cache

    def _beginning(self, item: Item) -> Any:
        """KV of what an item's family begins with, (layers, 2, heads, tokens, size)."""
        import torch

        first, shared = self._prefix[item.id]
        if first.id not in self._shared:
            ids = torch.tensor([first.prompt[:shared]])
            found = stack(self._decode(ids, torch.ones_like(ids), None), 0)
            self._shared[first.id] = found[:, :, 0].clone()
        return self._shared[first.id]

    def _key(self, group: Sequence[Item]) -> Key:
        return self._prefix[group[0].id][1], tuple(item.prompt for item in group)

    def _compute(self, group: Sequence[Item]) -> list[Any]:
        """KV of the prompts of one family, without their beginning."""
        import torch

        shared = self._prefix[group[0].id][1]
        longest = max(len(item.prompt) for item in group)
        ids = torch.full((len(group), longest - shared), self.trainable.end)
        mask = torch.zeros((len(group), longest), dtype=torch.long)
        for row, item in enumerate(group):
            ids[row, : len(item.prompt) - shared] = torch.tensor(item.prompt[shared:])
            mask[row, : len(item.prompt)] = 1
        past = None
        if shared:
            begun = self._beginning(group[0])
            layers, two, *rest = begun.shape
            past = cache_of(
                begun[:, :, None].expand(layers, two, len(group), *rest).unbind(0), kept=False
            )
        found = stack(self._decode(ids, mask, past), shared)
        return [
            found[:, :, row, :, : len(item.prompt) - shared].clone()
            for row, item in enumerate(group)
        ]

    # -- the disk ----------------------------------------------------------------------------

    def _write(self, item: Item, values: Any) -> None:
        import torch

        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("w+b")
        data = values.cpu().contiguous()
        try:
            start = self._file.seek(0, 2)
            self._file.write(data.view(torch.uint8).numpy().tobytes())
        except OSError as error:
            raise CmgrError(
                f"{self._path}: {error.strerror}: the prompts' KV does not fit the disk. Free "
                "some, or set train.prompts: again in the recipe"
            ) from None
        self._spans[item.id] = (start, tuple(data.shape))

    def _load(self, item: Item) -> Any:
        import torch

        if self.where == "memory":
            return self._kept[item.id]
        start, shape = self._spans[item.id]
        dtype = self.trainable.dtype
        count = dtype.itemsize
        for n in shape:
            count *= n
        self._file.seek(start)
        data = bytearray(self._file.read(count))
        return torch.frombuffer(data, dtype=dtype).view(shape).to(self.trainable.device)
