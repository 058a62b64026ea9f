"""Model families: what a LoRA fine-tune can do with each, tried on a tiny random model, written to docs/families.md.

    python benchmarks/families.py                          all families, and writes docs/families.md
    python benchmarks/families.py --only mixtral,mamba     some families, printed only

For each family a seeded random model of two or three layers is made with transformers. aftertune fine-tunes it for two
steps with LoRA, once in one piece and once interrupted after the first step and resumed; merges the adapter; and
evaluates base, adapter and merged weights with check-merge. Plain transformers and PEFT then load the adapter and the
merged weights. A family passes where

    resume      both runs write the same adapter, bit by bit
    adapter     plain PEFT gives the logits that aftertune gives, within 1e-5
    merge       plain transformers loads the merged weights, with the logits of the adapter within 1e-4
    check-merge says that the merged weights are the same model, and that the adapter differs from the base

Where a merge would give another model, tune refuses --merge before it trains; then the adapter is evaluated unmerged.
The exit code is 1 if a family fails.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PAGE = Path("docs/families.md")
ADAPTER_BOUND, MERGE_BOUND = 1e-5, 1e-4
SPECIAL = ("<s>", "</s>", "<pad>")
SHAPE: dict[str, Any] = {
    "vocab_size": 264, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 4096, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2,
    "initializer_range": 0.3}
_KV: dict[str, Any] = {"num_key_value_heads": 2}
_HEAD: dict[str, Any] = {**_KV, "head_dim": 8}
_EXPERTS: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2}
_MAMBA2: dict[str, Any] = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 16}
_LLAMA3 = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0,
           "high_freq_factor": 4.0, "original_max_position_embeddings": 64}

#: Family -> (config class of transformers, its settings beside SHAPE).
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("LlamaConfig", _KV),
    "Llama 3.2": ("LlamaConfig", {**_KV, "tie_word_embeddings": True, "rope_parameters": _LLAMA3}),
    "Qwen2": ("Qwen2Config", {**_KV, "tie_word_embeddings": True}),
    "Qwen3": ("Qwen3Config", {**_HEAD, "tie_word_embeddings": True}),
    "Qwen3-MoE": ("Qwen3MoeConfig", {**_HEAD, "moe_intermediate_size": 16, "num_experts": 4,
                                     "num_experts_per_tok": 2, "decoder_sparse_step": 1}),
    "Gemma 2": ("Gemma2Config", {**_HEAD, "query_pre_attn_scalar": 8, "sliding_window": 24}),
    "Gemma 3": ("Gemma3TextConfig", {**_HEAD, "query_pre_attn_scalar": 8, "sliding_window": 24}),
    "Phi": ("PhiConfig", {"partial_rotary_factor": 0.5}),
    "Phi-3": ("Phi3Config", {**_KV, "original_max_position_embeddings": 4096}),
    "Mistral": ("MistralConfig", {**_KV, "sliding_window": 24}),
    "Mixtral": ("MixtralConfig", {**_KV, **_EXPERTS}),
    "GPT-2": ("GPT2Config", {}),
    "GPT-NeoX": ("GPTNeoXConfig", {}),
    "OPT": ("OPTConfig", {"word_embed_proj_dim": 32, "ffn_dim": 64}),
    "BLOOM": ("BloomConfig", {}),
    "Falcon": ("FalconConfig", {"new_decoder_architecture": False}),
    "StableLM": ("StableLmConfig", _KV),
    "OLMo 2": ("Olmo2Config", _KV),
    "OLMoE": ("OlmoeConfig", {**_KV, "num_experts": 4, "num_experts_per_tok": 2}),
    "Granite": ("GraniteConfig", _KV),
    "GraniteMoE": ("GraniteMoeConfig", {**_KV, **_EXPERTS}),
    "SmolLM3": ("SmolLM3Config", _KV),
    "Mamba": ("MambaConfig", {"state_size": 8}),
    "Mamba-2": ("Mamba2Config", {"state_size": 16, "num_heads": 8, "head_dim": 8, "n_groups": 1}),
    "Falcon-H1": ("FalconH1Config", {**_HEAD, **_MAMBA2, "mamba_d_ssm": 64}),
    "Bamba": ("BambaConfig", {**_KV, **_MAMBA2, "attn_layer_indices": [1]}),
    "Zamba2": ("Zamba2Config", {**_KV, "num_hidden_layers": 3, "mamba_d_state": 16, "n_mamba_heads": 8,
                                "mamba_headdim": 8, "mamba_ngroups": 1, "num_mem_blocks": 1, "adapter_rank": 8,
                                "layers_block_type": ["mamba", "hybrid", "hybrid"]}),
    "LFM2": ("Lfm2Config", {**_KV, "layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False}),
}


# --- A tiny model and its data ---


def make_model(family: str, folder: Path, seed: int = 0) -> Path:
    """A seeded random model of ``family`` in float32, with a byte tokenizer."""
    import torch
    import transformers

    kind, settings = FAMILIES[family]
    torch.manual_seed(seed)
    config = getattr(transformers, kind)(**{**SHAPE, **settings})
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    _byte_tokenizer().save_pretrained(folder)
    return folder


def _byte_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({t: i for i, t in enumerate([*SPECIAL, *letters])}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    bos, eos, pad = SPECIAL
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token=bos, eos_token=eos, pad_token=pad)


def make_data(path: Path, count: int = 24) -> Path:
    """Rows such as "say w7 twice" -> "w7 w7"."""
    rows = [{"prompt": f"say w{i} twice", "completion": f"w{i} w{i}"} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


# --- One family ---


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one family did. layers: the names of the adapted layers; notes: on what is not adapted; resumed: the resumed
    run wrote the same adapter; adapter, merge: largest difference of a logit, of plain PEFT to aftertune and of the
    merged weights to the adapter; same: the verdict of check-merge, or for an unmerged adapter, whether its evaluation
    differs from the base's; refused: why --merge was refused; error: what failed."""

    family: str
    layers: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    resumed: bool = False
    adapter: float = float("inf")
    merge: float = float("inf")
    same: bool = False
    refused: str = ""
    error: str = ""

    @property
    def passed(self) -> bool:
        """True where every check holds."""
        return (not self.error and self.resumed and self.same and self.adapter <= ADAPTER_BOUND
                and (bool(self.refused) or self.merge <= MERGE_BOUND))


def try_family(family: str, folder: Path) -> Outcome:
    """Fine-tune, resume, merge and evaluate a tiny model of ``family`` in ``folder``."""
    from aftertune.errors import AftertuneError

    try:
        base, data = make_model(family, folder / "base"), make_data(folder / "rows.jsonl")
        return _run(family, base, data, folder)
    except AftertuneError as error:
        return Outcome(family, error=str(error))
    except Exception as error:
        return Outcome(family, error=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")


def _run(family: str, base: Path, data: Path, folder: Path) -> Outcome:
    from aftertune.errors import InputError
    from aftertune.ledger import Ledger
    from aftertune.merge_check import check_merge
    from aftertune.study import DataSpec, TaskSpec, TuneSpec
    from aftertune.tuning import tune

    spec = TuneSpec(model=str(base), data=DataSpec(file=data), out=folder / "out", name="whole", max_steps=2,
                    learning_rate=0.01, batch_size=4, template="plain", dtype="float32", device="cpu", threads=1,
                    checkpoint_minutes=0, merge=True)
    tasks, refused = [TaskSpec(name="arc_easy", sample=4)], ""
    with Ledger(folder / "ledger.db") as ledger:
        try:
            whole = tune(spec, ledger=ledger)
        except InputError as error:
            if not str(error).startswith("--merge"):
                raise
            refused = str(error)
            whole = tune(spec.model_copy(update={"merge": False}), ledger=ledger)
        parts = spec.model_copy(update={"out": folder / "parts", "name": "parts", "merge": False})
        with contextlib.suppress(KeyboardInterrupt):
            tune(parts, progress=_interrupt)
        resumed = tune(parts)
        if refused:
            same = _moves(base, Path(whole.output), tasks, ledger)
        else:
            check = check_merge(whole.output, tasks=tasks, ledger=ledger, device="cpu")
            same = check.merged.same and check.moved > 0
    adapter, merge = _differences(base, Path(whole.output))
    return Outcome(family, _layers(Path(whole.output)), tuple(n for n in whole.notes if "adapted" in n),
                   resumed.result == whole.result, adapter, merge, same, refused)


def _moves(base: Path, out: Path, tasks: Sequence[Any], ledger: Any) -> bool:
    """Whether the log-likelihoods of the adapter differ from those of its base."""
    from aftertune.evaluation import evaluate

    found = [evaluate(str(base), tasks, ledger=ledger, device="cpu", dtype="float32", adapter=adapter)
             for adapter in (None, str(out))]
    first, second = ([r.logprob for a in ledger.answers(e.id) for r in a.responses] for e in found)
    return first != second


def _layers(out: Path) -> tuple[str, ...]:
    """The last names of the layers, and the names of the parameters, in the config of an adapter."""
    config = json.loads((out / "adapter_config.json").read_text(encoding="utf-8"))
    layers = {name.rpartition(".")[2] for name in config["target_modules"]}
    return tuple(sorted(layers)) + tuple(sorted(config.get("target_parameters") or ()))


def _interrupt(step: int, _total: int, _text: str) -> None:
    """End the run as Ctrl-C does, after its first step."""
    if step == 1:
        raise KeyboardInterrupt


def _differences(base: Path, out: Path) -> tuple[float, float]:
    """The largest difference of a logit of plain PEFT to aftertune, and of the merged weights to plain PEFT; infinite
    where there are none."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from aftertune.sources import fingerprint_model, load_model, resolve_adapter, resolve_model

    ids = torch.arange(3, 35)[None]

    def logits(model: Any) -> Any:
        with torch.no_grad():
            return model.eval()(input_ids=ids).logits

    source = resolve_model(str(base))
    mine = logits(load_model(source, "float32", "cpu", resolve_adapter(str(out), source, fingerprint_model(source))))
    plain = logits(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype="float32"), out))
    merge = float("inf")
    if (out / "merged").is_dir():
        whole = logits(AutoModelForCausalLM.from_pretrained(out / "merged", dtype="float32"))
        merge = float((whole - plain).abs().max())
    return float((plain - mine).abs().max()), merge


# --- The page ---


def page(outcomes: Sequence[Outcome], versions: Mapping[str, str]) -> str:
    """The text of docs/families.md."""
    rows = ["| family | transformers config | adapted layers | resume | adapter in plain PEFT | merge | check-merge |",
            "|---|---|---|---|---|---|---|"]
    rows += [_row(outcome) for outcome in outcomes]
    notes = [f"- {o.family}: {note}" for o in outcomes for note in (*o.notes, *filter(None, [o.refused]))]
    libraries = ", ".join(f"{name} {version}" for name, version in versions.items())
    return "\n\n".join([
        "# Model families",
        f"Written by `python benchmarks/families.py` (with {libraries}). Each family is a seeded random model of two "
        "or three layers, fine-tuned with `--method lora` and its default layers for two steps in float32 on a CPU. It "
        "shows that the code path works, not how well a family learns.",
        "\n".join(rows),
        "resume: a run that was interrupted after its first step and resumed writes the same adapter, bit by bit. "
        "adapter in plain PEFT: the largest difference of a logit between `PeftModel.from_pretrained` and aftertune "
        f"(allowed: {ADAPTER_BOUND:g}). merge: the largest difference of a logit between `OUT/merged`, loaded by plain "
        f"transformers, and the adapter (allowed: {MERGE_BOUND:g}). check-merge: base, adapter and merged weights were "
        "evaluated, the adapter differs from the base, and the merged weights count as the adapter.",
        "What differs from all linear layers, as the notes of a tuning and the refusals of `--merge` say:",
        "\n".join(notes)]) + "\n"


def _row(outcome: Outcome) -> str:
    cells = [outcome.family, f"`{FAMILIES[outcome.family][0]}`"]
    if outcome.error:
        return f"| {' | '.join([*cells, f'failed: {outcome.error}'])} | | | | |"
    verdict = ("evaluated unmerged" if outcome.same else "no effect") if outcome.refused else \
        ("same model" if outcome.same else "another model")
    cells += [", ".join(outcome.layers), "same" if outcome.resumed else "differs", f"{outcome.adapter:.0e}",
              "refused" if outcome.refused else f"{outcome.merge:.0e}", verdict]
    return f"| {' | '.join(cells)} |"


def main() -> int:
    """Try the families; returns the exit code."""
    from importlib import metadata

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="families, separated by commas, in lower case; the page is not written")
    wanted = parser.parse_args().only
    names = [n for n in FAMILIES if wanted is None or n.lower() in wanted.lower().split(",")]
    outcomes = []
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            outcomes.append(try_family(name, Path(folder)))
        print(_row(outcomes[-1]), *outcomes[-1].notes, flush=True)
    if wanted is None:
        versions = {name: metadata.version(name) for name in ("transformers", "peft", "trl")}
        PAGE.write_text(page(outcomes, versions), encoding="utf-8")
    failed = [o.family for o in outcomes if not o.passed]
    print(f"{len(outcomes) - len(failed)} of {len(outcomes)} families pass",
          *([f"not {', '.join(failed)}"] if failed else []), sep="; ")
    return 1 if failed or not outcomes else 0


if __name__ == "__main__":
    sys.exit(main())
