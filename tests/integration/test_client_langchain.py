"""LangChain's chat model for OpenAI-compatible servers, unchanged."""

from langchain_openai import ChatOpenAI


def test_chat_openai_invokes_and_streams(url: str) -> None:
    model = ChatOpenAI(base_url=f"{url}/v1", api_key="any", model="tgi", max_tokens=6, temperature=0, stop=["zzz"])
    answer = model.invoke("Who are you?")
    assert answer.content and answer.usage_metadata["output_tokens"] == 6
    assert answer.response_metadata["finish_reason"] == "length"
    assert "".join(chunk.content for chunk in model.stream("Who are you?")) == answer.content


def test_chat_openai_batches(url: str) -> None:
    model = ChatOpenAI(base_url=f"{url}/v1", api_key="any", model="tgi", max_tokens=4, temperature=0)
    questions = ["Who are you?", "Where is he?", "Why?"]
    assert [answer.content for answer in model.batch(questions)] == [model.invoke(q).content for q in questions]
