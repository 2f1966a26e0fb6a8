"""A model behind a server with the OpenAI chat API: vLLM, SGLang, llama.cpp or a service.

Every description is one request to `<base_url>/chat/completions`. The `openai` client sends it with
its own retries off: they do not cover malformed responses, and cannot delay the other requests when
the server asks for a pause.

The server is not trusted. A request ends after `timeout` seconds, from the connection to the last
byte; sizes and redirects are bounded; what the server sends is stored or shown without the key.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from captioning.engines import Identity
from captioning.engines.openai.engine import OpenAIEngine
from captioning.engines.openai.protocol import MAX_SIDE
from lattec_jax.runtime.errors import ConfigError, EngineError
from lattec_jax.runtime.extras import install_command


def identity(config: ConfigDict) -> Identity:
    """Return the identity of the configured model, without a request to the server."""
    settings, length = config.descriptions.openai, config.descriptions.max_new_tokens
    key = "config.descriptions.openai"
    if not settings.model:
        raise ConfigError(
            f"{key}.model: expected the model as the server names it (see "
            f"{settings.base_url.rstrip('/')}/models), found an empty string; for example "
            f"--{key}.model=llava-hf/llava-v1.6-mistral-7b-hf"
        )
    return Identity(
        "openai",
        settings.model,
        f"temperature 0, at most {length} new tokens, long side at most {MAX_SIDE}",
    )


def processes(config: ConfigDict) -> int:
    """Return 1: the server does the work, and `concurrency` keeps it busy."""
    return 1


def load(config: ConfigDict) -> OpenAIEngine:
    """Return the engine, after a check that the server is up and has the model."""
    try:
        import openai  # noqa: F401
        from anyio.from_thread import start_blocking_portal
    except ImportError as error:
        raise EngineError(
            f"the engine 'openai' needs the package of this name ({error}); install it with "
            f"{install_command('openai')}"
        ) from error
    engine = OpenAIEngine(identity(config), config.descriptions)
    with start_blocking_portal() as portal:
        portal.call(engine.server.check_model)
    return engine
