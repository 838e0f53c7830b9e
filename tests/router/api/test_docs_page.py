import html
import html.parser

from text_generation_router.api import docs_page

VOID = {"meta", "br", "hr", "link"}


class Balanced(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.open = []
        self.text = ""
        self.links = []

    def handle_starttag(self, tag, attributes):
        self.links += [value for name, value in attributes if name in ("href", "src")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def read(page):
    parser = Balanced()
    parser.feed(page)
    assert parser.open == []
    return parser


async def test_the_page_shows_every_route_and_type_and_needs_nothing_from_elsewhere(client):
    answer = await client.get("/docs")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    page = read(answer.text)
    for path, methods in client.document["paths"].items():
        assert all(f"{method.upper()} {path}" in page.text for method in methods)
    assert all(name in page.text for name in client.document["components"]["schemas"])
    assert page.links == ["api-doc/openapi.json"]


def test_what_the_document_says_is_text_and_no_markup():
    operation = {"summary": "<script>alert(1)</script>", "responses": {}}
    document = {
        "info": {"title": "T", "version": "1"},
        "paths": {"/<b>": {"get": operation}},
        "components": {"schemas": {"A&B": {"const": "<i>"}}},
    }
    page = docs_page.render(document)
    assert "<script>" not in page and "<b>" not in page and "<i>" not in page
    assert html.escape("<script>alert(1)</script>") in page and "A&B" in read(page).text
