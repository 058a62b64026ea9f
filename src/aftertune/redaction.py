"""Removes secrets from texts that are stored or shown, local paths from texts that are published, and control
characters from texts of other people.

    redact("aftertune eval gpt2 --token hf_abc123def")     "aftertune eval gpt2 --token [redacted]"
    visible("a\\u202eb")                                    "a⟨U+202E⟩b"
    public_text("weights in /home/me/models/x")            "weights in x"
    published(evaluation)                                  the same for every text of a value
"""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast
from urllib.parse import quote, unquote

from aftertune.errors import UNUSUAL, is_hidden, visible_characters

REDACTED = "[redacted]"
_SHORTEST_SECRET = 6  # shorter environment values ("1", "true", "user") would match ordinary words of a command
_HARMLESS = {"bos", "eos", "pad", "unk", "sep", "cls", "mask", "special", "image", "stop"}
_SECRET_ENDS = ("password", "passwd", "passphrase", "secret", "apikey", "credential", "credentials")
#: Passwords that are words of ordinary texts: these are removed where they stand as a password, not everywhere.
_ORDINARY = {"aftertune", "password", "postgres", "postgresql"}
_PLAIN_VALUE = {"true", "false", "none", "null", "auto"}
#: Tokens recognized by their format: Hugging Face (with a digit, or long: ``hf_datasets`` is a folder), OpenAI,
#: GitHub, GitLab, AWS, Slack, Google, JWT.
_TOKEN = re.compile(
    r"\b(?:hf_|api_org_)(?=[A-Za-z]*[0-9]|[A-Za-z]{16})[A-Za-z0-9]{8,}|\bsk-[A-Za-z0-9_-]{16,}|\bgh[opsur]_[A-Za-z0-9]{16,}"
    r"|\bgithub_pat_\w{16,}|\bglpat-[\w-]{16,}|\bAKIA[A-Z0-9]{16}\b|\bxox[abprs]-[\w-]{10,}"
    r"|\bAIza[\w-]{30,}|\beyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]{10,}")
_BEARER = re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9+/=._~-]{8,}")
#: The login of a URL; a path that was normalised has one slash. Without a host (``postgresql://user:password``) a part
#: that is no port is a password.
_USERINFO = re.compile(
    r"(?P<scheme>\b[A-Za-z][A-Za-z0-9+.-]{0,40}:/{1,3})(?:[^/\s'\"]+@"
    r"|(?P<user>[^/\s'\":@]+):(?!\d{1,5}(?:[/?#\s'\",;)\]]|[:.](?:\s|$)|$))[^/\s'\"@]+)")
#: The password of a URL, with or without a host after it.
_PASSWORD = re.compile(r"://[^/\s'\":@]*:(?!\d{1,5}(?:[/?#]|$))(?P<password>[^\s'\"/?#]+?)(?=@[^@]*$|[/?#]|$)")
_KEY = re.compile(r"""(?<![\w.-])(?P<key>[\w.-]++)["']?(?P<sep>\s*[=:]\s*|[ \t]+)""")
#: A path that begins at the root, a home folder or a drive. In quotes it may contain spaces; without quotes it has
#: at least two parts ("/s" is not a path). The path of a URL and a closing tag are not matched.
_PATH = re.compile(
    r"""(?P<quote>['"])(?:file://)?(?:~|/|[A-Za-z]:\\)[^'"]*[/\\](?P<quoted>[^'"/\\]+)[/\\]*(?P=quote)"""
    r"""|(?<![\w/.<~])(?:file://)?(?:~[\w.-]*/(?:[^\s/'",;=<>|()]+/+)*|/(?:[^\s/'",;=<>|()]+/+)+)"""
    r"""(?P<plain>[^\s/'",;=<>|()]*)"""
    r"""|\b[A-Za-z]:\\(?:[^\s\\'",;=<>|()]+\\)*(?P<drive>[^\s\\'",;=<>|()]+)""")
#: Fields of values that hold a source: a model, an adapter, a file or a folder.
_SOURCE_FIELDS = {"source", "adapter_source", "data_source", "output", "origin"}
_VALUE = re.compile(r"""(?:'[^']*'|"[^"]*"|[^\s,;&'"])++""")  # one shell word; parts of it may be quoted
T = TypeVar("T")


def redact(text: str) -> str:
    """``text`` without secrets: values of environment variables, known token formats, URL logins, ``key=value``."""
    return _redact_pairs(_BEARER.sub(lambda m: f"{m[1]} {REDACTED}", redact_known(text)))


def redact_known(text: str) -> str:
    """``text`` without what is certainly a secret: values of environment variables, known token formats, URL logins."""
    for form in _secret_forms(tuple(os.environ.items())):
        text = text.replace(form, REDACTED)
    text = _TOKEN.sub(REDACTED, text)
    return _USERINFO.sub(_without_login, text) if ":/" in text else text


def _without_login(match: re.Match[str]) -> str:
    if match["user"]:
        return f"{match['scheme']}{match['user']}:{REDACTED}"
    return f"{match['scheme']}{REDACTED}@"


def public_source(source: str) -> str:
    """A model source without local folders. Hub ids and package files are unchanged."""
    local = source.startswith(("/", ".", "~", "\\")) or re.match(r"[A-Za-z]:[\\/]", source) or source.count("/") > 1
    return redact(source if source.startswith("package:") or not local else Path(source.replace("\\", "/")).name)


def public_text(text: str) -> str:
    """``text`` without secrets, and with the last part of every local path in place of the path."""
    return redact(_PATH.sub(_last_part, text.replace(str(Path.home()), "~")))


def _last_part(match: re.Match[str]) -> str:
    quote = match["quote"] or ""
    return f"{quote}{match['quoted'] or match['plain'] or match['drive'] or Path(match[0]).name}{quote}"


def published(value: T) -> T:
    """A value of `aftertune.values` with `public_text` applied to its texts and `public_source` to its sources."""
    result: Any = value
    if isinstance(value, str):
        result = public_text(value)
    elif is_dataclass(value) and not isinstance(value, type):
        content = {f.name: getattr(value, f.name) for f in fields(value)}
        result = replace(value, **{name: public_source(v) if name in _SOURCE_FIELDS and isinstance(v, str) else
                                   published(v) for name, v in content.items()})
    elif isinstance(value, Mapping):
        result = {key: published(v) for key, v in value.items()}
    elif isinstance(value, list | tuple):
        result = type(value)(published(v) for v in value)
    return cast(T, result)


def _redact_pairs(text: str) -> str:
    """Remove the value after every key that names a secret: ``key=value``, ``"key": "value"``, ``--key value``."""
    out, position = [], 0
    while match := _KEY.search(text, position):
        end = match.end("key")
        if _names_secret(match):
            value = _VALUE.match(text, match.end())
            is_flag = value is not None and value[0].startswith("--") and not match["sep"].strip()
            if value is not None and not is_flag and not _is_plain(value[0]):
                out += [text[position:match.end()], REDACTED]
                position = value.end()
                continue
        out.append(text[position:end])
        position = end
    return "".join([*out, text[position:]])


def _names_secret(match: re.Match[str]) -> bool:
    """True where a match of _KEY is the flag of a secret, or a key of one with ``=`` or ``:``."""
    return _is_secret_key(match["key"]) and (match["key"].startswith("-") or bool(match["sep"].strip()))


def _is_plain(value: str) -> bool:
    """True for a value that is not a secret, such as "true"."""
    unquoted = value.strip("'\"").lower()
    return unquoted in _PLAIN_VALUE or unquoted == REDACTED


def _is_secret_key(key: str) -> bool:
    """True for HF_TOKEN, --api-key, wandbApiKey, PGPASSWORD; False for max_tokens, add_bos_token."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key)
    words = [w for w in re.split(r"[^A-Za-z0-9]+", spaced.lower()) if w]
    for before, word in zip(["", *words], words, strict=False):
        if word.endswith(_SECRET_ENDS):
            return True
        if word == "key" and before in {"api", "access", "secret", "private", "auth"}:
            return True
        if word.endswith("token") and not _HARMLESS & {before, word.removesuffix("token")}:
            return True
    return False


@functools.lru_cache(maxsize=4)
def _secret_forms(environment: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    """Values of the variables that name secrets and the passwords of URLs, the longest first (one may contain another),
    each in all forms in which a text may have it. Every text of a terminal asks for them, so the last ones are kept.
    """
    values = {v.strip() for k, v in environment if _is_secret_key(k)}
    values |= {m["password"] for _, v in environment if "://" in v for m in _PASSWORD.finditer(v)}
    secrets = sorted((v for v in values if len(v) >= _SHORTEST_SECRET and v.lower() not in _PLAIN_VALUE | _ORDINARY),
                     key=len, reverse=True)
    return tuple(form for v in secrets for form in {v, quote(v, safe=""), unquote(v), shlex.quote(v)})


def process_command(argv: Sequence[str]) -> str:
    """The arguments of this process as a shell line without secrets; the program by name, without its path."""
    if not argv:
        return ""
    program = Path(argv[0])
    name = f"python -m {program.parent.name}" if program.name == "__main__.py" else program.name
    return " ".join([name, *_quoted(clean_words(argv[1:]))])


def clean_command(command: str) -> str:
    """A shell line without its secrets; unchanged where it has none."""
    try:
        words = shlex.split(command)
    except ValueError:  # an open quote hides where a value ends, so everything after the key of a secret is removed
        keys = (m for m in _KEY.finditer(command) if _names_secret(m))
        end = next((m.end() for m in keys), None)
        return redact(command) if end is None else redact(command[:end]) + REDACTED
    clean = clean_words(words)
    return redact(command) if clean == words else " ".join(_quoted(clean))


def clean_words(words: Sequence[str]) -> list[str]:
    """Arguments without secrets. The whole value after the flag of a secret is removed."""
    out: list[str] = []
    secret_next = False
    for word in words:
        flag, equals, value = word.partition("=")
        if secret_next and not word.startswith("--"):
            out.append(REDACTED)
        elif equals and word.startswith("-") and _is_secret_key(flag) and not _is_plain(value):
            out.append(f"{flag}={REDACTED}")
        else:
            out.append(redact(word))
        secret_next = word.startswith("-") and not equals and _is_secret_key(word)
    return out


def _quoted(words: Sequence[str]) -> list[str]:
    """Words quoted for a shell; a redacted word without spaces is not quoted."""
    return [w if REDACTED in w and " " not in w else shlex.quote(w) for w in words]


# --- Control characters ---

def visible(text: str, limit: int = 2000) -> str:
    """Foreign text made safe to display: control and direction-changing characters are replaced by their code point,
    and text beyond ``limit`` characters is cut off with a note. Escaping is up to the document."""
    excess = len(text) - limit
    shown = visible_characters(text[:limit])
    return f"{shown} … ({excess:,} more characters)" if excess > 0 else shown


def escape_hidden(json_text: str) -> str:
    """JSON with every such character in JSON's own escape; the value stays the same."""
    return UNUSUAL.sub(lambda match: json.dumps(match[0])[1:-1] if is_hidden(match[0]) else match[0], json_text)
