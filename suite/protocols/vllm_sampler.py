"""Generation by vLLM (extra `[vllm]`): a sampler whose engine runs in the method's own process.

The engine holds the model of the checkpoint in a copy of its own, and is given the weights that are trained whenever
they have changed. Prompts go in as token ids, and token ids come back: tokenizer, template and stop rules stay the
task's. Scoring and training never pass through it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..bundle import Array
from ..errors import MethodError, UsageError
from ..generation import REMEDY, VLLM
from ..places import cache_folder
from ..spec import RunSpec
from .generation import Sampler
from .policy import PolicyTask
from .rollouts import Charge
from .sampling import Sampling
from .tokens import Tokenizer

KV_SHARE = 8
"""On a processor, keys and values have this part of the memory that the run's budget allows: an eighth."""
GPU_SHARE = 0.3
"""The share of a GPU's memory that the engine may have, keys and values included; the rest is for training."""
_BLOCK = 32
"""Tokens whose keys and values are shared as one between prompts with a common beginning, on a processor."""
_STEP_TOKENS = 256
"""Most tokens of a step on a processor, where vLLM copies an adapter's weights for every token: they fit the cache."""
_BIAS = -100.0
"""Added to the logits of what may not be drawn; the most that vLLM lets one take off."""
_DTYPES = {"fp32": "float32", "tf32": "float32", "bf16": "bfloat16"}
_RANKS = (8, 16, 32, 64, 128, 256)
"""Ranks that vLLM makes room for; one that lies between takes the room of the next."""
_DEFAULT = "default"
"""The name that peft gives the adapters it puts into a model."""


def make_sampler(model: nn.Module, task: PolicyTask, spec: RunSpec, device: torch.device) -> Sampler | None:
    """What the spec of a run declares as its generation, None where that is the policy's own."""
    if spec.generation != VLLM:
        return None
    return VllmSampler(model, task.tokenizer(), task.rows, spec, device)


class VllmSampler:
    """Continues prompts by vLLM, with the weights that `model` holds when it is called.

    `model` comes from a folder in the layout of `transformers`. Where adapters alone are trained, the engine has them
    as adapters, unmerged, as training has; where the weights themselves are, they are exchanged. Seeds come from the
    caller's generator, and nothing is kept from one call to the next but weights: on one machine, equal calls give
    equal tokens. Raises `UsageError` where vLLM, or the folder, is not there.
    """

    def __init__(self, model: nn.Module, tokenizer: Tokenizer, rows: int, spec: RunSpec, device: torch.device) -> None:
        self._model, self._tokenizer, self._device = model, tokenizer, device
        self._adapters = _adapters(model)
        self._digest, self._adapter, self._calls = "", 0, 0
        self._longest = _positions(model)
        folder = Path(str(getattr(getattr(model, "config", None), "name_or_path", "")))
        if not (folder / "config.json").is_file():
            raise UsageError(f"vLLM reads a model from its folder, and that of this task has none: {REMEDY}.")
        _settle(spec)
        with _apart(device):
            try:
                from vllm import LLM
            except ImportError as error:
                raise UsageError(f"`--generation vllm` needs vLLM, which is not here ({error}): {REMEDY}.") from None
            self._llm: Any = LLM(str(folder), **self._arguments(rows, spec))
        if self._adapters is None:
            # What the folder holds need not be what the run begins with.
            self._bring()

    def _arguments(self, rows: int, spec: RunSpec) -> dict[str, Any]:
        """What the engine is told: everything that results depend on, whatever its defaults are."""
        told: dict[str, Any] = {
            "skip_tokenizer_init": True,
            "dtype": _DTYPES[spec.precision],
            "seed": 0,
            "enforce_eager": True,
            "generation_config": "vllm",
            "enable_prefix_caching": True,
            "max_num_seqs": rows,
            "async_scheduling": False,
            "distributed_executor_backend": "uni",
        }
        if self._adapters is not None:
            told |= {
                "enable_lora": True,
                "max_loras": 1,
                "max_cpu_loras": 1,
                "max_lora_rank": self._adapters["rank"],
                # Elsewhere it would multiply by zeros, above all in the head, whose rows are as many as its tokens.
                "lora_target_modules": self._adapters["peft"]["target_modules"],
            }
        if self._device.type == "cuda":
            return told | {"gpu_memory_utilization": GPU_SHARE}
        space = spec.budget.memory_mb * 2**20 // KV_SHARE
        held = space // _token_bytes(self._model, told["dtype"]) // _BLOCK * _BLOCK
        most = self._longest = min(self._longest, held)
        return told | {
            "kv_cache_memory_bytes": space,
            "block_size": _BLOCK,
            "max_model_len": most,
            "max_num_batched_tokens": max(_STEP_TOKENS, rows),
        }

    def __call__(
        self,
        ids: Array,
        lengths: Array,
        room: Array,
        n: int,
        sampling: Sampling,
        *,
        ends: Sequence[int],
        never: Sequence[int],
        generator: torch.Generator,
        charge: Charge,
    ) -> Array:
        if (longest := int((lengths + room).max())) > self._longest:
            raise MethodError(
                f"vLLM holds {self._longest} tokens of a prompt with its response here, and {longest} are asked for: "
                "show less, or leave out `--generation vllm`"
            )
        pad, banned = self._tokenizer.pad, {self._tokenizer.pad, *never}
        seeds = torch.randint(2**31 - 1, (len(ids) * n,), generator=generator, device=generator.device).tolist()
        made = np.full((len(ids) * n, int(room.max())), pad, np.int64)
        with _apart(self._device):
            self._bring()
            # A killed run has an empty cache when it goes on, and a cache decides how prompts are cut into steps.
            if not self._llm.reset_prefix_cache():
                raise MethodError("vLLM has not emptied its cache of common beginnings")
            if self._device.type == "cpu":
                # There, vLLM cannot cut the prompt of a request with a seed of its own: all draw from the process's.
                torch.manual_seed(seeds[0])
                seeds = [None] * len(seeds)
            requests = []
            for row, seed in enumerate(seeds):
                prompt = ids[row // n, : lengths[row // n]].tolist()
                asked = self._parameters(sampling, int(room[row // n]), seed, ends, banned)
                requests.append((prompt, asked))
            for row, tokens in enumerate(self._drawn(requests, charge)):
                if banned.intersection(tokens):
                    raise MethodError("vLLM has drawn a token that may not be drawn")
                made[row, : len(tokens)] = tokens
        return made

    def _parameters(
        self, sampling: Sampling, room: int, seed: int | None, ends: Sequence[int], banned: set[int]
    ) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=seed if sampling.temperature else None,
            max_tokens=room,
            stop_token_ids=[self._tokenizer.stop, *ends],
            ignore_eos=True,
            logit_bias=dict.fromkeys(sorted(banned), _BIAS),
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )

    def _drawn(self, requests: Sequence[tuple[list[int], Any]], charge: Charge) -> list[list[int]]:
        """The tokens of every request; those of each step are charged as it ends, and what is too much is dropped."""
        engine = self._llm.llm_engine
        self._calls += 1
        rows = {f"{self._calls}-{row}": row for row in range(len(requests))}
        found: list[list[int]] = [[] for _ in requests]
        try:
            for name, (prompt, asked) in zip(rows, requests, strict=True):
                engine.add_request(name, {"prompt_token_ids": prompt}, asked, lora_request=self._request)
            while engine.has_unfinished_requests():
                begun = drawn = 0
                for output in engine.step():
                    row, tokens = rows[output.request_id], list(output.outputs[0].token_ids)
                    begun += bool(tokens) and not found[row]
                    drawn += len(tokens)
                    found[row] += tokens
                charge(begun, drawn)
        finally:
            if engine.has_unfinished_requests():
                engine.abort_request(list(rows))
        return found

    def _bring(self) -> None:
        """Give the engine the trained weights as they stand, where they are others than it has."""
        trained = {name: value for name, value in self._model.named_parameters() if value.requires_grad}
        digest = _digest(trained)
        if digest == self._digest:
            return
        if self._adapters is None:
            weights = ((name, value.detach()) for name, value in self._model.named_parameters())
            self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
        else:
            self._bring_adapters(trained)
        self._digest = digest

    def _bring_adapters(self, trained: Mapping[str, Tensor]) -> None:
        from safetensors.torch import save_file

        engine, config = self._llm.llm_engine, self._adapters
        assert config is not None
        if self._adapter:
            engine.remove_lora(self._adapter)
        self._adapter += 1
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "adapter_config.json").write_text(json.dumps(config["peft"]))
            weights = {
                f"base_model.model.{key.replace(f'.{_DEFAULT}.', '.')}": value.detach().cpu().contiguous()
                for key, value in trained.items()
            }
            save_file(weights, folder / "adapter_model.safetensors")
            if not engine.add_lora(self._lora(folder)):
                raise UsageError("vLLM does not take the adapters of this task.")

    @property
    def _request(self) -> Any:
        """The adapters that requests ask for; the engine has read them, and the folder is gone."""
        return self._lora(Path("read")) if self._adapters is not None else None

    def _lora(self, folder: Path) -> Any:
        from vllm.lora.request import LoRARequest

        return LoRARequest(f"adapters-{self._adapter}", self._adapter, str(folder))


def _adapters(model: nn.Module) -> dict[str, Any] | None:
    """Room for the rank, and the configuration as peft writes it, of the adapters that alone are trained, or None."""
    known = getattr(model, "peft_config", None)
    if not known:
        return None
    config = known[_DEFAULT]
    strange = [name for name, value in model.named_parameters() if value.requires_grad and f".{_DEFAULT}." not in name]
    if strange:
        raise UsageError(f"vLLM takes a model whose adapters are trained, or its weights, not both: {strange[0]}.")
    peft = {
        "peft_type": "LORA",
        "r": config.r,
        "lora_alpha": config.lora_alpha,
        "target_modules": sorted(config.target_modules),
        "bias": "none",
        "use_rslora": bool(config.use_rslora),
    }
    room = next((rank for rank in _RANKS if rank >= config.r), 0)
    if not room:
        raise UsageError(f"vLLM takes adapters of a rank of {_RANKS[-1]} at most, those of this task have {config.r}.")
    return {"rank": room, "peft": peft}


def _positions(model: Any) -> int:
    config = getattr(model, "config", None)
    return int(getattr(config, "max_position_embeddings", 0))


def _token_bytes(model: Any, dtype: str) -> int:
    """Bytes of the keys and values of one token in all layers."""
    config = model.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * width * (2 if dtype == "bfloat16" else 4))


def _digest(weights: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, value in weights.items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _settle(spec: RunSpec) -> None:
    """The environment of vLLM, which it reads when it is imported: one process, no network, the run's threads."""
    os.environ |= {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(spec.threads),
        "VLLM_HOST_IP": "127.0.0.1",
        "GLOO_SOCKET_IFNAME": "lo",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
    }
    for name, folder in (("VLLM_CACHE_ROOT", "vllm"), ("VLLM_CONFIG_ROOT", "vllm/config")):
        os.environ.setdefault(name, str(cache_folder() / folder))
    # It stands above the size that the engine is given.
    os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)


@contextlib.contextmanager
def _apart(device: torch.device) -> Iterator[None]:
    """Inside, nothing of the run's settings holds: vLLM computes in its own precision, by its own kernels.

    What it changes of the process, random states above all, is put back.
    """
    strict = torch.are_deterministic_algorithms_enabled()
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - not ours, but it may be somebody's
    torch.use_deterministic_algorithms(False)
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.autocast(device.type, enabled=False), torch.random.fork_rng(devices=devices):
            yield
    finally:
        torch.use_deterministic_algorithms(strict)
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
