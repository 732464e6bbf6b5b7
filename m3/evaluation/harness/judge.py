"""Tasks whose answers a language model scores: which address is asked, and what that will cost,
said before it is asked.

In: `--judge MODEL [--judge-url URL]`; the key is read from the environment (OPENAI_API_KEY), never
    from the command line.
Out: environment variables, which are all that the harness's tasks read. Any OpenAI-compatible
    address will do.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass

import httpx2

OPENAI = "https://api.openai.com/v1/chat/completions"
KEY = "OPENAI_API_KEY"

TOKENS_PER_CALL: Mapping[str, int] = {
    "mmbench_cn_dev": 250,
    "llava_in_the_wild": 1200,
    "mmvet": 700,
    "mathvista_testmini_format": 600,
    "activitynetqa": 350,
}
"""Prompt and answer of one call, estimated from the harness's prompts at four characters to a
token.
"""


@dataclass(frozen=True)
class Price:
    """Number and cost of the calls that judging a task takes."""

    task: str
    calls: int
    tokens: int

    def __str__(self) -> str:
        return (
            f"{self.task}: up to {self.calls} calls, about {self.tokens / 1e6:.2g} million tokens"
        )


def price(task: str, documents: int, budgets: int) -> Price:
    """Calls for one judged answer per document, model, method and scale."""
    calls = documents * budgets
    return Price(task, calls, calls * TOKENS_PER_CALL.get(task, 500))


def set_judge(model: str, url: str | None) -> None:
    """Tells the harness's tasks whom to ask. Nothing is asked yet.

    Raises:
        ValueError: no key in the environment.
    """
    if KEY not in os.environ:
        raise ValueError(
            f"--judge {model} needs a key in the environment variable {KEY}; for a server of your "
            "own that asks for none, "
            f"set it to any word"
        )
    address = url or OPENAI
    base = address.removesuffix("/").removesuffix("/chat/completions")
    os.environ |= {
        "API_TYPE": "openai",
        "MODEL_VERSION": model,
        "OPENAI_API_URL": f"{base}/chat/completions",
    }
    os.environ |= {"OPENAI_BASE_URL": base, "OPENAI_API_MODEL": model}


def check_judge() -> None:
    """Asks for one word before anything is evaluated: what `set_judge` named must answer, or hours
    later every cell would fail.

    Raises:
        ValueError: no answer, or one that is none of a chat; what came is said.
    """
    address, model = os.environ["OPENAI_API_URL"], os.environ["MODEL_VERSION"]
    question = {
        "model": model,
        "messages": [{"role": "user", "content": "Answer with the word yes."}],
        "max_tokens": 8,
    }
    try:
        reply = httpx2.post(
            address,
            json=question,
            headers={"Authorization": f"Bearer {os.environ[KEY]}"},
            timeout=60,
        )
        reply.raise_for_status()
        reply_text = reply.json()["choices"][0]["message"]["content"]
    except (
        httpx2.HTTPError,
        httpx2.InvalidURL,
        ValueError,
        KeyError,
        IndexError,
        TypeError,
    ) as error:
        reason, *_ = str(error).split("\n")
        raise ValueError(
            f"the judge {model} at {address} gives no answer ({type(error).__name__}: "
            f"{reason}). "
            "Check --judge, --judge-url "
            f"(an OpenAI-compatible address, such as http://localhost:8000/v1) and the key in {KEY}"
        ) from error
    if not isinstance(reply_text, str):
        raise ValueError(f"the judge {model} at {address} answers {reply_text!r}, not a text")
