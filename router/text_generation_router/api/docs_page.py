"""/docs: the OpenAPI document as a page to read, without anything from elsewhere.

In: the document. Out: HTML.
"""

import html
import json
from typing import Any

STYLE = """
body { font-family: sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; color: #222 }
summary { cursor: pointer; padding: .3em 0 } summary code { font-weight: bold }
pre { background: #f4f4f4; padding: 1em; overflow: auto } section { border-top: 1px solid #ddd }
"""


def render(document: dict[str, Any]) -> str:
    info = document["info"]
    operations = [
        _operation(method.upper(), path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    schemas = document["components"]["schemas"]
    types = [_details(f"<code>{html.escape(name)}</code>", schema) for name, schema in schemas.items()]
    return (
        f"<!doctype html><html lang=en><head><meta charset=utf-8><title>{info['title']}</title><style>{STYLE}</style></head>"
        f"<body><h1>{info['title']} {info['version']}</h1>"
        "<p>The same for programs: <a href=api-doc/openapi.json>openapi.json</a></p>"
        f"<h2>Routes</h2>{''.join(operations)}<h2>Types</h2>{''.join(types)}</body></html>"
    )


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    content = {name: operation[name] for name in ("requestBody", "responses") if name in operation}
    return _details(f"<code>{method} {html.escape(path)}</code> {html.escape(operation['summary'])}", content)


def _details(summary: str, content: object) -> str:
    text = html.escape(json.dumps(content, indent=2))
    return f"<section><details><summary>{summary}</summary><pre>{text}</pre></details></section>"
