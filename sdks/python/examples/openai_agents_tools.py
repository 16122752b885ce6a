"""All tools of an agent of the OpenAI Agents SDK, protected in one line. Needs aegisagent[openai-agents].

The model here is a script, so that the example runs without an account: it asks for one tool and repeats what that says.
"""

import json
from typing import Any

import anyio
from agents import Agent, Model, ModelResponse, RunConfig, Runner, Usage, function_tool
from openai.types.responses import ResponseFunctionToolCall, ResponseOutputMessage, ResponseOutputText

from aegisagent import AsyncClient, source_trust
from aegisagent.adapters.openai_agents import protect_agent


class Scripted(Model):
    async def get_response(self, system_instructions: str | None, input: Any, *_: Any, **__: Any) -> ModelResponse:  # noqa: A002
        said = [item["output"] for item in input if item.get("type") == "function_call_output"] if isinstance(input, list) else []
        if said:
            text = ResponseOutputText(annotations=[], text=str(said[-1]), type="output_text")
            message = ResponseOutputMessage(id="m", content=[text], role="assistant", status="completed", type="message")
            return ModelResponse(output=[message], usage=Usage(), response_id=None)
        arguments = json.dumps({"id": "c-1", "email": "dana@example.test"})
        call = ResponseFunctionToolCall(arguments=arguments, call_id="call-1", name="update_customer", type="function_call")
        return ModelResponse(output=[call], usage=Usage(), response_id=None)

    def stream_response(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError


@function_tool
def update_customer(id: str, email: str) -> str:  # noqa: A002  # as it is registered
    """Changes a customer's address."""
    return f"{id} has {email}"


async def main() -> None:
    async with AsyncClient() as client:
        agent = Agent(name="helper", model=Scripted(), tools=[update_customer])
        protect_agent(client, agent, tool="crm", tell_model=True)
        for label in ("trusted_internal_unsigned", "untrusted_external"):
            with source_trust(label):
                print((await Runner.run(agent, "go", run_config=RunConfig(tracing_disabled=True))).final_output)


anyio.run(main)
