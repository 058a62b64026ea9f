"""Generates the demo's data: order messages in free text, each with the JSON object to extract from it.

    python -m aftertune.demo.orders [FOLDER]    writes orders_train, orders_test and orders_shots (.jsonl)

The task is one skill, made hard on purpose: many wordings, clauses in any order, typos, number words, corrections
("sorry, I meant three"), and noise that looks like an answer (prices, order numbers, other cities, earlier purchases).
The held-out messages use sentences that do not occur in training.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from typing import TypeVar

from aftertune.demo import wordings as w

T = TypeVar("T")

INSTRUCTION = "Write the order as JSON with item (singular), quantity, color or null, city, day or null."
#: Share of the held-out orders with new words as well as new sentences.
NEW_SHARE = 0.25
#: File name -> (examples, seed, wordings).
FILES = {
    "orders_train.jsonl": (900, 11, w.TRAINING),
    "orders_test.jsonl": (120, 12, w.HELD_OUT),
    "orders_shots.jsonl": (3, 13, w.TRAINING),
}


@dataclass(frozen=True, slots=True)
class Order:
    """The answer: what the customer wants after all corrections."""

    item: str
    quantity: int
    color: str | None
    city: str
    day: str | None


@dataclass(frozen=True, slots=True)
class Words:
    """The words that one set of messages draws its values from."""

    items: tuple[tuple[str, str], ...]
    colors: tuple[str, ...]
    cities: tuple[str, ...]
    names: tuple[str, ...]
    quantities: tuple[int, ...]


def _things(simple: tuple[tuple[str, str], ...], before: tuple[str, ...], nouns: tuple[tuple[str, str], ...]
            ) -> tuple[tuple[str, str], ...]:
    """(singular, plural) of the simple things, and of every noun with every word of ``before`` in front of it."""
    return (*simple, *((f"{word} {singular}", f"{word} {plural}") for word in before for singular, plural in nouns))


_QUANTITIES = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 15, 20)
_SEEN = Words(_things(w.THINGS, w.BEFORE, w.NOUNS), w.COLORS, w.CITIES, w.NAMES, _QUANTITIES)
#: Things, colors, cities and names that do not occur in training, for a part of the held-out orders.
_NEW = Words(_things((), w.NEW_BEFORE, w.NEW_NOUNS), w.NEW_COLORS, w.NEW_CITIES, w.NEW_NAMES,
             (2, 3, 4, 5, 7, 8, 9, 12, 14, 16, 18, 30))


def write(folder: Path) -> list[Path]:
    """Write the three files into ``folder``; the same bytes on every machine."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, (count, seed, wordings) in FILES.items():
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in examples(count, seed, wordings)]
        path = folder / name
        path.write_bytes("".join(lines).encode())
        paths.append(path)
    return paths


def examples(count: int, seed: int, wordings: w.Wordings) -> list[dict[str, str]]:
    """``count`` distinct rows ``{"prompt", "completion"}``."""
    random = Random(seed)
    rows: dict[str, str] = {}
    while len(rows) < count:
        new = wordings is w.HELD_OUT and random.random() < NEW_SHARE
        order, message = Writer(random, wordings, _NEW if new else _SEEN).message()
        rows.setdefault(f"{INSTRUCTION}\n\n{message}", json.dumps(asdict(order), ensure_ascii=False))
    return [{"prompt": prompt, "completion": completion} for prompt, completion in rows.items()]


class Writer:
    """Writes messages: draws an order, then states it in sentences from one set of wordings."""

    def __init__(self, random: Random, wordings: w.Wordings, words: Words) -> None:
        self.random = random
        self.wordings = wordings
        self.words = words

    def message(self) -> tuple[Order, str]:
        """A random order and its message. Sometimes the message states one value wrong and corrects it."""
        order, other = self._two_orders()
        corrected = self._pick(("quantity", "color", "city")) if self._chance(0.2) else None
        if corrected == "color" and order.color is None:
            corrected = None
        stated = replace(order, **{corrected: getattr(other, corrected)}) if corrected else order
        sentences = [s for block in self._blocks(order, stated, other, corrected) for s in block]
        if self._chance(0.5):
            sentences.insert(0, self._sentence("greeting", order, other))
        if self._chance(0.4):
            sentences.append(self._sentence("closing", order, other))
        text = " ".join(sentences)
        return order, text.lower() if self._chance(0.1) else text

    def _two_orders(self) -> tuple[Order, Order]:
        """An order, and another one that differs in every value, for corrections and noise."""
        r, words = self.random, self.words
        items, colors = r.sample(words.items, 2), r.sample(words.colors, 2)
        cities, days = r.sample(words.cities, 2), r.sample(w.DAYS, 2)
        quantities = r.sample(words.quantities, 2)
        order = Order(items[0][0], quantities[0], colors[0] if self._chance(0.7) else None, cities[0],
                      days[0] if self._chance(0.6) else None)
        return order, Order(items[1][0], quantities[1], colors[1], cities[1], days[1])

    def _blocks(self, order: Order, stated: Order, other: Order, corrected: str | None) -> list[list[str]]:
        """Groups of sentences in random order; a statement and its correction are one group."""
        core_kind = "core_city" if self._chance(0.4) else "core"
        template = self._pick(getattr(self.wordings, core_kind))
        color_inside = "{np}" in template and (corrected == "color" or self._chance(0.7))
        core = [self._fill(template, stated if color_inside else replace(stated, color=None), other)]
        if order.color and not color_inside:
            core.append(self._sentence("color", stated, other))
        if corrected and (corrected != "city" or core_kind == "core_city"):
            core.append(self._sentence(f"fix_{corrected}", order, other))
        blocks = [core]
        if core_kind == "core":
            city = [self._sentence("city", stated, other)]
            blocks.append([*city, self._sentence("fix_city", order, other)] if corrected == "city" else city)
        if order.day:
            blocks.append([self._sentence("day", order, other)])
        noise = self.random.sample(self.wordings.noise, self._pick((0, 1, 1)))
        blocks.extend([self._fill(sentence, order, other)] for sentence in noise)
        self.random.shuffle(blocks)
        return blocks

    def _sentence(self, kind: str, order: Order, other: Order) -> str:
        return self._fill(self._pick(getattr(self.wordings, kind)), order, other)

    def _fill(self, template: str, order: Order, other: Order) -> str:
        """A sentence with its slots filled, sometimes with a typo outside the slots."""
        r = self.random
        if self._chance(0.03):
            template = self._typo(template)
        day = order.day or ""
        text = template.format(
            np=self._noun_phrase(order), items=self._plural(order.item), q=self._number(order.quantity),
            color=order.color, city=order.city, day=w.SHORT_DAYS[day] if day and self._chance(0.15) else day,
            other_np=self._noun_phrase(other), other_items=self._plural(other.item),
            other_q=self._number(other.quantity), other_color=other.color, other_city=other.city,
            other_day=other.day, name=self._pick(self.words.names), id=r.randint(10000, 99999),
            price=r.randint(5, 99), date=f"{self._pick(w.MONTHS)} {r.randint(1, 28)}",
            phone=f"555-{r.randint(0, 9999):04d}", house=r.randint(13, 98),
        )
        return text[0].upper() + text[1:]

    def _noun_phrase(self, order: Order) -> str:
        color = f"{order.color} " if order.color else ""
        if order.quantity > 1:
            return f"{self._number(order.quantity)} {color}{self._plural(order.item)}"
        thing = f"{color}{order.item}"
        article = "an" if thing[0] in "aeiou" else "a"
        return self._pick((f"{article} {thing}", f"one {thing}", f"1 {thing}", f"a single {thing}"))

    def _number(self, quantity: int) -> str:
        forms = [str(quantity), w.NUMBER_WORDS.get(quantity, str(quantity))]
        forms += {2: ["a couple of"], 6: ["half a dozen"], 12: ["a dozen"]}.get(quantity, [])
        return self._pick(tuple(forms))

    def _plural(self, item: str) -> str:
        return dict(self.words.items)[item]

    def _typo(self, template: str) -> str:
        """The template with two neighbouring letters swapped in one longer word that is not a slot."""
        words = template.split(" ")
        long = [i for i, word in enumerate(words) if len(word) > 4 and word.isalpha()]
        if long:
            index = self._pick(tuple(long))
            word = words[index]
            at = self.random.randint(1, len(word) - 3)
            words[index] = word[:at] + word[at + 1] + word[at] + word[at + 2:]
        return " ".join(words)

    def _chance(self, share: float) -> bool:
        return self.random.random() < share

    def _pick(self, values: tuple[T, ...]) -> T:
        return values[self.random.randrange(len(values))]


if __name__ == "__main__":
    for written in write(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent)):
        print(written)
